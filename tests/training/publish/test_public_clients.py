"""A published ResNet asked by Triton's and KServe's own clients, with files and with pixels, beside the original.

Opt-in: `make clients-test`, or `CLIENTS_PYTHON`, as tests/service/v2/test_clients.py has it.
"""

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foldserve import publish
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import pictures
from tests.support.live import serve
from tests.support.vision import library
from tests.training.publish.test_publish import CLASSES, resnet

pytest.importorskip("grpc", reason="needs the extra grpc")
PYTHON = os.environ.get("CLIENTS_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="CLIENTS_PYTHON names no environment with tritonclient and kserve"),
    pytest.mark.filterwarnings("ignore:Palette images with Transparency"),  # of Pillow's convert
]

CLIENTS = ("triton_http", "triton_grpc", "kserve_http", "kserve_grpc")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A ResNet-18 of torchvision's definition, published through torchvision's transforms and served."""
    folder: Path = tmp_path_factory.mktemp("public")
    network, t = resnet(), library("torchvision.transforms")
    normalize = t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    shape: list[Any] = [t.Resize(72), t.CenterCrop(64)]
    rng = np.random.default_rng(5)
    drawn = [Image.open(io.BytesIO(file)).convert("RGB") for file in (pictures.drawn(rng) for _ in range(8))]
    files = [pictures.encoded(image, "JPEG" if place % 2 else "PNG") for place, image in enumerate(drawn)]
    opened = [Image.open(io.BytesIO(file)) for file in files]
    publish(network, name="net", labels=CLASSES, image=t.Compose([*shape, t.ToTensor(), normalize]),
            examples=opened, models_dir=folder / "models")  # fmt: skip
    pixels = np.stack([np.asarray(t.Compose([*shape, t.PILToTensor()])(image)) for image in opened])
    with torch.no_grad():
        rows = torch.stack([t.Compose([*shape, t.ToTensor(), normalize])(image) for image in opened])
        expected = network(rows).softmax(1).numpy()
    sizes = np.array([len(file) for file in files])
    np.savez(folder / "asked.npz", files=np.frombuffer(b"".join(files), np.uint8), sizes=sizes, pixels=pixels)
    app = create_app(Settings(models_dir=folder / "models", provider="cpu", buckets=(1, 8), grpc_port=0))
    with serve(app) as url:
        yield SimpleNamespace(url=url, address=f"127.0.0.1:{app.state.grpc.port}", folder=folder, expected=expected)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_answer_of_the_original(service, client):
    """A file and its pixels are one question; both get the class and the probabilities of torch."""
    answered = service.folder / f"{client}.npz"
    script = "tests/service/v2/clients/pictures.py"
    command = [PYTHON, script, client, service.url, service.address, service.folder / "asked.npz", answered]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(answered) as answers:
        assert answers["files"].tobytes() == answers["pixels"].tobytes()
        assert (answers["files"].argmax(1) == service.expected.argmax(1)).all()
        np.testing.assert_allclose(answers["files"], service.expected, atol=2e-5)
