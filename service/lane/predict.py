"""`POST /predict` a batch at a time: the bytes of a body -> one input, the outputs of a batch -> the bytes of answers.

What `predict_body` and `answers` do for one request, in the form that the fast lane wants; a test compares the two.
Pure functions of bytes and arrays: knows no connection and no queue.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import orjson

from foldserve.format.task import CLASSIFY

from ..batching.request import BatchAnswer, RawRows, Request
from ..bodies.instances import pixels_from_json
from ..bodies.limits import QUICK_BYTES, Limits
from ..bodies.predict_body import holds_files, images_from_bytes, is_quick, read_images
from ..errors import EngineError, Unsupported
from ..live.model import Model

OCTET_STREAM = "application/octet-stream"
JSON = "application/json"

_NUMPY = orjson.OPT_SERIALIZE_NUMPY  # the shortest digits that give the same float32
_HEADERS = b"content-type: application/json\r\n"


class Predict:
    """One model behind `/predict`.

    Args:
        model: takes images and classifies them.
        limits: how much one request may hold.

    Raises:
        Unsupported: the model does not classify images of one size.
    """

    label = "/predict"

    def __init__(self, model: Model, limits: Limits) -> None:
        if model.image is None or model.class_names is None or model.task.name != CLASSIFY:
            raise Unsupported(f"model {model.name!r} does not classify images, expected one that does and has labels")
        if model.image.is_free:
            raise Unsupported(f"model {model.name!r} takes images of any size, expected one size")
        self._spec, class_names = model.image, model.class_names
        self.model = model
        self._limits = limits
        self._row_bytes = math.prod(self._spec.shape)
        self.max_batch_size = model.engine.buckets[-1]
        self._places = np.arange(self.max_batch_size)
        self._pictures = frozenset(f"image/{name}" for name in limits.formats)  # the parser knows the limit of a body
        self._max_bytes = {OCTET_STREAM: self._row_bytes * self.max_batch_size, JSON: QUICK_BYTES}
        self._max_bytes |= dict.fromkeys(self._pictures, sys.maxsize)
        empty = {"model": model.name, "version": model.version, "predictions": []}
        self._start = orjson.dumps(empty).removesuffix(b"]}")
        # What an answer says of its class, up to the number that follows.
        self._classes = [
            b'{"class_id":%d,"label":%b,"confidence":' % (class_id, orjson.dumps(class_name))
            for class_id, class_name in enumerate(class_names)
        ]

    def takes(self, media_type: str, length: int) -> bool:
        """Return whether a body of this type and length makes one part of one batch; not all are read without delay."""
        return 0 < length <= self._max_bytes.get(media_type, 0)

    def is_quick(self, body: bytes, media_type: str, header_length: int | None) -> bool:
        """Return whether the event loop can afford to read the body itself."""
        return is_quick(body, media_type)

    def plain(self, media_type: str, length: int, header_length: int | None) -> tuple[int, None]:
        """Return the rows of a body that holds nothing else, 0 for one that has to be read; it has no options.

        Any bytes of such a length are images.
        """
        rows, rest = divmod(length, self._row_bytes)
        is_plain = media_type == OCTET_STREAM and not rest and rows <= min(self.max_batch_size, self._limits.rows)
        return (rows if is_plain else 0), None

    def holds_files(self, body: bytes, media_type: str, header_length: int | None) -> bool:
        """Return whether a body may hold files that have to be decoded."""
        return media_type in self._pictures or (media_type == JSON and holds_files(body))

    def read(
        self, body: bytes, media_type: str, header_length: int | None, beat: Callable[[], None] | None = None
    ) -> tuple[None, RawRows, int, None]:
        """Return no arrays, the pixels, the number of images, and no options: such a request has none.

        Raises:
            RequestError: the body is not what the model takes.
        """
        limits = self._limits if beat is None else replace(self._limits, beat=beat)
        if media_type == JSON:
            pixels = pixels_from_json(body, self._spec, limits)
            return None, pixels, len(pixels) // self._row_bytes, None
        if media_type in self._pictures:
            return None, read_images(body, media_type, self._spec, limits).tobytes(), 1, None
        return None, body, len(images_from_bytes(body, self._spec, self._limits)), None

    def write(
        self, batch: BatchAnswer, requests: Sequence[Request], starts: Sequence[int]
    ) -> Sequence[tuple[bytes, bytes] | EngineError]:
        """Return header lines and body of each request's answer, or why there is none.

        The first caller formats the whole batch.
        """
        formatted = batch.formatted.get(Predict)
        if formatted is None:
            formatted = batch.formatted[Predict] = self._format(batch)
        predictions, is_finite = formatted
        head = self._start
        if len(requests) == batch.rows and is_finite:
            return [(_HEADERS, b"%b%b]}" % (head, prediction)) for prediction in predictions]
        answers: list[tuple[bytes, bytes] | EngineError] = []
        for request, start in zip(requests, starts, strict=True):
            rows = slice(start, start + request.rows)
            if is_finite or np.isfinite(batch.outputs["probabilities"][rows]).all():
                answers.append((_HEADERS, b"%b%b]}" % (head, b",".join(predictions[rows]))))
            else:
                answers.append(EngineError(f"model {self.model.name!r} gave probabilities that are not finite numbers"))
        return answers

    def _format(self, batch: BatchAnswer) -> tuple[list[bytes], bool]:
        """Return one JSON object for each row of a batch, and whether all numbers are finite; others read `null`."""
        probabilities, class_ids = batch.outputs["probabilities"], batch.outputs["class_id"].ravel()
        if len(probabilities) > batch.rows:  # the rest only fills the bucket
            probabilities, class_ids = probabilities[: batch.rows], class_ids[: batch.rows]
        probabilities = np.ascontiguousarray(probabilities)
        text = orjson.dumps(probabilities, option=_NUMPY)[2:-2]
        is_finite = b"null" not in text
        classes = self._classes
        if len(probabilities) == 1:  # for a lone request it is quicker to cut the number out of the text
            class_id = int(class_ids[0])
            confidence = text.split(b",", class_id + 1)[class_id]
            return [b'%b%b,"probabilities":[%b]}' % (classes[class_id], confidence, text)], is_finite
        rows = text.split(b"],[")
        places = self._places[: len(rows)] if len(rows) <= self.max_batch_size else np.arange(len(rows))
        confidences = probabilities[places, class_ids]
        written = orjson.dumps(confidences, option=_NUMPY)[1:-1].split(b",")
        return [
            b'%b%b,"probabilities":[%b]}' % (classes[class_id], confidence, row)
            for class_id, confidence, row in zip(class_ids.tolist(), written, rows, strict=True)
        ], is_finite
