"""Models that leave height, width, time or length free, asked by `/predict` in every form that states a size."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from foldserve.client import Client
from foldserve.format.image import ANY_SIZE, ImageRecipe
from foldserve.pictures import decode
from foldserve.pictures.golden_files import pack
from foldserve.service.app import create_app
from foldserve.service.bodies.long_json import LongText, long_nesting
from foldserve.service.settings import Settings
from tests.support import exported, picture_models, pictures
from tests.support.live import serve

PNG = {"Content-Type": "image/png"}
RNG = np.random.default_rng(5)
RECIPES = {
    "any": ImageRecipe(height=ANY_SIZE, width=ANY_SIZE),
    "hwc": ImageRecipe(height=ANY_SIZE, width=ANY_SIZE, layout="HWC", colour="BGR"),
    "line": ImageRecipe(height=16, width=ANY_SIZE),
    "grey": ImageRecipe(height=ANY_SIZE, width=ANY_SIZE, channels=1, colour="grey"),
    "shorter": ImageRecipe(height=ANY_SIZE, width=ANY_SIZE, rule="shorter", resize=(20,)),
}
SIZES = {"any": [(9, 21), (40, 300)], "hwc": [(9, 21), (33, 12)], "line": [(16, 5), (16, 90)],
         "grey": [(1, 1), (7, 45)], "shorter": [(33, 60), (70, 35)]}  # fmt: skip


def sequence() -> object:
    """float `x` [?, ?, 2] and int64 `n` [?, 1] -> the sum over time, times n: a length that is free beside a number."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["n"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sum", "factor"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sequence",
        [info("x", TensorProto.FLOAT, ["N", "time", 2]), info("n", TensorProto.INT64, ["N", 1])],
        [info("y", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("models")
    for name, recipe in RECIPES.items():
        examples = [(str(index), picture(24, 16)) for index in range(3)]
        picture_models.publish(root, name, recipe, pack([(key, file) for key, file in examples], recipe))
    exported.save(root, "free", exported.free_axes())
    exported.save(root, "sequence", sequence())
    settings = Settings(models_dir=root, provider="cpu", buckets=(1, 8), allow_unverified=True, max_free_axis=400)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        yield http


def picture(width: int, height: int) -> bytes:
    return pictures.encoded(Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)))


def predictions(answer: httpx.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def probabilities(answer: httpx.Response) -> np.ndarray:
    return np.array([one["probabilities"] for one in predictions(answer)], np.float32)


@pytest.mark.parametrize("name", RECIPES)
def test_pictures_keep_the_size_that_their_rule_makes(service, name):
    """Files alone, several in a form, base64 and nested pixels; each size gets its own answer."""
    recipe, where = RECIPES[name], f"/predict?model={name}"
    for height, width in SIZES[name]:
        files = [picture(width, height) for _ in range(3)]
        rows = np.stack([decode(file, recipe) for file in files])
        assert recipe.takes(rows.shape[1:])
        expected = picture_models.classify(rows, recipe)["probabilities"]
        nested = rows[:, 0] if recipe.channels == 1 else rows
        answers = [
            np.concatenate([
                probabilities(service.post(where, content=file, headers=PNG)) for file in files
            ]),
            probabilities(service.post(where, files=[("file", ("a", file)) for file in files])),
            probabilities(service.post(where, json={"instances": [picture_models.b64(file) for file in files]})),
            probabilities(service.post(where, json={"instances": nested.tolist()})),
            probabilities(service.post(where, json={"instances": nested.astype(float).tolist()})),
        ]  # fmt: skip
        for answer in answers:
            np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


def test_many_sizes_at_once_get_their_own_answers(service):
    """Only equal shapes share a batch."""
    recipe = RECIPES["any"]
    files = [picture(10 + index % 3, 20) for index in range(24)]
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(lambda file: service.post("/predict?model=any", files={"file": file}), files)
        given = np.concatenate([probabilities(answer) for answer in asked])
    expected = [picture_models.classify(decode(file, recipe)[None], recipe)["probabilities"][0] for file in files]
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 7, 50), (3, 3, 32, 5), (1, 3, 300, 300)])
def test_rows_say_by_their_nesting_how_large_they_are(service, shape):
    """The last one is over a megabyte of JSON, read in slices."""
    array = RNG.normal(size=shape).astype(np.float32)
    session = onnxruntime.InferenceSession(exported.free_axes().SerializeToString())
    expected = session.run(None, {"x": array})[0]
    for instances in (array.tolist(), [{"x": row} for row in array.tolist()]):
        given = predictions(service.post("/predict?model=free", json={"instances": instances}))
        np.testing.assert_allclose([row["outputs"]["y"] for row in given], expected, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 399])
def test_sequences_go_beside_fixed_inputs(service, steps):
    """By name, at `/predict` and at the V1 route."""
    array = RNG.integers(0, 9, (3, steps, 2)).astype(np.float32)
    instances = [{"n": index, "x": row.tolist()} for index, row in enumerate(array)]
    expected = array.sum(axis=1) * np.arange(3)[:, None]
    given = predictions(service.post("/predict?model=sequence", json={"instances": instances}))
    assert np.array_equal([row["outputs"]["y"] for row in given], expected)
    v1 = service.post("/v1/models/sequence:predict", json={"instances": instances})
    assert np.array_equal(v1.json()["predictions"], expected)


