"""The messages of usual calls: those that differ from an earlier one in nothing but the bytes of their rows.

In front of the reader that all calls have, as `RepeatedReader` is in front of HTTP's. A client writes the same bytes
before its rows each time; what they say is remembered once that reader has accepted it. What an answer says besides its
numbers is remembered too, and written by protobuf itself. Knows no connection.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...artifacts.protobuf import BYTES as LENGTH_DELIMITED
from ...artifacts.protobuf import varint_bytes
from ...batching.request import BatchAnswer
from ...bounded_dict import BoundedDict
from ...errors import ServiceError
from ...tensors import TensorSpec
from ...v2.checks import WantedOutput
from ...v2.datatypes import datatype_of
from ...v2.parameters import EMPTY_FINAL_RESPONSE
from ...v2.request import InferRequest
from ...v2.rpc.descriptors import INFERENCE
from ...v2.rpc.frames import PREFIX_BYTES
from ...v2.rpc.messages import read_request
from ...v2.rpc.wire import InferMessage, split_request
from ..exchange import Endpoint
from ..infer import Infer, Written, raw_rows

LABEL = f"/{INFERENCE.service}/ModelInfer"  # of the route, for the metrics
MOST_ANSWERED = 16_384  # bytes of an answer, so that one frame for any client holds it

_RESPONSE = INFERENCE.messages["ModelInferResponse"]
_RAW_TAG = bytes((_RESPONSE.DESCRIPTOR.fields_by_name["raw_output_contents"].number << 3 | LENGTH_DELIMITED,))
_MOST_LENGTHS = 256  # of messages that are remembered
_MOST_OF_A_LENGTH = 8


@dataclass(frozen=True, slots=True)
class KnownMessage:
    """What the bytes before the rows of a message say.

    Attributes:
        prefix: these bytes; the rows are all that follows.
        endpoint: what answers such a request.
        rows: how many there are.
        request: what it wants of its answer; its inputs hold no numbers.
        most_answered: bytes that the answer has at most, with the five that gRPC puts before it.
    """

    prefix: bytes
    endpoint: Endpoint
    rows: int
    request: InferRequest
    most_answered: int


class KnownMessages:
    """The messages that repeat.

    Args:
        find: gives the endpoint for a model's name and version, as a message has them; None where there is none on the
            lane. Raises `ServiceError`.
        max_rows: in one request.
    """

    def __init__(self, find: Callable[[str, str], Endpoint | None], max_rows: int) -> None:
        self._find = find
        self._max_rows = max_rows
        self._known: BoundedDict[int, tuple[KnownMessage, ...]] = BoundedDict(_MOST_LENGTHS)

    def forget(self) -> None:
        """Forget all of them: the models have changed."""
        self._known.clear()

    def read(self, data: bytes) -> KnownMessage | None:
        """Return what a message says before its rows; None where the lane does not answer it."""
        known = self._known.get(len(data), ())
        for message in known:
            if data.startswith(message.prefix):
                return message
        try:
            found = self._find_out(data)
        except ServiceError:
            return None
        if found is not None and not found.request.id:  # the next one has another
            self._known[len(data)] = (found, *known[: _MOST_OF_A_LENGTH - 1])
        return found

    def _find_out(self, data: bytes) -> KnownMessage | None:
        message = split_request(data)
        if len(message.raw) != 1 or not {*message.head.parameters} <= {EMPTY_FINAL_RESPONSE}:
            return None
        endpoint = self._find(message.head.model_name, message.head.model_version)
        if endpoint is None:
            return None
        model = endpoint.route.model
        inputs = model.engine.inputs
        if len(inputs) != 1 or inputs[0].dtype.kind not in "iuf" or not _ends_with_its_rows(data, message):
            return None
        request = read_request(message, inputs, model.engine.outputs, self._max_rows)
        if request.rows > endpoint.route.max_batch_size or any(not it.binary or it.classes for it in request.outputs):
            return None
        most = _most_answered(model.name, model.engine.outputs, request)
        if most > MOST_ANSWERED:
            return None
        prefix = data[: len(data) - len(message.raw[0])]
        return KnownMessage(prefix, endpoint, request.rows, InferRequest({}, request.outputs, request.id), most)


class InferCall(Infer):
    """One version of a model behind `ModelInfer`: its answers as messages."""

    def write(self, batch: BatchAnswer, requests: Sequence[Any], starts: Sequence[int]) -> Sequence[Written]:
        """Return each request's answer as a message, behind no header lines."""
        written = []
        last: InferRequest | None = None
        last_rows = 0
        for request, start in zip(requests, starts, strict=True):
            options, rows = request.options, request.rows
            if options is not last or rows != last_rows:
                last, last_rows = options, rows
                pieces = self._answer_pieces(batch, options, rows)
                columns = [raw_rows(batch, output.name) for output in options.outputs]
            parts = []
            for piece, column in zip(pieces, columns, strict=True):
                parts.append(piece)
                parts.append(column[start] if rows == 1 else b"".join(column[start : start + rows]))
            written.append((b"", b"".join(parts)))
        return written

    def _answer_pieces(self, batch: BatchAnswer, options: InferRequest, rows: int) -> list[bytes]:
        """Return what stands before the numbers of each output."""
        if options.id:
            return self._make_pieces(batch, options.outputs, rows, options.id)
        return self._pieces(batch, options.outputs, rows)

    def _make_pieces(
        self, batch: BatchAnswer, wanted: Sequence[WantedOutput], rows: int, identity: str = ""
    ) -> list[bytes]:
        message = _RESPONSE(model_name=self.model.name, model_version=str(self.model.version), id=identity)
        pieces = []
        for output in wanted:
            array = batch.outputs[output.name]
            message.outputs.add(name=output.name, datatype=datatype_of(array), shape=(rows, *array.shape[1:]))
            pieces.append(_RAW_TAG + varint_bytes(array[:1].nbytes * rows))
        pieces[0] = message.SerializeToString() + pieces[0]
        return pieces


def _ends_with_its_rows(data: bytes, message: InferMessage) -> bool:
    """Return whether the rows are the end of a message, and not something that only looks like them.

    With other bytes in their place it has to be the same message with these rows.
    """
    size = len(message.raw[0])
    if not size or size > len(data):
        return False
    other = secrets.token_bytes(size)
    try:
        again = split_request(data[:-size] + other)
    except ServiceError:
        return False
    return len(again.raw) == 1 and again.raw[0] == other and again.head == message.head and not any(message.contents)


def _most_answered(name: str, specs: Sequence[TensorSpec], request: InferRequest) -> int:
    """Return more bytes than an answer has, with those before it."""
    around = PREFIX_BYTES + 64 + len(name.encode()) + len(request.id.encode())
    by_name = {spec.name: spec for spec in specs}
    for wanted in request.outputs:
        spec = by_name[wanted.name]
        around += 64 + len(wanted.name.encode()) + 10 * len(spec.shape) + spec.row_bytes * request.rows
    return around
