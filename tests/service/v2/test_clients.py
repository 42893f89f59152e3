"""The clients that people have today: Triton's and KServe's, unchanged, in a process and an environment of their own.

Opt-in: `CLIENTS_PYTHON` names the Python of an environment made from tests/service/v2/clients/requirements.txt.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve

pytest.importorskip("grpc", reason="needs the extra grpc")
PYTHON = os.environ.get("CLIENTS_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="CLIENTS_PYTHON names no environment with tritonclient and kserve"),
]

CLIENTS = ("triton_http_binary", "triton_http_json", "triton_grpc", "kserve_http", "kserve_grpc")
ROWS = 10_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder: Path = tmp_path_factory.mktemp("clients")
    artifacts.publish_classifier(folder / "models")
    images = artifacts.images(ROWS, seed=11)
    np.save(folder / "images.npy", images)
    app = create_app(Settings(models_dir=folder / "models", provider="cpu", grpc_port=0, default_deadline_ms=300_000))
    with serve(app) as url:
        address = f"127.0.0.1:{app.state.grpc.port}"
        yield SimpleNamespace(url=url, address=address, folder=folder, images=images)


@pytest.fixture(scope="module")
def reference(service) -> dict[str, np.ndarray]:
    """What /predict says of all images, and the plain session's logits."""
    as_bytes = {"Content-Type": "application/octet-stream"}
    answer = httpx.post(f"{service.url}/predict", content=service.images.tobytes(), headers=as_bytes, timeout=300)
    predictions = answer.json()["predictions"]
    session = artifacts.plain_session(service.folder / "models/fashion/1/model.onnx")
    return {
        "probabilities": np.array([entry["probabilities"] for entry in predictions], np.float32),
        "class_id": np.array([[entry["class_id"]] for entry in predictions]),
        "logits": session.run(["logits"], {"image": service.images})[0],
    }


def ask(kind, service):
    """Run one client; returns the file with its outputs."""
    file = service.folder / f"{kind}.npz"
    images = service.folder / "images.npy"
    command = [PYTHON, "tests/service/v2/clients/ask.py", kind, service.url, service.address, images, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return file


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_client_gets_the_bytes_of_predict_at_every_batch_size(service, reference, kind):
    """10,000 images in requests of 1 to 10,000 rows: each bit is that of /predict, each logit that of onnxruntime."""
    with np.load(ask(kind, service)) as outputs:
        assert outputs["probabilities"].tobytes() == reference["probabilities"].tobytes()
        np.testing.assert_array_equal(outputs["class_id"], reference["class_id"])
        logits = reference["logits"]
        np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_the_interface_is_that_of_triton(service):
    """Each message, field number, type and call of our .proto is the one in Triton's own descriptors."""
    ask("descriptors", service)


def test_the_configuration_is_one_that_triton_reads(service):
    """The published config.pbtxt and the configuration over HTTP are Triton's own message, with no unknown member."""
    ask("configuration", service)
