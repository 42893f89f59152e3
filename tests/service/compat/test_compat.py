"""Clients of TensorFlow Serving, KServe and TorchServe ask without a change, and get NumPy's numbers."""

import io
import json
import subprocess
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from foldserve.format.task import Task
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve
from tests.support.operator import running
from tests.support.predict_bodies import b64, png

PIXELS = artifacts.images(3, seed=4)
EXPECTED = artifacts.classify(PIXELS)
FILE = png(PIXELS[0, 0])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A classifier in two versions, a regression, and a model of two inputs."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root, version=1, seed=1)
    artifacts.publish_classifier(root, version=2)
    artifacts.publish_rows(root, "prices", ("values",), Task("regress").as_metadata())
    artifacts.publish_two_inputs(root)
    settings = Settings(models_dir=root, provider="cpu", buckets=(1, 4))
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        yield http


def done(answer: httpx.Response) -> object:
    assert answer.status_code == 200, answer.text
    return answer.json()


def best(probabilities: np.ndarray) -> dict[str, float]:
    """The five best labels, as TorchServe's image_classifier gives them."""
    return {artifacts.LABELS[c]: float(probabilities[c]) for c in np.argsort(-probabilities)[:5]}


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=1e-5)


# V1 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded"])
def test_v1_answers_with_the_outputs_of_each_instance(service, content_type):
    """Numbers and files in base64; curl's own Content-Type does as well."""
    body = json.dumps({"instances": [PIXELS[0, 0].tolist(), b64(PIXELS[1, 0])]})
    found = done(service.post("/v1/models/fashion:predict", content=body, headers={"Content-Type": content_type}))
    assert list(found) == ["predictions"]
    for row, prediction in enumerate(found["predictions"]):
        assert list(prediction) == ["logits", "probabilities", "class_id"]
        np.testing.assert_allclose(prediction["probabilities"], EXPECTED["probabilities"][row], atol=1e-5)


def test_v1_gives_the_only_output_bare_and_several_inputs_by_name(service):
    """As TensorFlow Serving's row format has them."""
    rows = [[0.5, 1.5, 2.5, 3.5], [1.0, 2.0, 3.0, 4.0]]
    assert done(service.post("/v1/models/prices:predict", json={"instances": rows})) == {"predictions": rows}
    instances = [{"left": [1, 2, 3], "right": [4, 5, 6]}]
    found = done(service.post("/v1/models/sum:predict", json={"instances": instances}))
    assert found == {"predictions": [[5.0, 7.0, 9.0]]}


def test_v1_finds_versions_and_says_what_is_ready(service):
    """By number, by label, and as both servers word it."""
    body = {"instances": [PIXELS[0, 0].tolist()]}
    older = artifacts.classify(PIXELS[:1], artifacts.classifier_weights(1))["probabilities"][0]
    for path, expected in (
        ("versions/2", EXPECTED["probabilities"][0]),
        ("labels/latest", EXPECTED["probabilities"][0]),
    ):
        (found,) = done(service.post(f"/v1/models/fashion/{path}:predict", json=body))["predictions"]
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    assert not np.allclose(older, expected, atol=1e-3)
    status = done(service.get("/v1/models/fashion"))
    assert (status["name"], status["ready"]) == ("fashion", True)
    assert status["model_version_status"][-1]["version"] == "2"
    assert status["model_version_status"][-1]["state"] == "AVAILABLE"
    assert done(service.get("/v1/models")) == {"models": ["fashion", "prices", "sum"]}


# TorchServe -----------------------------------------------------------------------------------------------------------


def test_a_picture_gets_its_five_best_classes(service, tmp_path):
    """From bytes, a form, and curl as TorchServe's own documents call it."""
    expected = best(EXPECTED["probabilities"][0])
    same(done(service.post("/predictions/fashion", content=FILE)), expected)
    same(done(service.post("/predictions/fashion/2", files={"data": FILE})), expected)
    path = tmp_path / "shirt.png"
    path.write_bytes(FILE)
    for method in (["-X", "POST"], []):
        command = ["curl", "-sf", *method, f"{service.base_url}/predictions/fashion", "-T", str(path)]
        same(json.loads(subprocess.run(command, check=True, capture_output=True).stdout), expected)