def test_the_client_sends_arrays_of_any_size(service):
    """It learns from the metadata that bytes alone would not do."""
    array = RNG.normal(size=(2, 3, 5, 6)).astype(np.float32)
    pixels = RNG.integers(0, 256, (3, 5, 6), np.uint8)
    with Client(str(service.base_url)) as client:
        assert np.shape(client.predict(array, model="free")[0]["outputs"]["y"]) == (2, 6)
        expected = picture_models.classify(pixels[None], RECIPES["any"])["class_id"].item()
        assert client.predict(pixels, model="any")["class_id"] == expected
        with pytest.raises(ValueError, match="the model takes"):
            client.predict(array[:, :2], model="free")


PIXELS = [[[[1, 2], [3, 4]]] * 3]


@pytest.mark.parametrize(
    ("model", "instances", "expected"),
    [
        ("free", [[[[1.0]], [[1.0]]]], "instances[0]: lists nested as (2, 1, 1), expected (3, 1 to 400, 1 to 400)"),
        ("free", [[[[1.0] * 401]] * 3], "nested as (3, 1, 401), expected (3, 1 to 400, 1 to 400)"),
        ("free", [[[[]]] * 3], "nested as (3, 1, 0)"),
        ("free", [7], "nested as (), expected"),
        ("free", [[[[1.0]]] * 3, [[[1.0, 2.0]]] * 3], "instances[1]: 6 values, expected 3"),
        ("free", [[[[1.0, 2.0]], [[1.0]], [[1.0]]]], "instances[0]: lists of different lengths"),
        ("sequence", [{"n": 1, "x": [[1, 2, 3]]}], "instances[0].x: lists nested as (1, 3), expected (1 to 400, 2)"),
        ("sequence", [{"n": 1}], "instances[0]: no 'x'"),
        ("any", [[[1, 2], [3, 4]]], "instances[0]: shape (2, 2), expected nested lists (3, 1 to 400, 1 to 400)"),
        ("any", [1], "instances[0]: 1, expected nested lists"),
        ("any", [[[[1, 2]]] * 3, [[[1]]] * 3], "instances[1]: 1x1 pixels (width x height), expected 2x1"),
        ("any", [[[[1, 256]]] * 3], "instances[0][0][0][1]: 256, expected an integer 0-255"),
        ("any", [[[[1, True]]] * 3], "instances[0][0][0][1]: true, expected an integer 0-255"),
        ("line", [[[[1]]] * 3], "expected nested lists (3, 16, 1 to 400)"),
        ("hwc", [[[[1, 2]]]], "expected nested lists (1 to 400, 1 to 400, 3)"),
        ("grey", [[1, 2, 3]], "expected nested lists (1 to 400, 1 to 400)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_place(service, model, instances, expected):
    """Too large, too flat, ragged, or unlike the first of its request."""
    answer = service.post(f"/predict?model={model}", json={"instances": instances})
    assert answer.status_code == 400, answer.text
    assert expected in answer.json()["error"]


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        ("any", (401, 5), "image: 401x5 pixels (width x height), expected at most 400 on a side"),
        ("line", (5, 17), "image: 5x17 pixels, expected anyx16 (width x height)"),
        ("shorter", (900, 30), "image: 600x20 pixels (width x height), expected at most 400 on a side"),
    ],
)
def test_pictures_beyond_the_declared_largest_are_refused(service, model, size, expected):
    """The largest side is a setting; a fixed side stays fixed."""
    answer = service.post(f"/predict?model={model}", content=picture(*size), headers=PNG)
    assert answer.status_code == 400, answer.text
    assert expected in answer.json()["error"]


def test_pictures_of_one_request_have_one_size(service):
    """The message says what to do."""
    files = [("file", ("a", picture(5, 6))), ("file", ("b", picture(6, 5)))]
    answer = service.post("/predict?model=any", files=files)
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "form file 1: 6x5 pixels (width x height), expected 5x6 as form file 0: "
        "send pictures of different sizes in different requests"
    )


@pytest.mark.parametrize("model", ["any", "free"])
def test_bare_bytes_are_refused_where_they_say_no_size(service, model):
    """The other forms are named."""
    headers = {"Content-Type": "application/octet-stream"}
    answer = service.post(f"/predict?model={model}", content=bytes(300), headers=headers)
    assert answer.status_code == 400
    assert "do not say how large" in answer.json()["error"]
    assert "nested lists as JSON" in answer.json()["error"]


def test_metadata_and_description_say_that_a_side_is_free(service):
    """-1 as the protocol has it; the example on the page can be sent as it is."""
    assert service.get("/v2/models/line").json()["inputs"][0]["shape"] == [-1, 3, 16, -1]
    assert json.loads(service.get("/v2/models/line").json()["properties"]["image"])["width"] == -1
    assert service.get("/openapi.json").status_code == 200


@pytest.mark.parametrize("shape", [(7,), (3, 90_000), (3, 300, 301), (2, 1, 70_000, 2), (40_000, 1, 1)])
def test_the_nesting_of_a_long_list_is_that_of_the_parsed_one(shape):
    """However many slices it takes."""
    body = json.dumps({"a": np.zeros(shape, int).tolist()}).encode()
    start, stop = body.index(b"["), body.rindex(b"]") + 1
    assert long_nesting(LongText(body, start, stop)) == shape
