"""What a V2 request over HTTP becomes, and what is said of each that will not do."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foldserve.service.errors import InvalidInput, ServiceError, TooManyRows, Unsupported
from foldserve.service.tensors import TensorSpec
from foldserve.service.v2.request import RequestReader, header_length
from tests.support import v2_messages

IMAGE = TensorSpec("image", "UINT8", (None, 1, 2, 3))
OUTPUTS = (TensorSpec("probabilities", "FP32", (None, 10)), TensorSpec("class_id", "INT64", (None, 1)))
READER = RequestReader((IMAGE,), OUTPUTS, max_rows=100)
PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3)
NUMBERS = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64"]


def reader_for(*dtypes: Any, shape: tuple[int | None, ...] = (None, 2, 3)) -> RequestReader:
    specs = [TensorSpec(f"x{i}", v2_messages.DATATYPES[str(dtype)], shape) for i, dtype in enumerate(dtypes)]
    return RequestReader(specs, OUTPUTS, max_rows=100)


def head(**members: Any) -> dict[str, Any]:
    """A request that is right but for what is given; an `image` is merged into the only input."""
    entry = {"name": "image", "shape": [2, 1, 2, 3], "datatype": "UINT8", "data": list(range(12))}
    entry |= members.pop("image", {})
    return {"inputs": [{key: value for key, value in entry.items() if value is not None}], **members}


def refused(document: Any, kind: type[ServiceError] = InvalidInput, tail: bytes = b"", length: Any = "right") -> str:
    """The one sentence with which a request is refused."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    size = (len(text) if tail else None) if length == "right" else length
    with pytest.raises(kind) as caught:
        READER.read(text + tail, size)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert 0 < len(message) < 400
    assert "\n" not in message
    return message


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.sampled_from(["flat", "nested", "binary"]),
    st.sampled_from([*NUMBERS, "float16"]),
    st.integers(1, 5),
)
def test_arrays_arrive_byte_for_byte_in_every_form_and_datatype(data, form, dtype, rows):
    """What a client writes down is exactly what the model gets, for every datatype that a form can carry."""
    form = "binary" if dtype == "float16" else form
    elements = {"allow_nan": form == "binary", "allow_infinity": form == "binary"} if "float" in dtype else {}
    array = data.draw(arrays.arrays(dtype, (rows, 2, 3), elements=arrays.from_dtype(np.dtype(dtype), **elements)))
    read = reader_for(dtype).read(*v2_messages.request({"x0": array}, form)).inputs["x0"]
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=5), min_size=6, max_size=6), st.sampled_from(["flat", "nested", "binary"]))
def test_elements_of_any_length_arrive_as_they_were(texts, form):
    """BYTES elements, empty ones included, arrive unchanged from JSON strings and from length-prefixed bytes."""
    array = np.array([text.encode() for text in texts], object).reshape(1, 2, 3)
    read = reader_for("object").read(*v2_messages.request({"x0": array}, form)).inputs["x0"]
    assert read.shape == (1, 2, 3)
    assert read.tolist() == array.tolist()


def test_several_inputs_share_the_bytes_in_the_order_of_the_request():
    """Binary tensors follow in the order in which the request lists its inputs, whatever the model's order is."""
    given_inputs = {"x1": np.full((2, 2, 3), 7.5, np.float32), "x0": PIXELS.reshape(2, 2, 3)}
    read = reader_for("uint8", "float32").read(*v2_messages.request(given_inputs, "binary"))
    for name, array in given_inputs.items():
        np.testing.assert_array_equal(read.inputs[name], array)


def test_a_request_may_mix_json_and_binary_inputs():
    """An input with `data` takes nothing of the bytes behind the JSON."""
    entries = [
        v2_messages.tensor_entry("x0", PIXELS.reshape(2, 2, 3), "flat"),
        v2_messages.tensor_entry("x1", PIXELS.reshape(2, 2, 3), "binary"),
    ]
    text = json.dumps({"inputs": entries}).encode()
    read = reader_for("uint8", "uint8").read(text + PIXELS.tobytes(), len(text))
    assert read.inputs["x0"].tobytes() == read.inputs["x1"].tobytes() == PIXELS.tobytes()


