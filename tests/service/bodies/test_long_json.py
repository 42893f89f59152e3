"""Long JSON is read a slice at a time: the same arrays and refusals as when it is short, within bounded memory."""

import json
import threading
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import orjson
import pytest

from foldserve.format.image import ImageRecipe, first_format_recipe
from foldserve.service.bodies import long_json
from foldserve.service.bodies.limits import WHOLE_JSON_BYTES, Limits
from foldserve.service.bodies.predict_body import read_images
from foldserve.service.errors import InvalidInput, ServiceError, TooManyRows
from foldserve.service.tensors import TensorSpec
from foldserve.service.v2.request import RequestReader
from tests.support import v2_messages
from tests.support.predict_bodies import b64

SPEC = first_format_recipe(28, 28, 1)
WIDE = first_format_recipe(200, 500, 3)
LIMITS = Limits(rows=10_000, pixels=1_000_000)
PIXELS = np.random.default_rng(3).integers(0, 256, (900, 1, 28, 28), dtype=np.uint8)
NUMBERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64", "bool"]


def predict(body: bytes, spec: ImageRecipe = SPEC) -> np.ndarray:
    return read_images(body, "application/json", spec, LIMITS)


def infer(body: bytes, datatype: str, *row_shape: int) -> np.ndarray:
    specs = (TensorSpec("x0", datatype, (None, *row_shape)),)
    return RequestReader(specs, specs, 1_000_000).read(body).inputs["x0"]


