"""Files as other exporters write them, served as they are: asked over HTTP, compared with the file in onnxruntime."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import onnxruntime
import pytest

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import exported
from tests.support.live import serve

X = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
CLASSES = {"forest": ["rose", "tulip", "iris"], "numbered": [3, 5], "lightgbm": [0, 1, 2]}
FREE = {
    "free": exported.free_axes(),
    "named": exported.free_axes("N", written="w"),
    "paddle": exported.free_axes(-1, written=-1),
    "alone": exported.free_axes(1),
}
MODELS = {
    name: exported.zipmap(classes, label_rows=1 if name == "lightgbm" else None) for name, classes in CLASSES.items()
}
MODELS |= {"texts": exported.texts(), **FREE}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, model in MODELS.items():
        exported.save(root, name, model)
    app = create_app(Settings(models_dir=root, provider="cpu", buckets=(1, 8), allow_unverified=True, max_free_axis=50))
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


def infer(service: httpx.Client, name: str, **inputs: tuple[str, np.ndarray]) -> dict[str, list]:
    tensors = [
        {"name": key, "datatype": datatype, "shape": array.shape, "data": array.ravel().tolist()}
        for key, (datatype, array) in inputs.items()
    ]
    answer = service.post(f"/v2/models/{name}/infer", json={"inputs": tensors})
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


@pytest.mark.parametrize("name", ["forest", "numbered", "lightgbm"])
def test_classifiers_with_a_zipmap_answer_with_their_probabilities(service, name):
    """By V2 and by /predict, with the classes among the properties and for `classification`."""
    session = onnxruntime.InferenceSession(MODELS[name].SerializeToString(), providers=["CPUExecutionProvider"])
    labels, maps = session.run(None, {"X": X})
    classes = CLASSES[name]
    expected = np.array([[row[value] for value in classes] for row in maps], np.float32)
    given = infer(service, name, X=("FP32", X))
    assert given["output_label"] == labels.tolist()
    assert np.array_equal(np.array(given["output_probability"], np.float32).reshape(expected.shape), expected)
    rows = service.post(f"/predict?model={name}", json={"instances": X.tolist()}).json()["predictions"]
    assert [row["outputs"]["output_label"] for row in rows] == labels.tolist()
    assert np.array_equal(np.array([row["outputs"]["output_probability"] for row in rows], np.float32), expected)
    properties = service.get(f"/v2/models/{name}").json()["properties"]
    assert json.loads(properties["labels"]) == [str(value) for value in classes]


def test_texts_go_in_and_come_out(service):
    """As JSON strings, as named columns, and beside numbers."""
    texts, numbers = np.array([["a"], ["bé"], ["?"]], object), np.arange(6, dtype=np.float32).reshape(3, 2)
    given = infer(service, "texts", c=("BYTES", texts), x=("FP32", numbers))
    assert given["same"] == ["a", "bé", "?"]
    assert given["row"] == [1, 0, 0, 1, 0, 1, 2, 3, 0, 0, 4, 5]
    instances = [{"c": text, "x": row} for text, row in zip(texts[:, 0].tolist(), numbers.tolist(), strict=True)]
    rows = service.post("/predict?model=texts", json={"instances": instances}).json()["predictions"]
    assert [row["outputs"]["same"] for row in rows] == [["a"], ["bé"], ["?"]]
    assert rows[1]["outputs"]["row"] == [0, 1, 2, 3]
    config = service.get("/v2/models/texts/config").json()
    assert config["input"][0]["data_type"] == "TYPE_STRING"


def test_a_text_that_is_none_is_the_senders_mistake(service):
    """Bytes that are no UTF-8 are refused by name, and the neighbours are answered."""
    head = b'{"inputs":[{"name":"c","datatype":"BYTES","shape":[1,1],"parameters":{"binary_data_size":5}},'
    head += b'{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
    body = head + b"\x01\x00\x00\x00\xff"
    headers = {"Inference-Header-Content-Length": str(len(head))}
    refused = service.post("/v2/models/texts/infer", content=body, headers=headers)
    assert refused.status_code == 400, refused.text
    assert "input 'c': an element is not UTF-8" in refused.json()["error"]


@pytest.mark.parametrize("name", FREE)
def test_free_axes_are_served_in_any_size(service, name):
    """One after the other and many at once, each with the answer of its own shape."""
    session = onnxruntime.InferenceSession(FREE["free"].SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=(rows, 3, height, width)).astype(np.float32)
              for rows in (1, 3, 9) for height, width in ((1, 1), (7, 50), (32, 5), (7, 50))]  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda array: infer(service, name, x=("FP32", array))["y"], arrays))
    for array, answer in zip(arrays, given, strict=True):
        expected = session.run(None, {"x": array})[0]
        np.testing.assert_allclose(np.reshape(answer, expected.shape), expected, atol=1e-5)


def test_a_size_beyond_the_declared_largest_is_refused(service):
    """The metadata says -1, the refusal what is allowed; the fixed axis stays fixed."""
    assert service.get("/v2/models/free").json()["inputs"][0]["shape"] == [-1, 3, -1, -1]
    assert service.get("/v2/models/free/config").json()["input"][0]["dims"] == [3, -1, -1]
    for shape in ([1, 3, 51, 5], [1, 3, 0, 5], [1, 4, 5, 5], [1, 3, 5]):
        values = [0] * int(np.prod(shape))
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": values}]}
        refused = service.post("/v2/models/free/infer", json=body)
        assert refused.status_code == 400
        assert "expected [N, 3, 1 to 50, 1 to 50]" in refused.json()["error"]