def test_wide_types_are_aligned_wherever_their_bytes_begin():
    """A kernel that loads 16 bytes at a time never sees an array that begins in the middle of an element."""
    array = np.arange(6, dtype=np.float64).reshape(1, 2, 3)
    for padding in range(8):
        body, length = v2_messages.request({"x0": array}, "binary", id="i" * padding)
        assert reader_for("float64").read(body, length).inputs["x0"].flags.aligned


@pytest.mark.parametrize("rows", [1, 3])
def test_bare_bytes_are_rows_of_the_only_input(rows):
    """With header length 0 the body is the tensor, and everything comes back as bytes."""
    body = bytes(range(6)) * rows
    read = READER.read(body, 0)
    assert read.inputs["image"].shape == (rows, 1, 2, 3)
    assert read.inputs["image"].tobytes() == body
    assert [(output.name, output.binary) for output in read.outputs] == [("probabilities", True), ("class_id", True)]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, [("probabilities", False, 0), ("class_id", False, 0)]),
        ({"outputs": []}, [("probabilities", False, 0), ("class_id", False, 0)]),
        ({"parameters": {"binary_data_output": True}}, [("probabilities", True, 0), ("class_id", True, 0)]),
        ({"outputs": [{"name": "class_id"}]}, [("class_id", False, 0)]),
        ({"outputs": [{"name": "class_id"}], "parameters": {"binary_data_output": True}}, [("class_id", True, 0)]),
        (
            {"outputs": [{"name": "class_id", "parameters": {"binary_data": False}}, {"name": "probabilities"}],
             "parameters": {"binary_data_output": True}},
            [("class_id", False, 0), ("probabilities", True, 0)],
        ),
        (
            {"outputs": [{"name": "probabilities", "parameters": {"classification": 3, "binary_data": True}}]},
            [("probabilities", True, 3)],
        ),
    ],
)  # fmt: skip
def test_outputs_are_those_asked_for_in_their_order_and_form(members, expected):
    """An output's own `binary_data` wins over `binary_data_output`, which holds for the rest."""
    read = READER.read(json.dumps(head(**members)).encode())
    assert [(output.name, output.binary, output.classes) for output in read.outputs] == expected


def test_id_timeout_and_parameters_come_through():
    """The id is kept for the answer, and the timeout turns from microseconds into seconds."""
    parameters = {"timeout": 2500, "note": "x", "weight": 0.5}
    read = READER.read(json.dumps(head(id="a-1", parameters=parameters)).encode())
    assert (read.id, read.timeout_seconds, read.parameters) == ("a-1", 0.0025, parameters)


def test_a_timeout_of_zero_means_none():
    """Triton's clients write 0 where they have no deadline of their own."""
    assert READER.read(json.dumps(head(parameters={"timeout": 0})).encode()).timeout_seconds is None


@pytest.mark.parametrize("shape", [(12,), (2, 6), (2, 2, 3), (2, 1, 6), (2, 1, 2, 3), (4, 3)])
def test_data_may_be_nested_or_flat_or_have_axes_joined(shape):
    """Row-major values mean the same however many of the axes stand as lists."""
    body = json.dumps(head(image={"data": PIXELS.reshape(shape).tolist()})).encode()
    np.testing.assert_array_equal(READER.read(body).inputs["image"], PIXELS)


def test_a_repeated_head_reads_new_bytes():
    """Remembering a checked head never brings back an earlier request's tensors."""
    for fill in (1, 2, 3):
        array = np.full((2, 1, 2, 3), fill, np.uint8)
        read = READER.read(*v2_messages.request({"image": array}, "binary", id="same"))
        assert read.id == "same"
        assert (read.inputs["image"] == fill).all()
    body, length = v2_messages.request({"image": array}, "binary", id="same")
    with pytest.raises(InvalidInput, match="11 bytes behind the JSON"):
        READER.read(body[:-1], length)


@pytest.mark.parametrize("parameters", [{}, {"binary_data_output": False}, {"note": "true"}, {"true": True}])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_a_boolean_among_numbers_is_found_whatever_the_parameters_say(dtype, parameters):
    """C takes true for 1; counting the words in the body must not be misled by booleans that belong there."""
    body, _ = v2_messages.request({"x0": np.ones((1, 2, 3), dtype)}, parameters=parameters)
    assert (reader_for(dtype).read(body).inputs["x0"] == 1).all()
    for word in (b"true", b"false"):
        with pytest.raises(InvalidInput, match=rf"data\[5\]: {word.decode()}, expected"):
            reader_for(dtype).read(body.replace(b"1.0]", b"1]").replace(b", 1]", b", " + word + b"]"))


