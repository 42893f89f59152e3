"""The infer route a batch at a time, for the fast lane: what `request` and `response` do, with less for each request.

The reader is the one that the application uses; what an answer says besides its numbers is remembered for each list of
outputs, and the numbers are written once for all requests of a batch. Knows no connection and no queue.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import orjson

from ..batching.request import BatchAnswer, RawRows
from ..bodies.limits import QUICK_BYTES
from ..bounded_dict import BoundedDict
from ..errors import InvalidInput
from ..live.model import Model
from ..tensors import Array
from ..v2.checks import WantedOutput
from ..v2.datatypes import BYTES, DATATYPES, datatype_of
from ..v2.repeated import RepeatedReader
from ..v2.request import InferRequest, RequestReader, is_quick
from ..v2.response import BINARY_TYPE, JSON_TYPE, format_response

_HEAD_BYTES = 8_192  # JSON before binary tensors: room for any sensible one
_MAX_REMEMBERED = 256
_PLAIN = b"content-type: " + JSON_TYPE.encode() + b"\r\n"
_WITH_TENSORS = b"content-type: " + BINARY_TYPE.encode() + b"\r\ninference-header-content-length: %d\r\n"

Written = tuple[bytes, bytes] | InvalidInput  # header lines and body of an answer, or why it cannot be written
Form = tuple[tuple[WantedOutput, ...], int]  # which outputs, for how many rows


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
        self.max_batch_size = model.engine.buckets[-1]
        self._reader = RepeatedReader(reader, tuple(model.engine.inputs))
        row_bytes = sum(spec.row_bytes for spec in model.engine.inputs)
        self._max_bytes = max(QUICK_BYTES, _HEAD_BYTES + row_bytes * self.max_batch_size)
        self._frames: BoundedDict[Form, list[bytes]] = BoundedDict(_MAX_REMEMBERED)
        self._last: tuple[InferRequest, list[bytes]] | None = None

    def takes(self, media_type: str, length: int) -> bool:
        """Return whether a body of this length is likely to make one part of one batch; the type says nothing here."""
        return 0 < length <= self._max_bytes

    def is_quick(self, body: bytes, media_type: str, header_length: int | None) -> bool:
        """Return whether the event loop can afford to read the body itself."""
        return is_quick(body, header_length) and not self._reader.holds_pictures(body, header_length)

    def plain(self, media_type: str, length: int, header_length: int | None) -> tuple[int, InferRequest | None]:
        """Return the rows and the request of a body that holds nothing but rows; 0 rows where it has to be read."""
        request = self._reader.plain(length) if header_length == 0 else None
        return (0, None) if request is None or request.rows > self.max_batch_size else (request.rows, request)

    def holds_files(self, body: bytes, media_type: str, header_length: int | None) -> bool:
        """Return whether a body may hold files that have to be decoded."""
        return self._reader.holds_pictures(body, header_length)

    def read(
        self, body: bytes, media_type: str, header_length: int | None, beat: Callable[[], None] | None = None
    ) -> tuple[Mapping[str, Array] | None, RawRows | None, int, InferRequest]:
        """Return the inputs as arrays or, of a model with one, its numbers as bytes; the rows, and the whole request.

        Raises what `RequestReader.read` raises.
        """
        raw_rows, request = self._reader.read(body, header_length, beat)
        if raw_rows is not None:
            return None, raw_rows, request.rows, request
        if len(request.inputs) == 1:
            raw_rows = np.ascontiguousarray(next(iter(request.inputs.values()))).data
        return request.inputs, raw_rows, request.rows, request

    def write(self, batch: BatchAnswer, requests: Sequence[Any], starts: Sequence[int]) -> Sequence[Written]:
        """Return header lines and body of each request's answer, or why it cannot be written in the wanted form."""
        return self._write_alike(batch, requests) or [
            self._write_one(batch, start, request.rows, request.options)
            for request, start in zip(requests, starts, strict=True)
        ]

    def _write_alike(self, batch: BatchAnswer, requests: Sequence[Any]) -> list[tuple[bytes, bytes]] | None:
        """Return the answers of a batch of single rows that want the same outputs; None when it is anything else."""
        options: InferRequest = requests[0].options
        if len(requests) != batch.rows or any(request.options is not options for request in requests):
            return None
        wanted = options.outputs
        is_binary = wanted[0].binary
        if options.id or any(output.binary != is_binary or output.classes for output in wanted):
            return None
        if self._last is None or self._last[0] is not options:  # comparing what they say would cost more than the rest
            self._last = options, self._pieces(batch, wanted, 1)
        pieces = self._last[1]
        if is_binary:
            head = b"".join(pieces)
            raw = [raw_rows(batch, output.name) for output in wanted]
            lines = _WITH_TENSORS % len(head)
            return [(lines, b"".join(parts)) for parts in zip(repeat(head), *raw, strict=False)]
        columns: list[Iterable[bytes]] = [repeat(pieces[0])]
        for output, piece in zip(wanted, pieces[1:], strict=True):
            texts = _json_rows(batch, output.name)
            if any(b"null" in text for text in texts):  # not a number: written alone, it is refused
                return None
            columns += [texts, repeat(piece)]
        return [(_PLAIN, b"".join(parts)) for parts in zip(*columns, strict=False)]

    def _write_one(self, batch: BatchAnswer, start: int, rows: int, request: InferRequest) -> Written:
        """Return header lines and body of the answer of `rows` rows from `start` on, or why there is none."""
        if request.id or any(wanted.classes for wanted in request.outputs):
            return self._write_alone(batch, start, rows, request)
        pieces = self._pieces(batch, request.outputs, rows)
        texts, tails = [pieces[0]], []
        for wanted, piece in zip(request.outputs, pieces[1:], strict=True):
            if wanted.binary:
                tails.extend(raw_rows(batch, wanted.name)[start : start + rows])
            else:
                text = b",".join(_json_rows(batch, wanted.name)[start : start + rows])
                if b"null" in text:  # not a number: written alone, it is refused
                    return self._write_alone(batch, start, rows, request)
                texts.append(text)
            texts.append(piece)
        head = b"".join(texts)
        return (_WITH_TENSORS % len(head), b"".join((head, *tails))) if tails else (_PLAIN, head)

    def _write_alone(self, batch: BatchAnswer, start: int, rows: int, request: InferRequest) -> Written:
        """Write one answer as the application does."""
        outputs = {name: array[start : start + rows] for name, array in batch.outputs.items()}
        try:
            response = format_response(self.model.name, self.model.version, request, outputs, self.model.class_names)
        except InvalidInput as err:
            return err
        if response.header_length is None:
            return _PLAIN, response.body
        return _WITH_TENSORS % response.header_length, response.body

    def _pieces(self, batch: BatchAnswer, wanted: tuple[WantedOutput, ...], rows: int) -> list[bytes]:
        """Return the JSON around the numbers: what stands before the first output's, then what stands behind each's."""
        form = (wanted, rows)
        pieces = self._frames.get(form)
        if pieces is None:
            pieces = self._frames[form] = self._make_pieces(batch, wanted, rows)
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
    """Return whether all inputs lie in bytes, and the numbers of all outputs can be written by the row, as numbers."""
    outputs = model.engine.outputs
    if any(spec.datatype == BYTES or spec.is_free for spec in model.engine.inputs):
        return False
    if any(spec.is_free for spec in outputs):
        return False
    return all(spec.datatype in DATATYPES and spec.datatype not in ("BOOL", "FP16", BYTES) for spec in outputs) and all(
        spec.row_bytes for spec in outputs
    )


def _json_rows(batch: BatchAnswer, name: str) -> list[bytes]:
    """Return the numbers of each row of one output as JSON; the first request writes them for the whole batch."""
    rows: list[bytes] | None = batch.formatted.get(name)
    if rows is None:
        array = np.ascontiguousarray(batch.outputs[name][: batch.rows])
        flat = array.reshape(len(array), -1)
        rows = batch.formatted[name] = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")
    return rows


def raw_rows(batch: BatchAnswer, name: str) -> list[bytes]:
    """Return each row of one output as bytes; made once for the whole batch."""
    rows: list[bytes] | None = batch.formatted.get((name, bytes))
    if rows is None:
        array = batch.outputs[name][: batch.rows]
        size, data = array[:1].nbytes, array.tobytes()
        rows = batch.formatted[name, bytes] = [data[at : at + size] for at in range(0, len(data), size)]
    return rows