def test_a_jpeg_is_a_picture_too(service):
    """Its bytes say what it is; the answer is that of `/predict` for the same file."""
    file = io.BytesIO()
    Image.fromarray(PIXELS[0, 0]).resize((60, 60)).save(file, "JPEG")
    (known,) = done(
        service.post("/predict?model=fashion&top=5", content=file.getvalue(), headers={"Content-Type": "image/jpeg"})
    )["predictions"]
    found = done(service.post("/predictions/fashion", content=file.getvalue()))
    assert found == {entry["label"]: entry["probability"] for entry in known["top"]}


def test_rows_and_several_pictures_are_lists(service):
    """JSON rows of another task, and more than one file in a form."""
    assert done(service.post("/predictions/prices", json={"instances": [[1, 2, 3, 4]]})) == [1.0, 2.0, 3.0, 4.0]
    files = [("data", png(picture[0])) for picture in PIXELS]
    found = done(service.post("/predictions/fashion", files=files))
    for row, answer in enumerate(found):
        same(answer, best(EXPECTED["probabilities"][row]))


def test_ping_tells_the_truth(service, models):
    """Healthy while every model answers, and open also where keys are needed; not ready is no 200."""
    assert done(service.get("/ping")) == {"status": "Healthy"}
    artifacts.publish_classifier(models)
    with running(models, closed_scopes=("infer", "metrics", "read")) as operator:
        assert done(httpx.get(f"{operator.base_url}/ping")) == {"status": "Healthy"}
        assert httpx.post(f"{operator.base_url}/predictions/fashion", content=FILE).status_code == 401
        assert httpx.post(f"{operator.base_url}/v1/models/fashion:predict", json={}).status_code == 401
        operator.app.state.registry.doubt("fashion", "its answers changed")
        answer = httpx.get(f"{operator.base_url}/ping")
        assert (answer.status_code, answer.json()) == (503, {"error": "not ready: its answers changed"})


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content", "status", "expected"),
    [
        ("/v1/models/nowhere:predict", b"{}", 404, "'nowhere' is not served"),
        ("/v1/models/fashion/versions/7:predict", b"{}", 404, "not 7"),
        ("/v1/models/fashion/versions/x:predict", b"{}", 404, "no version 'x'"),
        ("/v1/models/fashion:predict", b"", 400, "0 bytes"),
        ("/v1/models/fashion:predict", b"{", 400, "not JSON"),
        ("/v1/models/fashion:predict", b'{"inputs": [1]}', 400, "unknown key 'inputs'"),
        ("/v1/models/fashion:classify", b"{}", 404, "nothing is served"),
        ("/v1/models/prices:predict", b'{"instances": [[1]]}', 400, "instances[0]: 1 values, expected 4"),
        ("/predictions/nowhere", b"{}", 404, "'nowhere' is not served"),
        ("/predictions/fashion", b"", 400, "0 bytes"),
        ("/predictions/fashion", b"hello", 400, "expected a multiple of 784"),
        ("/predictions/fashion", b"\x89PNG\r\n", 400, "not a PNG or JPEG image"),
        ("/predictions/fashion", b"\xff\xd8\xff", 400, "not a PNG or JPEG image"),
        ("/predictions/fashion/9", FILE, 404, "not 9"),
        ("/predictions/sum", b"\0" * 12, 415, "takes no pictures"),
    ],
)
def test_bad_requests_get_the_sentences_of_every_route(service, path, content, status, expected):
    """One shape of errors everywhere, and the place in it."""
    answer = service.post(path, content=content)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert expected in answer.json()["error"]


@pytest.mark.parametrize("path", ["fashion:predict", "fashion/versions/2:predict", "fashion/labels/latest:predict"])
def test_a_call_is_no_name(service, path):
    """Only POST asks a model; what reads a status takes no verb for a part of the name, and allows no GET there."""
    answer = service.get(f"/v1/models/{path}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