HUGE = 2**60
REFUSALS = [
    (b"", "not JSON"),
    (b"[1, 2", "not JSON"),
    (b"[]", "body: a list, expected an object"),
    (b"\xff\xfe", "not JSON"),
    (json.dumps(head()).replace("11]", "NaN]").encode(), "not JSON"),
    (json.dumps(head()).replace("11]", "1e999]").encode(), "not JSON"),
    ({}, "inputs: missing"),
    ({"inputs": {}}, "inputs: an object, expected a list"),
    ({"inputs": []}, "inputs: got 0, expected 1 (image)"),
    ({"inputs": [1]}, "inputs[0]: 1, expected an object"),
    ({"inputs": head()["inputs"] * 2}, "inputs: got 2, expected at most the model's 1"),
    (head(image={"name": "picture"}), "inputs[0]: name 'picture', expected one of ['image']"),
    (head(image={"name": "x" * 10_000}), "inputs[0]: name 'xxx"),
    (head(image={"name": "a\0../b\u2028"}), "inputs[0]: name"),
    (head(image={"name": None}), "inputs[0].name: missing, expected a string"),
    (head(image={"name": 5}), "inputs[0].name: 5, expected a string"),
    (head(image={"datatype": "FP32"}), "input 'image': datatype FP32, expected UINT8"),
    (head(image={"datatype": "BF16"}), "input 'image': datatype 'BF16', expected UINT8"),
    (head(image={"datatype": "uint8"}), "input 'image': datatype 'uint8', expected UINT8"),
    (head(image={"datatype": None}), "inputs[0].datatype: missing, expected a string"),
    (head(image={"shape": None}), "inputs[0].shape: null, expected a list of integers"),
    (head(image={"shape": [2.0, 1, 2, 3]}), "inputs[0].shape: [2.0, 1, 2, 3], expected a list of integers"),
    (head(image={"shape": [True, 1, 2, 3]}), "inputs[0].shape: [true, 1, 2, 3]"),
    (head(image={"shape": [2, 6]}), "input 'image': shape [2, 6], expected [N, 1, 2, 3]"),
    (head(image={"shape": [2, 1, 3, 2]}), "input 'image': shape [2, 1, 3, 2], expected [N, 1, 2, 3]"),
    (head(image={"shape": [1] * 10_000}), "input 'image': shape [1, 1"),
    (head(image={"shape": []}), "input 'image': shape [], expected [N, 1, 2, 3]"),
    (head(image={"shape": [0, 1, 2, 3], "data": []}), "expected [N, 1, 2, 3] with N at least 1"),
    (head(image={"shape": [-2, 1, 2, 3]}), "input 'image': shape [-2, 1, 2, 3]"),
    (head(image={"shape": [-2, 1, -2, 3]}), "input 'image': shape [-2, 1, -2, 3]"),
    (head(image={"shape": [2, 1, HUGE, HUGE]}), "input 'image': shape [2, 1, 1152921504606846976"),
    (head(image={"shape": [1, 1, 2, 3]}), "inputs[0].data: 12 values, expected 6 for shape (1, 1, 2, 3)"),
    (head(image={"data": None}), "inputs[0]: got neither data"),
    (head(image={"parameters": {"binary_data_size": 12}}), "inputs[0]: got both data"),
    (head(image={"data": 5}), "inputs[0].data: 5, expected a list of values"),
    (head(image={"data": [[1, 2, 3], [4]]}), "inputs[0].data: lists of different lengths"),
    (head(image={"data": [[1, 2, 3], 4]}), "inputs[0].data: lists of different lengths"),
    (head(image={"data": [[[[[1]]]]]}), "inputs[0].data: lists nested deeper than the 4 axes"),
    (head(image={"data": PIXELS.reshape(3, 4).tolist()}), "inputs[0].data: lists nested as (3, 4)"),
    (head(image={"data": [*range(11), 256]}), "inputs[0].data[11]: 256, expected an integer 0 to 255"),
    (head(image={"data": [*range(11), -1]}), "inputs[0].data[11]: -1, expected an integer 0 to 255"),
    (head(image={"data": [*range(11), 3.0]}), "inputs[0].data[11]: 3.0, expected an integer 0 to 255"),
    (head(image={"data": [*range(11), True]}), "inputs[0].data[11]: true, expected an integer 0 to 255"),
    (head(image={"data": [*range(11), "3"]}), 'inputs[0].data[11]: "3", expected an integer 0 to 255'),
    (head(image={"data": [*range(11), None]}), "inputs[0].data[11]: null, expected an integer 0 to 255"),
    (head(image={"data": [*range(11), {}]}), "inputs[0].data[11]: an object, expected an integer 0 to 255"),
    (head(image={"data": [*range(11), 2**70]}), "inputs[0].data[11]: 1.18"),
    (head(image={"data": [[0, 1, 2], [3, 4, 999], [6, 7, 8], [9, 10, 11]]}), "inputs[0].data[1][2]: 999"),
    (head(id=5), "id: 5, expected a string"),
    (head(parameters=[]), "parameters: a list, expected an object"),
    (head(parameters={"a": {}}), "parameters.a: an object, expected a string, a number or a boolean"),
    (head(parameters={"timeout": -1}), "parameters.timeout: -1, expected a whole number of microseconds"),
    (head(parameters={"timeout": "5"}), 'parameters.timeout: "5", expected a whole number of microseconds'),
    (head(parameters={"binary_data_output": 1}), "parameters.binary_data_output: 1, expected true or false"),
    (head(parameters={"triton_final": True}), "parameters: 'triton_final'"),
    (head(outputs=5), "outputs: 5, expected a list"),
    (head(outputs=[{"name": "logit"}]), "outputs: 'logit' is not an output, expected one of"),
    (head(outputs=[{"name": "class_id"}] * 2), "outputs: got 'class_id' twice"),
    (head(outputs=[{"name": "class_id"}] * 1000), "outputs: got 1000, expected at most the model's 2"),
    (head(outputs=[{"name": "class_id", "parameters": {"binary_data": "yes"}}]), "outputs[0].parameters.binary_data"),
    (head(outputs=[{"name": "class_id", "parameters": {"classification": -1}}]), "classification: -1"),
    (head(outputs=[{"name": "class_id", "parameters": {"classification": True}}]), "classification: true"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "expected"), REFUSALS, ids=[expected[:40] for _, expected in REFUSALS])
