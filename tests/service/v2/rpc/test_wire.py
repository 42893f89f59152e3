"""Requests of gRPC as bytes: protobuf's own encoder on one side, our reader on the other."""

import time
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("google.protobuf", reason="needs the extra grpc")

from foldserve.format.tensors import DTYPES
from foldserve.service.artifacts.protobuf import Message
from foldserve.service.errors import BodyTooLarge, InvalidInput
from foldserve.service.v2.rpc.descriptors import INFERENCE
from foldserve.service.v2.rpc.wire import LIST_OF, array_of_contents, split_request

REQUEST = INFERENCE.messages["ModelInferRequest"]
WHOLE = [datatype for datatype in LIST_OF if datatype in DTYPES and DTYPES[datatype].kind in "iu"]


def typed(datatype, values):
    """The bytes of a request with one input, as protobuf writes them."""
    message = REQUEST(model_name="m")
    entry = message.inputs.add(name="x", datatype=datatype, shape=[len(values)])
    getattr(entry.contents, LIST_OF[datatype]).extend(values)
    return message.SerializeToString()


def read(data, datatype, count):
    """The values of the only input."""
    (pieces,) = split_request(data).contents
    return array_of_contents(pieces, datatype, (count,), "x")


@pytest.mark.parametrize("datatype", WHOLE)
def test_whole_numbers_are_those_that_protobuf_wrote(datatype):
    """Both ends of the range, and more numbers of all lengths than are decoded at a time."""
    limits = np.iinfo(DTYPES[datatype])
    rng = np.random.default_rng(3)
    values = [limits.min, limits.max, 0, 1, *rng.integers(limits.min, limits.max, 40_000, DTYPES[datatype])]
    array = read(typed(datatype, [int(value) for value in values]), datatype, len(values))
    assert array.dtype == DTYPES[datatype]
    np.testing.assert_array_equal(array, np.array(values, DTYPES[datatype]))


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "BOOL", "BYTES"])
def test_other_values_are_those_that_protobuf_wrote(datatype):
    """Floats keep every bit, not-a-number too; booleans and texts come back as they were."""
    values = {"BOOL": [True, False] * 500, "BYTES": [b"", b"\x00\xff", b"x" * 70_000]}.get(
        datatype, [0.1, -0.0, float("inf"), float("nan"), 1e-45] * 300
    )
    array = read(typed(datatype, values), datatype, len(values))
    assert list(array) == values if datatype in ("BOOL", "BYTES") else np.array_equal(
        array, np.array(values, DTYPES[datatype]), equal_nan=True
    )  # fmt: skip


def test_what_stands_around_the_tensors_is_what_protobuf_reads():
    """Without its tensors a request is the message that protobuf reads of the whole, and the tensors are its bytes."""
    message = REQUEST(model_name="m", id="7")
    message.parameters["timeout"].int64_param = 5
    message.inputs.add(name="a", datatype="FP32", shape=[1, 2]).parameters["k"].bool_param = True
    message.inputs.add(name="b", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"z")
    message.outputs.add(name="y")
    message.raw_input_contents.extend([b"01234567", b""])
    split = split_request(message.SerializeToString())
    assert [bytes(data) for data in split.raw] == [b"01234567", b""]
    assert [len(pieces) for pieces in split.contents] == [0, 1]
    del message.raw_input_contents[:]
    message.inputs[1].ClearField("contents")
    assert split.head == message


def test_numbers_that_are_not_packed_and_contents_in_pieces_are_read():
    """A parser of proto3 has to take both, though no library writes them."""
    contents = [Message([(4, 0, 7), (4, 2, b"\x80\x01")]).encode(), Message([(4, 0, 300)]).encode()]
    entry = Message([(1, 2, b"x"), *((5, 2, piece) for piece in contents)]).encode()
    data = Message([(5, 2, entry)]).encode()
    np.testing.assert_array_equal(read(data, "UINT32", 3), [7, 128, 300])
    parsed = REQUEST.FromString(data).inputs[0].contents.uint_contents
    assert list(parsed) == [7, 128, 300]


def contents_of(piece):
    return Message([(5, 2, Message([(5, 2, piece)]).encode())]).encode()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"*\x05ab", "not in protobuf's encoding"),
        (b"\xff\xff\xff\xff", "not in protobuf's encoding"),
        (b"\n\x02\xff\xfe", "no ModelInferRequest"),
        (contents_of(b"\x22\x02\x01\x80"), "its last number is cut off"),
        (contents_of(b"\x22\x0c" + b"\x80" * 11 + b"\x01"), "a number longer than 64 bits"),
        (contents_of(Message([(4, 2, b"\x80" * 200_000 + b"\x01")]).encode()), "a number longer than 64 bits"),
        (contents_of(b"\x32\x04abcd"), "got fp32_contents, expected nothing but uint_contents"),
        (contents_of(b"\x22\x02\x01\x01"), "got 2 values, expected 1"),
        (contents_of(b"\x22\x02\x80\x02"), "a value outside 0 to 255"),
    ],
)
def test_what_is_no_request_is_refused_in_one_sentence(data, expected):
    """Bytes that protobuf would not read, or that are no array of the datatype, name the place."""
    with pytest.raises(InvalidInput, match=expected):
        read(data, "UINT8", 1)


COUNT = 4_000_000
AMPLIFIED = {
    "inputs": b"*\x00" * COUNT,
    "outputs": b"2\x00" * COUNT,
    "raw_input_contents": b":\x00" * COUNT,
    "parameters": b'"\x00' * COUNT,
    "unknown fields": b"\xfa\x06\x00" * COUNT,
    "fields of an input": Message([(5, 2, b'"\x00' * COUNT)]).encode(),
    "fields of an output": Message([(6, 2, b"\x12\x00" * COUNT)]).encode(),
    "axes": Message([(5, 2, Message([(3, 2, b"\x01" * COUNT)]).encode())]).encode(),
    "a name": Message([(1, 2, b"m" * COUNT)]).encode(),
    "single numbers": contents_of(b" \x01" * COUNT),
    "elements": contents_of(b"B\x00" * COUNT),
    "packed numbers": contents_of(Message([(4, 2, b"\x01" * COUNT)]).encode()),
}


@pytest.mark.parametrize("kind", AMPLIFIED)
def test_millions_of_small_things_are_refused_before_they_are_made(kind):
    """Megabytes of anything but the expected values cost neither time nor memory, wherever they stand."""
    data = AMPLIFIED[kind]
    tracemalloc.start()
    started = time.thread_time()
    try:
        with pytest.raises((InvalidInput, BodyTooLarge)):
            read(data, "BYTES" if kind == "elements" else "UINT8", 784)
        seconds, peak = time.thread_time() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < 0.2
    assert peak < 1.1 * len(data) + 4_000_000  # one copy, of what is no tensor


def test_a_million_numbers_are_an_array_without_an_object_for_each():
    """Memory while they are read: the array, and a slice of it in larger numbers."""
    data = typed("UINT8", bytes(range(256)) * 4_000)
    tracemalloc.start()
    try:
        read(data, "UINT8", 1_024_000)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(data)
    finally:
        tracemalloc.stop()
