"""A request read in the way that repeats, against the reader that checks everything: never another outcome."""

import itertools

import numpy as np
import orjson
import pytest

from foldserve.service.errors import ServiceError
from foldserve.service.tensors import TensorSpec
from foldserve.service.v2.repeated import RepeatedReader
from foldserve.service.v2.request import RequestReader

IMAGE = TensorSpec("image", "UINT8", (None, 2, 3))
WEIGHT = TensorSpec("weight", "FP32", (None, 2))
OUT = TensorSpec("out", "FP32", (None, 4))


def readers(*inputs: TensorSpec) -> tuple[RequestReader, RepeatedReader]:
    """The reader, and one that repeats in front of another of its kind."""
    return RequestReader(inputs, [OUT], 5), RepeatedReader(RequestReader(inputs, [OUT], 5), inputs)


def outcome(reader, body, header_length=None):
    """All that there is to know of how a body is read."""
    raw_rows = None
    try:
        request = reader.read(body, header_length)
        if isinstance(request, tuple):
            raw_rows, request = request
    except ServiceError as err:
        return type(err), str(err)
    read = {name: _filled(array, raw_rows) for name, array in request.inputs.items()}
    arrays = {name: (array.dtype, array.shape, array.tolist()) for name, array in read.items()}
    return arrays, request.outputs, request.id, request.timeout_seconds, dict(request.parameters)


def _filled(array, raw_rows):
    """The input itself, from its bytes where it was sent as such."""
    return array if raw_rows is None else np.frombuffer(raw_rows, array.dtype).reshape(array.shape)


def body(data=(1, 2, 3, 4, 5, 6), shape=(1, 2, 3), text=None, **members):
    """A JSON body; `text` stands for the data as it is."""
    made = orjson.dumps({"inputs": [{"name": "image", "datatype": "UINT8", "shape": shape, "data": "HERE"}], **members})
    return made.replace(b'"HERE"', text if text is not None else orjson.dumps(list(data)))


NUMBERS = [
    b"[6,5,4,3,2,1]", b"[ 0 , 255,3,\n4,5,6 ]", b"[[1,2,3],[4,5,6]]", b"[[[1,2,3],[4,5,6]]]",
    b"[1,2,3,4,5]", b"[1,2,3,4,5,6,7]", b"[]", b"[1,2,3,4,5,256]", b"[1,2,3,4,5,-1]", b"[1,2,3,4,5,6.0]",
    b"[1,2,3,4,5,true]", b"[1,2,3,4,5,false]", b"[1,2,3,4,5,null]", b'[1,2,3,4,5,"]"]', b'["]",2,3,4,5,6]',
    b"[1,2,3,4,5,1e2]", b"[1,2,3,4,5,99999999999999999999]", b"6", b"null", b'"[1,2,3,4,5,6]"', b"{}", b"[1,2,3,4,5,6",
    b"[1,2,3,4,5,6]]", b"[1,2,3,4,5,6,]", b"[1,2,3,4,5,06]", b"[1,2,3,4,5,NaN]", b"",
]  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_whatever_stands_for_the_numbers_is_read_as_the_reader_reads_it(text: bytes) -> None:
    """After a good request with the same text around it, every good and bad list has the outcome that it had alone."""
    plain, repeated = readers(IMAGE)
    assert outcome(repeated, body()) == outcome(plain, body())
    for _ in range(2):
        assert outcome(repeated, body(text=text)) == outcome(plain, body(text=text))


@pytest.mark.parametrize(
    "members",
    [{"id": "q"}, {"outputs": [{"name": "out"}]}, {"parameters": {"timeout": 9}}, {"parameters": {"mine": "x"}}],
)
def test_what_is_asked_besides_the_numbers_is_remembered_with_them(members: dict) -> None:
    """Outputs, deadline and parameters of a repeated request are those of its own text; an id never repeats."""
    plain, repeated = readers(IMAGE)
    for numbers in ((1, 2, 3, 4, 5, 6), (9, 8, 7, 6, 5, 4)):
        for sent in (members, {}):
            assert outcome(repeated, body(numbers, **sent)) == outcome(plain, body(numbers, **sent))
    one, other = body(id="a"), body((6, 5, 4, 3, 2, 1), id="b")
    assert [outcome(repeated, text)[2] for text in (one, other)] == ["a", "b"]


FIRST = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,2,3],"data":[1,1,1,1,1,1]'
LOOK_ALIKES = [
    (FIRST + b',"data":[2,2,2,2,2,2]}]}', b"[1,1,1,1,1,1]", b"[7,7,7,7,7,7]"),  # the last of two is the one that counts
    (b'{"parameters":{"a":"\\"data\\":[0]"},' + FIRST[1:] + b"}]}", b"[0]", b"[1]"),
    (b'{"parameters":{"data":"[5]"},' + FIRST[1:] + b"}]}", b'"[5]"', b'"[6]"'),
]


@pytest.mark.parametrize(("text", "old", "new"), LOOK_ALIKES)
def test_what_only_looks_like_the_data_is_never_taken_for_it(text: bytes, old: bytes, new: bytes) -> None:
    """A list that is called data and is not the input's is left to the reader, also the second time."""
    plain, repeated = readers(IMAGE)
    for sent in (text, text.replace(old, new, 1), text):
        assert outcome(repeated, sent) == outcome(plain, sent)


@pytest.mark.parametrize("spec", [IMAGE, WEIGHT, TensorSpec("flag", "BOOL", (None, 6))])
def test_bare_bytes_are_read_alike_whatever_their_number(spec: TensorSpec) -> None:
    """Any number of rows, too many, parts of rows and no bytes; a BOOL is looked into every time."""
    plain, repeated = readers(spec)
    rng = np.random.default_rng(1)
    for length, top in itertools.product([6, 8, 12, 24, 13, 0, 600], (2, 256, 256)):
        bare = rng.integers(0, top, length, np.uint8).tobytes()
        assert outcome(repeated, bare, 0) == outcome(plain, bare, 0)


def test_numbers_that_come_twice_are_not_shared() -> None:
    """Two requests with the same text around their numbers keep their own."""
    _, repeated = readers(IMAGE)
    held = [repeated.read(body([n] * 6), None) for n in range(5)]
    inputs = [_filled(request.inputs["image"], raw_rows) for raw_rows, request in held]
    assert [array.ravel().tolist() for array in inputs] == [[n] * 6 for n in range(5)]


def test_a_head_before_binary_tensors_and_two_inputs_go_to_the_reader() -> None:
    """What this reader does not know it passes on."""
    plain, repeated = readers(IMAGE, WEIGHT)
    assert outcome(repeated, body()) == outcome(plain, body())
    plain, repeated = readers(IMAGE)
    head = orjson.dumps(
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 3], "parameters": {"binary_data_size": 6}}]}
    )
    for raw_rows in (b"abcdef", b"ghijkl", b"short"):
        assert outcome(repeated, head + raw_rows, len(head)) == outcome(plain, head + raw_rows, len(head))