def test_what_will_not_do_is_refused_in_one_sentence_that_names_the_place(document, expected):
    """Each malformed request gets a sentence with what was sent and what was expected."""
    assert expected in refused(document)


@pytest.mark.parametrize("member", ["inputs", "outputs"])
def test_shared_memory_is_said_to_be_missing(member):
    """An extension that is not advertised is refused as such rather than misread."""
    region = {"shared_memory_region": "r"}
    document = head(image={"parameters": region, "data": None}) if member == "inputs" else head()
    if member == "outputs":
        document["outputs"] = [{"name": "class_id", "parameters": region}]
    assert "shared memory is not offered" in refused(document, Unsupported)


def test_sequences_are_said_to_be_missing():
    """A sequence's later requests depend on the earlier ones: answering them apart would be wrong."""
    assert "sequences" in refused(head(parameters={"sequence_id": 7}), Unsupported)


@pytest.mark.parametrize("rows", [101, HUGE])
def test_more_rows_than_allowed_are_refused_before_anything_is_read(rows):
    """The row limit is checked on the stated shape, so a shape of 2^60 rows allocates nothing."""
    assert "expected at most 100 in one request" in refused(head(image={"shape": [rows, 1, 2, 3]}), TooManyRows)


BINARY = {"data": None, "parameters": {"binary_data_size": 12}}
LYING_SIZES = [
    (b"x" * 11, "right", 12, "11 bytes behind the JSON, expected 12"),
    (b"x" * 13, "right", 12, "13 bytes behind the JSON, expected 12"),
    (b"x" * 13, "right", 13, "input 'image': 13 bytes, expected 12 for UINT8 (2, 1, 2, 3)"),
    (b"", None, 12, "0 bytes behind the JSON, expected 12"),
    (b"x" * 12, "right", -12, "inputs[0].parameters.binary_data_size: -12, expected a number of bytes"),
    (b"x" * 12, "right", 12.0, "inputs[0].parameters.binary_data_size: 12.0, expected a number of bytes"),
    (b"x" * 12, "right", True, "inputs[0].parameters.binary_data_size: true, expected a number of bytes"),
    (b"x" * 12, "right", HUGE, "12 bytes behind the JSON, expected 1152921504606846976"),
    (b"x" * 12, 10_000, 12, "Inference-Header-Content-Length: 10000, but the body has only"),
    (b"x" * 12, 5, 12, "not JSON"),
]


