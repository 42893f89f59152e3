"""Networks of torchvision and timm, published and asked with files over HTTP and gRPC, beside the original.

Slow: with `make clients-test`, or CLIENTS_PYTHON set to anything.
"""

import io
import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foldserve import publish
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support.live import serve
from tests.support.vision import library
from tests.training.publish.test_publish import CLASSES, trained

grpc = pytest.importorskip("grpc", reason="needs the extra grpc")

from tests.support.grpc_calls import MESSAGES, stubs  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("CLIENTS_PYTHON"), reason="takes a minute: make clients-test"),
]


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    if name == "mobilenet_v3_small":
        return trained(library("torchvision.models").mobilenet_v3_small(weights=None, num_classes=3))
    return trained(library("timm").create_model(name, pretrained=False, num_classes=3))


def pictures(folder: Path) -> list[bytes]:
    """Smooth pictures of odd sizes, PNG and JPEG by turns."""
    generator = np.random.default_rng(1)
    files = []
    for number in range(6):
        noise = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        content = io.BytesIO()
        noise.resize((90 + 9 * number, 83), Image.Resampling.BICUBIC).save(content, "PNG" if number % 2 else "JPEG")
        files.append(content.getvalue())
        (folder / f"{number}.{'png' if number % 2 else 'jpg'}").write_bytes(files[-1])
    return files


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet10t"])
def test_each_door_gives_the_answer_of_the_original(tmp_path: Path, name: str) -> None:
    """The same class everywhere, probabilities within what float32 costs both sides."""
    network = made(name)
    t: Any = library("torchvision.transforms")
    normalize = t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transforms = t.Compose([t.Resize(72), t.CenterCrop(64), t.ToTensor(), normalize])
    (tmp_path / "examples").mkdir()
    files = pictures(tmp_path / "examples")
    publish(network, name="net", labels=CLASSES, image=transforms, examples=tmp_path / "examples",
            models_dir=tmp_path / "models")  # fmt: skip
    with torch.no_grad():
        rows = torch.stack([transforms(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
        expected = network(rows).softmax(1).numpy()
    app = create_app(Settings(models_dir=tmp_path / "models", provider="cpu", buckets=(1, 8), grpc_port=0))
    with serve(app) as url, grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel:
        forms = [("file", ("a", file)) for file in files]
        predicted = httpx.post(f"{url}/predict", files=forms, timeout=60).json()["predictions"]
        message = MESSAGES["ModelInferRequest"](model_name="net")
        message.inputs.add(name="image", datatype="BYTES", shape=[len(files)])
        message.raw_input_contents.append(b"".join(len(file).to_bytes(4, "little") + file for file in files))
        answer = stubs(channel).ModelInfer(message)
    place = [output.name for output in answer.outputs].index("probabilities")
    over_grpc = np.frombuffer(answer.raw_output_contents[place], np.float32).reshape(expected.shape)
    for given in (np.array([one["probabilities"] for one in predicted]), over_grpc):
        assert (given.argmax(1) == expected.argmax(1)).all()
        np.testing.assert_allclose(given, expected, atol=2e-5)
