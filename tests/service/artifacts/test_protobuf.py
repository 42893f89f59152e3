"""The wire format against Google's own implementation, by way of onnx."""

import numpy as np
import pytest
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