@pytest.mark.parametrize(("tail", "length", "size", "expected"), LYING_SIZES)
def test_sizes_that_do_not_add_up_are_refused(tail, length, size, expected):
    """Header length, binary_data_size, shape and body must say the same thing."""
    document = head(image={"data": None, "parameters": {"binary_data_size": size}})
    assert expected in refused(document, tail=tail, length=length)


@pytest.mark.parametrize("body", [b"", b"x" * 5, b"x" * 7])
def test_bare_bytes_that_are_no_whole_rows_are_refused(body):
    """A bare body says its number of rows by its length alone."""
    assert "expected a multiple of 6" in refused(b"", tail=body, length=0)


def test_bare_bytes_need_a_model_of_one_input():
    """With two inputs it is not known whose bytes they are."""
    with pytest.raises(InvalidInput, match="the model has 2 inputs"):
        reader_for("uint8", "uint8").read(b"x" * 12, 0)


@pytest.mark.parametrize("text", ["-1", "+5", "0x5", "5.0", "", " 5", "٥", "1" * 19, "ten"])
def test_a_header_length_that_is_no_number_is_refused(text):
    """Only plain decimal digits are a length."""
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        header_length(text)


def test_a_header_length_is_read_as_a_number():
    """None stands for a header that was not sent."""
    assert (header_length(None), header_length("0"), header_length("123")) == (None, 0, 123)


def test_inputs_with_different_rows_are_refused():
    """Rows are answered one by one, so every input has to have the same number of them."""
    inputs = {"x0": np.zeros((2, 2, 3), np.uint8), "x1": np.zeros((3, 2, 3), np.uint8)}
    with pytest.raises(InvalidInput, match="input 'x1': 3 rows, expected 2 as in input 'x0'"):
        reader_for("uint8", "uint8").read(*v2_messages.request(inputs))


def test_one_input_twice_does_not_stand_for_two():
    """A doubled name would leave the other input without a value."""
    array = np.zeros((2, 2, 3), np.uint8)
    entry = v2_messages.tensor_entry("x0", array, "flat")
    with pytest.raises(InvalidInput, match=r"inputs\[1\]: got 'x0' twice"):
        reader_for("uint8", "uint8").read(json.dumps({"inputs": [entry, entry]}).encode())


def test_half_precision_does_not_travel_as_json():
    """The protocol gives FP16 only as binary data."""
    with pytest.raises(InvalidInput, match="FP16 does not travel as JSON"):
        reader_for("float16").read(*v2_messages.request({"x0": np.zeros((1, 2, 3), np.float16)}))


@pytest.mark.parametrize(
    ("dtype", "bad", "expected"),
    [
        ("float32", 1e39, r"data\[5\]: 1e\+39, expected a number that fits FP32"),
        ("float32", True, r"data\[5\]: true, expected a number"),
        ("int8", 128, r"data\[5\]: 128, expected an integer -128 to 127"),
        ("int64", 1.5, r"data\[5\]: 1.5, expected an integer"),
        ("uint64", 2**64, r"data\[5\]: 1.8\d*e\+19, expected an integer 0 to 18446744073709551615"),
        ("bool", 1, r"data\[5\]: 1, expected true or false"),
        ("object", 1, r"data\[5\]: 1, expected a string"),
    ],
)
def test_values_are_never_cast_into_their_datatype(dtype, bad, expected):
    """A value that its datatype cannot hold exactly as written is refused with its index."""
    good = {"object": ["a"] * 5, "bool": [True] * 5}.get(dtype, [1] * 5)
    entry = {"name": "x0", "shape": [1, 2, 3], "datatype": v2_messages.DATATYPES[dtype], "data": [*good, bad]}
    with pytest.raises(InvalidInput, match=expected):
        reader_for(dtype).read(json.dumps({"inputs": [entry]}).encode())


