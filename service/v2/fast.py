"""The infer route a batch at a time, for the fast lane: what `request` and `response` do, with less for each request.

The reader is the one that the application uses; what an answer says besides its numbers is remembered for each way of
asking, and the numbers are written once for all requests of a batch. Knows no connection and no queue.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from service.batching.request import BatchAnswer
from service.live.loading import Model
from service.live.statistics import Stages
from service.tensors import Array
from service.v2.agreement import WantedOutput
from service.v2.datatypes import DATATYPES, datatype_of
from service.v2.repeated import RepeatedReader
from service.v2.request import InferRequest, RequestReader
from service.v2.response import BINARY_TYPE, JSON_TYPE, format_response

QUICK_JSON_BYTES = 65_536  # read within a millisecond, as in `routes`
_HEAD_BYTES = 8_192  # JSON before binary tensors: room for any sensible one
_MOST_REMEMBERED = 256
_PLAIN = b"content-type: " + JSON_TYPE.encode() + b"\r\n"
_WITH_TENSORS = b"content-type: " + BINARY_TYPE.encode() + b"\r\ninference-header-content-length: %d\r\n"

Way = tuple[tuple[WantedOutput, ...], int]  # which outputs, for how many rows


class Infer:
    """One version of a model behind its infer route.

    Args:
        model: the version.
        reader: reads the requests for it.
        label: the route's own pattern, for the metrics.
    """

    def __init__(self, model: Model, reader: RequestReader, label: str) -> None:
        self.model = model
        self.label = label
        self.most_rows = model.engine.buckets[-1]
        self._reader = RepeatedReader(reader, tuple(model.engine.inputs))
        row_bytes = sum(spec.row_bytes for spec in model.engine.inputs)
        self._most_bytes = max(QUICK_JSON_BYTES, _HEAD_BYTES + row_bytes * self.most_rows)
        self._heads: dict[Way, list[bytes]] = {}
        self._last: tuple[tuple[WantedOutput, ...], int, list[bytes]] = ((), 0, [])

    def takes(self, media_type: str, length: int) -> bool:
        """Return whether a body of this length is likely to make one part of one batch; the type says nothing here."""
        return 0 < length <= self._most_bytes

    def is_quick(self, body: bytes, media_type: str, header_length: int | None) -> bool:
        """Return whether the event loop can afford to read the body itself."""
        return (len(body) if header_length is None else header_length) <= QUICK_JSON_BYTES

    def read(self, body: bytes, media_type: str, header_length: int | None) -> tuple[Mapping[str, Array], InferRequest]:
        """Return the inputs and the request. Raises what `RequestReader.read` raises."""
        request = self._reader.read(body, header_length)
        return request.inputs, request

    def write(self, batch: BatchAnswer, start: int, rows: int, request: InferRequest) -> tuple[bytes, bytes]:
        """Return header lines and body of the answer of `rows` rows from `start` on.

        Raises:
            InvalidInput: an output does not travel in the form that is asked for.
        """
        last, last_rows, pieces = self._last
        if request.outputs is not last or rows != last_rows:  # comparing what they say would cost more than the rest
            if any(wanted.classes for wanted in request.outputs):
                return self._write_alone(batch, start, rows, request)
            pieces = self._pieces(batch, request.outputs, rows)
            self._last = request.outputs, rows, pieces
        if request.id:
            return self._write_alone(batch, start, rows, request)
        texts, tails = [pieces[0]], []
        for wanted, piece in zip(request.outputs, pieces[1:], strict=True):
            if wanted.binary:
                octets, row_bytes = _octets(batch, wanted.name)
                tails.append(octets[start * row_bytes : (start + rows) * row_bytes])
            else:
                written = _written(batch, wanted.name)[start : start + rows]
                text = written[0] if rows == 1 else b",".join(written)
                if b"null" in text:  # not a number: the careful way says so
                    return self._write_alone(batch, start, rows, request)
                texts.append(text)
            texts.append(piece)
        head = b"".join(texts)
        return (_WITH_TENSORS % len(head), b"".join((head, *tails))) if tails else (_PLAIN, head)

    def count(self, batch: BatchAnswer, total: float, parse: float, queue: float) -> None:
        """Count a request that was answered; formatting is part of the total only."""
        self.model.statistics.answered(Stages(total, queue, parse, batch.infer_seconds, 0.0))

    def count_failure(self, seconds: float) -> None:
        """Count a request that was read and got an error."""
        self.model.statistics.failed(seconds)

    def _write_alone(self, batch: BatchAnswer, start: int, rows: int, request: InferRequest) -> tuple[bytes, bytes]:
        """Write one answer as the application does."""
        outputs = {name: array[start : start + rows] for name, array in batch.outputs.items()}
        response = format_response(self.model.name, self.model.version, request, outputs, self.model.labels)
        if response.header_length is None:
            return _PLAIN, response.body
        return _WITH_TENSORS % response.header_length, response.body

    def _pieces(self, batch: BatchAnswer, wanted: tuple[WantedOutput, ...], rows: int) -> list[bytes]:
        """Return the JSON around the numbers: what stands before the first output's, then what stands behind each's."""
        way = (wanted, rows)
        pieces = self._heads.get(way)
        if pieces is None:
            if len(self._heads) >= _MOST_REMEMBERED:
                self._heads.clear()
            pieces = self._heads[way] = self._make_pieces(batch, wanted, rows)
        return pieces

    def _make_pieces(self, batch: BatchAnswer, wanted: Sequence[WantedOutput], rows: int) -> list[bytes]:
        described = []
        for output in wanted:
            array = batch.outputs[output.name]
            entry: dict[str, Any] = {
                "name": output.name,
                "datatype": datatype_of(array),
                "shape": (rows, *array.shape[1:]),
            }
            if output.binary:
                size = array[:1].nbytes * rows
                described.append(orjson.dumps(entry | {"parameters": {"binary_data_size": size}}))
            else:
                described.append(orjson.dumps(entry | {"data": []}).removesuffix(b"]}"))
        empty = {"model_name": self.model.name, "model_version": str(self.model.version), "outputs": []}
        pieces = [orjson.dumps(empty).removesuffix(b"]}")]
        for position, (output, text) in enumerate(zip(wanted, described, strict=True)):
            pieces[-1] += (b"," if position else b"") + text
            pieces.append(b"" if output.binary else b"]}")
        pieces[-1] += b"]}"
        return pieces


def can_take(model: Model) -> bool:
    """Return whether the numbers of all outputs can be written by the row, as numbers."""
    return all(spec.datatype in DATATYPES and spec.datatype not in ("BOOL", "FP16") for spec in model.engine.outputs)


def _written(batch: BatchAnswer, name: str) -> list[bytes]:
    """Return the numbers of each row of one output as JSON; the first who asks writes them for the whole batch."""
    rows: list[bytes] | None = batch.formatted.get(name)
    if rows is None:
        array = np.ascontiguousarray(batch.outputs[name])
        flat = array.reshape(len(array), -1)
        rows = batch.formatted[name] = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")
    return rows


def _octets(batch: BatchAnswer, name: str) -> tuple[bytes, int]:
    """Return one output of the whole batch as bytes, and how many a row has; made once, for the first who asks."""
    octets: tuple[bytes, int] | None = batch.formatted.get((name, bytes))
    if octets is None:
        array = batch.outputs[name]
        octets = batch.formatted[name, bytes] = (array.tobytes(), array[:1].nbytes)
    return octets
