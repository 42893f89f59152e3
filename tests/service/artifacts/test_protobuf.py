"""The wire format against Google's own implementation, by way of onnx."""

import numpy as np
import onnxruntime
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

from foldserve.service.artifacts.protobuf import Message
from tests.support import artifacts

INT64 = st.integers(-(2**63), 2**63 - 1)


def test_a_message_that_was_only_read_is_written_as_it_came():
    """Byte for byte, a whole model and each message within it."""
    model = artifacts.classifier_model()
    for message in (model, model.graph, *model.graph.node, *model.graph.initializer):
        data = message.SerializeToString()
        assert Message.parse(data).encode() == data


@given(st.lists(INT64), st.text(), st.binary(), INT64)
def test_values_are_those_that_another_implementation_wrote(numbers, text, data, number):
    """Signed numbers, lists of them, strings and bytes."""
    tensor = TensorProto(dims=numbers, name=text, raw_data=data)
    read = Message.parse(tensor.SerializeToString())
    assert read.integers(1) == numbers
    assert read.text(8) == text
    assert b"".join(read.all_bytes(9)) == data
    attribute = AttributeProto(i=number)
    assert Message.parse(attribute.SerializeToString()).integer(3) == number


@given(st.lists(INT64), st.text())
def test_values_are_read_by_another_implementation(numbers, text):
    """What is written here, onnx reads."""
    message = Message()
    message.replace(1, numbers)
    message.replace(8, [text])
    tensor = TensorProto.FromString(message.encode())
    assert list(tensor.dims) == numbers
    assert tensor.name == text


def test_packed_numbers_are_read_too():
    """A file may hold a list of numbers in one field; onnx's `int64_data` is written so."""
    tensor = helper.make_tensor("t", TensorProto.INT64, [3], [1, -2, 300])
    assert Message.parse(tensor.SerializeToString()).integers(7) == [1, -2, 300]


def test_replacing_keeps_the_place_of_a_field():
    """Fields before and after it stay where they were."""
    graph = GraphProto(name="g")
    graph.node.add(op_type="A")
    graph.node.add(op_type="B")
    message = Message.parse(graph.SerializeToString())
    (first, second) = message.all_bytes(1)
    message.replace(1, [second, first])
    assert [node.op_type for node in GraphProto.FromString(message.encode()).node] == ["B", "A"]
    message.replace(1, [])
    assert GraphProto.FromString(message.encode()) == GraphProto(name="g")


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x0b", b"\x08\xff", b"\x08" + b"\xff" * 10, b"\x0d\x00"])
def test_what_is_no_message_is_refused(data):
    """Bytes that are cut off, unknown wire types, numbers without end."""
    with pytest.raises(ValueError, match=r"byte"):
        Message.parse(data)


def test_damage_raises_nothing_else():
    """Every byte of a model changed at random: read, or ValueError."""
    data = bytearray(artifacts.echo_model().SerializeToString())
    rng = np.random.default_rng(0)
    for place in range(len(data)):
        damaged = data.copy()
        damaged[place] = rng.integers(256)
        try:
            Message.parse(bytes(damaged))
        except ValueError:
            continue
    assert ModelProto.FromString(bytes(data)) == artifacts.echo_model()


def odd_tag(number: int, kind: int, last: int) -> bytes:
    """A field's tag in five bytes, whose last one holds bits beyond the 32 that count."""
    key = number << 3 | kind
    return bytes([key >> shift & 0x7F | 0x80 for shift in (0, 7, 14, 21)]) + bytes([last])


@pytest.mark.parametrize("last", [0x00, 0x10, 0x40, 0x70])
def test_tags_are_read_as_the_runtime_reads_them(last):
    """Of five bytes 32 bits count, wherever the others point: onnxruntime finds the graph, and so does the reader."""
    model = artifacts.echo_model()
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    length = bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7])
    data = model.SerializeToString() + odd_tag(7, 2, last) + length + graph
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["identity"]
    assert Message.parse(data).all_bytes(7) == [graph]


@pytest.mark.parametrize("data", [b"\xc2\x80\x80\x80\x80\x00\x01a", b"\x02\x01a", b"\x80\x80\x80\x80\x10\x01", b"\xc2"])
def test_what_another_implementation_refuses_as_a_tag_is_refused(data):
    """Six bytes, field 0 in one byte and in five, and one that is cut off."""
    with pytest.raises(DecodeError):
        TensorProto.FromString(data)
    with pytest.raises(ValueError, match=r"field|number"):
        Message.parse(data)


def test_values_of_another_type_under_a_known_number_do_not_count():
    """As another implementation reads them: they belong to a field that it does not know."""
    tensor = TensorProto(name="right", data_type=TensorProto.FLOAT).SerializeToString()
    name_of_fixed_width = bytes([8 << 3 | 5]) + b"nope"
    type_of_bytes = bytes([2 << 3 | 2, 1, 7])
    data = tensor + name_of_fixed_width + type_of_bytes
    theirs, ours = TensorProto.FromString(data), Message.parse(data)
    assert (theirs.name, theirs.data_type) == (ours.text(8), ours.integer(2)) == ("right", 1)
