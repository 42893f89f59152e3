"""`POST /predict` a batch at a time: the bytes of a body -> one input, the outputs of a batch -> the bytes of answers.

What `bodies` and `answers` do for one request, in the form that the fast lane wants; a test holds the two together.
Pure functions of bytes and arrays: knows no connection and no queue.
"""

import numpy as np
import orjson

from service.batching.request import BatchAnswer
from service.bodies.bodies import INLINE_PIXEL_BYTES, Images, images_from_json, images_from_octets, is_quick
from service.bodies.limits import Limits
from service.errors import EngineError, Unsupported
from service.live.registry import Model

OCTETS = "application/octet-stream"
JSON = "application/json"

_NUMPY = orjson.OPT_SERIALIZE_NUMPY  # the shortest digits that give the same float32
_END = b"]}"
_HEADERS = b"content-type: application/json\r\n"


class Predict:
    """One model behind `/predict`.

    Args:
        model: takes images and classifies them.
        limits: how much one request may hold.

    Raises:
        Unsupported: the model does not classify images.
    """

    label = "/predict"

    def __init__(self, model: Model, limits: Limits) -> None:
        outputs = {spec.name for spec in model.engine.outputs}
        if model.image is None or model.labels is None or not {"probabilities", "class_id"} <= outputs:
            raise Unsupported(f"model {model.name!r} does not classify images")
        self.model = model
        self._spec = model.image
        self._limits = limits
        self._row_bytes = self._spec.channels * self._spec.height * self._spec.width
        self.most_rows = model.engine.buckets[-1]
        self._places = np.arange(self.most_rows)
        self._most_bytes = {OCTETS: self._row_bytes * self.most_rows, JSON: INLINE_PIXEL_BYTES}
        empty = {"model": model.name, "version": model.version, "predictions": []}
        self._start = orjson.dumps(empty).removesuffix(_END)
        # What an answer says of its class, up to the number that follows.
        self._classes = [
            b'{"class_id":%d,"label":%b,"confidence":' % (class_id, orjson.dumps(label))
            for class_id, label in enumerate(model.labels)
        ]

    def takes(self, media_type: str, length: int) -> bool:
        """Return whether a body of this type and length makes one part of one batch, read without delay."""
        return 0 < length <= self._most_bytes.get(media_type, 0)

    def is_quick(self, body: bytes, media_type: str, header_length: int | None) -> bool:
        """Return whether the event loop can afford to read the body itself."""
        return is_quick(body, media_type)

    def read(self, body: bytes, media_type: str, header_length: int | None) -> tuple[dict[str, Images], None]:
        """Return the input of a body that `takes` allowed, and nothing else: the answer depends on no wish.

        Raises:
            RequestError: the body is not what the model takes.
        """
        read = images_from_octets if media_type == OCTETS else images_from_json
        return {self._spec.input: read(body, self._spec, self._limits)}, None

    def write(self, batch: BatchAnswer, start: int, rows: int, asked: None) -> tuple[bytes, bytes]:
        """Return header lines and body of the answer of `rows` rows from `start` on.

        The first caller formats the whole batch.

        Raises:
            EngineError: a probability among these rows is not a finite number.
        """
        formatted = batch.formatted.get(Predict)
        if formatted is None:
            formatted = batch.formatted[Predict] = self._format(batch)
        prediction = formatted[start] if rows == 1 else b",".join(formatted[start : start + rows])
        if b"null" in prediction and not np.isfinite(batch.outputs["probabilities"][start : start + rows]).all():
            raise EngineError(f"model {self.model.name!r} gave probabilities that are not finite numbers")
        return _HEADERS, b"%b%b%b" % (self._start, prediction, _END)

    def count(self, batch: BatchAnswer, total: float, parse: float, queue: float) -> None:
        """Nothing: the protocol's statistics are of its own route."""

    def count_failure(self, seconds: float) -> None:
        """Nothing, likewise."""

    def _format(self, batch: BatchAnswer) -> list[bytes]:
        """Return one JSON object for each row of a batch; a number that is not finite reads `null` in it."""
        probabilities = np.ascontiguousarray(batch.outputs["probabilities"])
        class_ids = batch.outputs["class_id"].ravel()
        text = orjson.dumps(probabilities, option=_NUMPY)[2:-2]
        classes = self._classes
        if len(probabilities) == 1:  # a lone request pays every call alone: cut the number out of the text instead
            class_id = int(class_ids[0])
            confidence = text.split(b",", class_id + 1)[class_id]
            return [b'%b%b,"probabilities":[%b]}' % (classes[class_id], confidence, text)]
        rows = text.split(b"],[")
        places = self._places[: len(rows)] if len(rows) <= self.most_rows else np.arange(len(rows))
        confidences = probabilities[places, class_ids]
        written = orjson.dumps(confidences, option=_NUMPY)[1:-1].split(b",")
        return [
            b'%b%b,"probabilities":[%b]}' % (classes[class_id], confidence, row)
            for class_id, confidence, row in zip(class_ids.tolist(), written, rows, strict=True)
        ]