def test_a_bool_is_one_bit_of_a_byte():
    """Bytes other than 0 and 1 are no booleans."""
    body, length = v2_messages.request({"x0": np.zeros((1, 2, 3), bool)}, "binary")
    with pytest.raises(InvalidInput, match="a BOOL byte is neither 0 nor 1"):
        reader_for("bool").read(body[:-1] + b"\x02", length)


@pytest.mark.parametrize(
    "data",
    [b"\x01\0\0\0a" * 5, b"\x01\0\0\0a" * 7, b"\x01\0\0\0a" * 5 + b"\xff\xff\xff\xffa", b"\0\0\0\0" * 6 + b"\0", b""],
)
def test_lengths_that_do_not_make_the_elements_are_refused(data):
    """The lengths inside a BYTES tensor are as little to be trusted as those outside."""
    entry = {"name": "x0", "shape": [1, 2, 3], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [entry]}).encode()
    with pytest.raises(InvalidInput, match="input 'x0': "):
        reader_for("object").read(text + data, len(text))


HOSTILE = {
    "nested 250,000 deep": b'{"inputs": ' + b"[" * 250_000,
    "nested 250,000 deep and closed": b'{"inputs": ' + b"[" * 250_000 + b"]" * 250_000 + b"}",
    "data 1000 deep": json.dumps(head(image={"data": "X"})).encode().replace(b'"X"', b"[" * 1000 + b"]" * 1000),
    "100,000 parameters": json.dumps(head(parameters={str(i): {} for i in range(100_000)})).encode(),
    "100,000 inputs": json.dumps({"inputs": head()["inputs"] * 100_000}).encode(),
    "lone surrogate": b'{"inputs": [{"name": "\\ud800", "shape": [1], "datatype": "UINT8", "data": [1]}]}',
    "a number of 100,000 digits": json.dumps(head()).encode().replace(b"11]", b"1" * 100_000 + b"]"),
    "a name of a megabyte": json.dumps(head(image={"name": "\\" * 1_000_000})).encode(),
}  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_json_is_refused_at_once(body):
    """No body of a few megabytes holds the service up or takes it down."""
    with pytest.raises((InvalidInput, TooManyRows)) as caught:
        READER.read(body)
    assert len(str(caught.value)) < 300


def test_what_weighs_more_than_all_rows_is_refused_unparsed():
    """Counted by its marks; the heaviest request that is right passes in every form it may have."""
    specs = (TensorSpec("image", "UINT8", (None, 2, 3)), TensorSpec("point", "FP32", (None, 2)))
    reader = RequestReader(specs, specs, 5_000)
    arrays = {"image": np.full((5_000, 2, 3), 200, np.uint8), "point": np.full((5_000, 2), -1.25, np.float32)}
    for form in ("flat", "nested"):
        body, _ = v2_messages.request(arrays, form)
        np.testing.assert_array_equal(reader.read(body).inputs["image"], arrays["image"])
    for piece, count in ((b"[],", 30_000), (b"{},", 30_000), (b"[[]],", 30_000), (b"0,", 50_000), (b'"",', 50_000)):
        with pytest.raises(TooManyRows, match="more values or lists than 5000 rows"):
            reader.read(b'{"inputs": [' + piece * count + b"0]}")


def test_any_byte_of_a_request_may_be_damaged():
    """A byte flipped anywhere gives an answer or a refusal, never another exception."""
    body, length = v2_messages.request({"image": PIXELS}, "binary", id="x", parameters={"timeout": 5})
    sentences = []
    for position in range(len(body)):
        for flip in (0x01, 0x20, 0x80):
            damaged = bytearray(body)
            damaged[position] ^= flip
            try:
                READER.read(bytes(damaged), length)
            except (InvalidInput, TooManyRows, Unsupported) as refusal:
                sentences.append(str(refusal))
    assert len(sentences) > 2 * length  # of the three flips of a byte of the JSON part
    assert max(map(len, sentences)) < 500
