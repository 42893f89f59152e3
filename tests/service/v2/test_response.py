"""What a V2 answer over HTTP holds, read back the plain way."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foldserve.service.errors import InvalidInput
from foldserve.service.tensors import TensorSpec
from foldserve.service.v2.checks import WantedOutput
from foldserve.service.v2.classification import classify
from foldserve.service.v2.request import InferRequest, RequestReader
from foldserve.service.v2.response import format_response
from tests.support import v2_messages

NUMBERS = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64"]
LABELS = ("Trouser", "Coat", "Bag:large")


def answer(outputs, wanted, labels=None, **members):
    """The JSON and the arrays of an answer."""
    request = InferRequest({"x": np.zeros((1, 1), np.uint8)}, tuple(wanted), **members)
    response = format_response("fashion", 7, request, outputs, labels)
    expected = "application/json" if response.header_length is None else "application/octet-stream"
    assert response.content_type == expected
    return v2_messages.answer(response.body, response.header_length)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans(), st.sampled_from([*NUMBERS, "float16"]))
def test_outputs_leave_byte_for_byte_in_both_forms_and_every_datatype(data, binary, dtype):
    """What a client reads is exactly what the model gave: JSON carries enough digits, and no more are needed."""
    binary = binary or dtype == "float16"
    elements = {} if "float" not in dtype or binary else {"allow_nan": False, "allow_infinity": False}
    array = data.draw(arrays.arrays(dtype, (3, 2), elements=arrays.from_dtype(np.dtype(dtype), **elements)))
    head, read = answer({"y": array}, [WantedOutput("y", binary)])
    assert head["outputs"][0]["datatype"] == v2_messages.DATATYPES[dtype]
    assert head["outputs"][0]["shape"] == [3, 2]
    assert read["y"].dtype == array.dtype
    assert read["y"].tobytes() == array.tobytes()


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.float32, (2, 3)), st.booleans())
def test_an_answer_can_be_sent_back_as_a_request(array, binary):
    """Formatting and reading are each other's inverse."""
    array = np.where(np.isfinite(array), array, np.float32(0)) if not binary else array
    request = InferRequest({"x": array}, (WantedOutput("x", binary),))
    response = format_response("m", 1, request, {"x": array})
    document = json.loads(response.body if not binary else response.body[: response.header_length])
    text = json.dumps({"inputs": document["outputs"]}).encode()
    body = text + response.body[response.header_length or len(response.body) :]
    spec = TensorSpec("x", "FP32", (None, 3))
    read = RequestReader((spec,), (spec,), 10).read(body, len(text) if binary else None)
    assert read.inputs["x"].tobytes() == array.tobytes()


def test_json_data_is_flat_and_row_major_with_the_shortest_digits():
    """0.1 as float32 is written 0.1, not 0.10000000149011612."""
    head, _ = answer({"y": np.array([[0.1, 2], [3, 4]], np.float32)}, [WantedOutput("y", False)])
    assert head == {
        "model_name": "fashion",
        "model_version": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [0.1, 2.0, 3.0, 4.0]}],
    }


def test_the_id_is_echoed_only_when_one_was_sent():
    """A client finds its own id in the answer, and nothing where it sent none."""
    array = np.zeros((1, 1), np.float32)
    assert answer({"y": array}, [WantedOutput("y", False)], id="abc")[0]["id"] == "abc"
    assert "id" not in answer({"y": array}, [WantedOutput("y", False)])[0]


def test_binary_and_json_outputs_may_stand_in_one_answer():
    """Bytes follow in the order of the outputs that have them; the others carry their data in the JSON."""
    outputs = {name: np.full((1, 2), fill, np.int64) for name, fill in (("a", 1), ("b", 2), ("c", 3))}
    wanted = [WantedOutput("c", True), WantedOutput("b", False), WantedOutput("a", True)]
    head, read = answer(outputs, wanted)
    assert [entry["name"] for entry in head["outputs"]] == ["c", "b", "a"]
    assert ["data" in entry for entry in head["outputs"]] == [False, True, False]
    for name, array in outputs.items():
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_json_cannot_say_is_refused_and_travels_as_bytes(bad):
    """NaN never becomes null unnoticed; as binary data it arrives as it is."""
    outputs = {"y": np.array([[1, bad]], np.float32)}
    with pytest.raises(InvalidInput, match="output 'y' holds NaN or infinity"):
        answer(outputs, [WantedOutput("y", False)])
    _, read = answer(outputs, [WantedOutput("y", True)])
    assert read["y"].tobytes() == outputs["y"].tobytes()


def test_half_precision_is_refused_as_json():
    """The protocol gives FP16 only as binary data, and the sentence says how to ask for it."""
    with pytest.raises(InvalidInput, match="request it with binary_data true"):
        answer({"y": np.zeros((1, 1), np.float16)}, [WantedOutput("y", False)])


def test_classification_gives_the_largest_values_with_index_and_label():
    """The k largest values of each row in falling order; the text parses back to the same float."""
    scores = np.array([[0.1, 0.7, 0.2], [0.25, 0.25, 0.5]], np.float32)
    head, read = answer({"y": scores}, [WantedOutput("y", False, 2)], LABELS)
    assert head["outputs"][0] == {
        "name": "y",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["0.7:1:Coat", "0.2:2:Bag:large", "0.5:2:Bag:large", "0.25:0:Trouser"],
    }
    assert np.float32(read["y"][0, 0].split(b":")[0]) == scores[0, 1]


def test_classification_travels_as_length_prefixed_bytes():
    """Binary BYTES elements each stand behind their own length."""
    request = InferRequest({"x": np.zeros((1, 1))}, (WantedOutput("y", True, 1),))
    response = format_response("m", 1, request, {"y": np.array([[1, 9, 3]], np.int64)})
    assert response.body[response.header_length :] == struct.pack("<I", 3) + b"9:1"


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "uint64", "float32", "float16"])
def test_classification_orders_every_datatype_to_its_limits(dtype):
    """The smallest and the largest value of a type come out in order: nothing wraps around."""
    limits = np.finfo(dtype) if "float" in dtype else np.iinfo(dtype)
    values = np.array([[1, limits.max, limits.min, 0, limits.max]], dtype)
    indices = [int(entry.split(b":")[1]) for entry in classify(values, 10, None)[0]]
    assert indices == ([1, 4, 0, 3, 2] if limits.min < 0 else [1, 4, 0, 2, 3])


def test_classification_leaves_labels_out_where_they_do_not_fit():
    """Labels belong to an output with one value a class; elsewhere the index stands alone."""
    assert classify(np.array([[5]], np.int64), 3, LABELS).tolist() == [[b"5:0"]]
    assert classify(np.array([[1.5, 2.5, np.nan]]), 3, None).tolist() == [[b"2.5:1", b"1.5:0", b"nan:2"]]