def random_array(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values over the whole range of a type."""
    raw = np.random.default_rng(7).integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    if dtype == "bool":
        return raw[..., 0] > 127
    if dtype.startswith("float"):
        return (raw.astype(dtype).sum(axis=-1) - 1000) / dtype_scale(dtype)
    return raw.view(dtype)[..., 0]


def dtype_scale(dtype: str) -> np.generic:
    return np.dtype(dtype).type(3.7)


SHORT_ROWS, LONG_ROWS, ONE_ROW = (24_000, 2, 3), (2, 100, 750), (1, 3, 50_000)


@pytest.mark.parametrize("form", ["flat", "nested"])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [*((dtype, SHORT_ROWS) for dtype in NUMBERS)]
    + [(dtype, shape) for dtype in ("uint8", "int64", "float64", "bool") for shape in (LONG_ROWS, ONE_ROW)],
)
def test_a_long_tensor_arrives_byte_for_byte(dtype, form, shape):
    """In every datatype, flat and nested, in many short rows and in few long ones: exactly what the client wrote."""
    array = random_array(dtype, shape)
    body, _ = v2_messages.request({"x0": array}, form)
    assert len(body) > WHOLE_JSON_BYTES
    read = infer(body, v2_messages.DATATYPES[dtype], *shape[1:])
    assert read.dtype == array.dtype
    assert read.tobytes() == array.tobytes()


@pytest.mark.parametrize("indent", [None, 0, 3])
def test_long_instances_arrive_in_every_form(indent):
    """Flat, nested, whole floats and files, mixed and with any spaces, arrive as the same bytes."""
    forms = [PIXELS[:, 0].tolist(), PIXELS.reshape(-1, 784).tolist(), PIXELS.reshape(-1, 784).astype(float).tolist()]
    mixed = [forms[row % 3][row] if row % 7 else b64(PIXELS[row, 0]) for row in range(len(PIXELS))]
    body = json.dumps({"instances": mixed}, indent=indent).encode()
    assert np.array_equal(predict(body), PIXELS)


@pytest.mark.parametrize("shape", [(3, 200, 500), (300_000,)])
def test_an_image_that_is_long_by_itself_arrives(shape):
    """One image of 300,000 values, flat or as planes of rows, with whole floats in it."""
    pixels = np.random.default_rng(4).integers(0, 256, (2, *shape), dtype=np.uint8)
    document = {"instances": [pixels[0].tolist(), pixels[1].astype(float).tolist()]}
    assert np.array_equal(predict(json.dumps(document).encode(), WIDE).reshape(pixels.shape), pixels)


def test_a_file_that_is_long_by_itself_arrives():
    """A picture of half a megabyte in base64, also as PHP writes it, with every slash behind a backslash."""
    noise = np.random.default_rng(4).integers(0, 256, (700, 700), dtype=np.uint8)
    body = json.dumps({"instances": [b64(noise), b64(PIXELS[0, 0])]}).encode()
    assert len(body) > 2 * WHOLE_JSON_BYTES
    read = predict(body)
    assert np.array_equal(read, predict(body.replace(b"/", b"\\/")))
    assert np.array_equal(read[1], PIXELS[0])


LONG = b",".join([b"1"] * 784 * 500)
ROW = b"[" + b",".join([b"1"] * 784) + b"]"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"instances": [' + LONG + b"]}", "32768 images, expected at most 10000"),
        (b'{"instances": [[' + LONG + b"]]}", "instances[0]: more than 784 values"),
        (b'{"instances": [' + b",".join([ROW] * 400) + b",]}", "body: not JSON, "),
        (b'{"instances": [' + b",".join([ROW] * 400) + b",[1 2]]}", "body: not JSON, "),
        (b'{"instances": [' + b",".join([ROW] * 400) + b"]]}", "body: not JSON, "),
        (b'{"instances": [' + b",".join([ROW] * 400) + b'], "x": [1]}', "body: not JSON, "),
        (b'{"other": [' + b",".join([ROW] * 400) + b"]}", "body: expected an object"),
        (b'{"instances": [' + b",".join([ROW] * 400) + b',["a"]]}', 'instances[400][0]: "a", expected an integer'),
        (b'{"instances": ["' + b"a,[" * 100_000 + b'"]}', "body: more values or lists"),
        (b'{"instances": ["' + b"a" * 300_000 + b'"]}', "instances[0]: expected "),
        (b'{"instances": [["' + b"a" * 700_000 + b'"' + b",0" * 783 + b"]]}", "instances[0]"),
        (b'{"instances": [{"b64": "' + b"QUJD" * 100_000 + b'"}]}', "instances[0].b64: not a PNG or JPEG"),
        (b'{"instances": [{"b64": "' + b"QUI=" * 100_000 + b'"}]}', "instances[0].b64: not base64"),
        (b'{"instances": [{"b64": "' + b"QUJD" * 100_000 + b'", "x": 1}]}', "instances[0]: expected "),
    ],
)
def test_a_long_document_that_is_wrong_is_refused(body, sentence):
    """With the place, as a short one is; a value of another kind costs nothing more for being long."""
    assert len(body) > WHOLE_JSON_BYTES
    with pytest.raises((InvalidInput, TooManyRows)) as refusal:
        predict(body)
    assert str(refusal.value).startswith(sentence), refusal.value
    assert len(str(refusal.value)) < 300


def entry(data: bytes, shape: str = "[1000,400]") -> bytes:
    return b'{"inputs":[{"name":"x0","shape":%b,"datatype":"INT32","data":%b}]}' % (shape.encode(), data)


VALUES = b",".join([b"1"] * 399_999)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (entry(b"[" + VALUES + b"]"), "inputs[0].data: 399999 values or fewer, expected 400000"),
        (entry(b"[" + VALUES + b",1,1]"), "inputs[0].data: more than 400000 values, expected 400000"),
        (entry(b"[" + VALUES + b",1.5]"), "inputs[0].data[399999]: 1.5, expected an integer"),
        (entry(b"[" + VALUES + b",true]"), "inputs[0].data[399999]: true, expected an integer"),
        (entry(b"[" + VALUES + b",[1]]"), "inputs[0].data: lists of different lengths"),
        (entry(b"[[" + VALUES + b",true]]"), "inputs[0].data[0][399999]: true, expected an integer"),
        (entry(b"[" + VALUES + b",]"), "body: not JSON, "),
        (entry(b"[" + VALUES + b",1}]"), "body: not JSON, "),
        (entry(b"[" + VALUES + b',"a"]'), 'inputs[0].data[399999]: "a", expected an integer'),
        (entry(b"[" + VALUES + b",1],[1]"), "body: not JSON, "),
        (entry(b"[[" + VALUES + b",1]]"), "inputs[0].data: lists nested as (1, 400000)"),
        (entry(b"[[1]," + b",".join([b"[%b1]" % (b"1," * 399)] * 999) + b"]"), "inputs[0].data: lists of different"),
        (
            entry(b"[1]", "[1000,400]").replace(b"[1]", b"[" + b" " * 400_000 + b"1]"),
            "inputs[0].data: 200001 values or fewer",
        ),
        (entry(b"[" + VALUES + b",1]", "[1]").replace(b'"data"', b'"parameters":{"data"') + b"", "body: not JSON, "),
        (b'{"parameters":{"data":[' + VALUES + b']},"inputs":[]}', "body: a long list in another place"),
        (b'{"id":"' + b"x" * 400_000 + b'","inputs":[]}', "inputs: got 0, expected 1"),
        (b'{"id":"' + b"x" * 2_000_000 + b'","inputs":[]}', "body: 2000021 bytes besides lists of numbers"),
    ],
)
def test_a_long_tensor_that_is_wrong_is_refused(body, sentence):
    """The first value that will not do is named, also far behind the first slice."""
    assert len(body) > WHOLE_JSON_BYTES
    with pytest.raises(InvalidInput) as refusal:
        infer(body, "INT32", 400)
    assert str(refusal.value).startswith(sentence), refusal.value


HEAVY = {
    "a string among numbers": b'{"instances":[["' + b"a" * 700_000 + b'"' + b",0" * 783 + b"]]}",
    "a short one too": b'{"instances":[["' + b"a" * 60_000 + b'"' + b",0" * 783 + b"]]}",
    "a nested one": b'{"instances":[[' + b",".join([b'["' + b"a" * 30_000 + b'"' + b",0" * 27 + b"]"] * 28) + b"]]}",
    "keys": b'{"instances":[{' + b",".join(b'"%x":1' % key for key in range(1_000_000)) + b"}]}",
    "objects": b'{"instances":[' + b'{"b64":""},' * 500_000 + b"{}]}",
    "objects within one another": b'{"instances":[' + (b'{"a":' * 900 + b"1" + b"}" * 900 + b",") * 900 + b"0]}",
    "lists within one another": b'{"instances":[' + (b"[" * 900 + b"]" * 900 + b",") * 900 + b"0]}",
    "letters of four bytes": b'{"instances":["' + "\U0001f600a".encode() * 400_000 + b'"]}',
    "numbers": b'{"instances":[[' + b"1," * 2_000_000 + b"0]]}",
    "right images": b'{"instances":[' + b",".join([ROW] * 5_000) + b"]}",
}


def heaviest(read: Callable[[], object]) -> int:
    """The most bytes that objects took at one time."""
    tracemalloc.start()
    try:
        read()
    except ServiceError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("body", HEAVY.values(), ids=HEAVY.keys())
def test_no_document_takes_many_times_its_size(body):
    """Whatever its tokens are, at most 6 bytes for each of its own besides itself, and 4 MiB."""
    assert heaviest(lambda: predict(body)) < 6 * len(body) + 4 * 1024 * 1024


def test_a_million_numbers_take_their_own_size_and_a_slice():
    """The array, and nothing that grows with the text besides it."""
    body, _ = v2_messages.request({"x0": np.full((1000, 1000), 0.125)})
    assert heaviest(lambda: infer(body, "FP64", 1000)) < 8_000_000 + 4 * 1024 * 1024


def test_other_threads_run_while_a_long_document_is_read():
    """A thread that wants the interpreter every moment gets it between two slices."""
    body, _ = v2_messages.request({"x0": np.full((4000, 1000), 0.125)})
    is_over, waits = threading.Event(), []

    def beat() -> None:
        while not is_over.is_set():
            started = time.perf_counter()
            time.sleep(0.001)
            waits.append(time.perf_counter() - started)

    beating = threading.Thread(target=beat)
    beating.start()
    infer(body, "FP64", 1000)
    is_over.set()
    beating.join()
    assert len(waits) > 20
    assert np.median(waits) < 0.02  # parsed in one go it is one wait of 0.2 s


def test_no_more_than_a_slice_is_parsed_at_one_time(monkeypatch):
    """The reader of long lists hands the parser short pieces alone."""
    sizes = []
    parse = long_json.parse_json
    monkeypatch.setattr(long_json, "parse_json", lambda text, offset: (sizes.append(len(text)), parse(text, offset))[1])
    assert orjson.loads(orjson.dumps(1)) == 1
    infer(v2_messages.request({"x0": np.full((1000, 1000), 3)})[0], "INT64", 1000)
    assert len(sizes) > 10
    assert max(sizes) <= WHOLE_JSON_BYTES
