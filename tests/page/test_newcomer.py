"""A newcomer's first minutes: from the built wheel to a right answer, in an environment of its own.

`make page-test` runs it, on a clean clone too. The wheel is installed while the clock runs; the packages that it needs
are borrowed, as if pip had them at hand, so that the time of a network is not in the figures.
"""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.page.models import photo
from tests.support.processes import environment
from tests.test_wheel import Project, built, installed, serving

__all__ = ["built"]  # a fixture

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MOST_SECONDS, MOST_SECONDS_RESNET = 90.0, 180.0

RESNET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


def resnet18():
    torch.manual_seed(0)
    sizes = [size for out in (128, 256, 512) for size in ((out // 2, out, 2), (out, out, 1))]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [Block(*size) for size in ((64, 64, 1), (64, 64, 1), *sizes)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
"""
ASKED_DIRECTLY = """
import numpy as np, torch, mynets
from PIL import Image
network = mynets.resnet18().eval()
network.load_state_dict(torch.load("w.pt"))
picture = Image.open("rose.jpg").convert("RGB").resize((341, 256), Image.BILINEAR).crop((58, 16, 282, 240))
pixels = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1).float() / 255
mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
with torch.no_grad():
    print(int(network(((pixels - mean) / std)[None]).argmax()))
"""


@pytest.fixture
def project(built, tmp_path) -> tuple[Project, float]:
    """The wheel installed into an environment of its own, and when that began."""
    started = time.monotonic()
    return installed(built[0], tmp_path), started


@contextmanager
def demo(project: Project) -> Iterator[str]:
    """`foldserve demo`; gives the address that it prints."""
    command = [str(project.programs / "foldserve"), "demo", "--port", "0", "--no-open"]
    process = subprocess.Popen(command, cwd=project.folder, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()


def test_from_the_wheel_to_a_right_answer_on_the_page(project, visit):
    """`pip install` of the wheel, `foldserve demo`, its page in Chromium, a golden trouser: within 90 s."""
    project, started = project
    with demo(project) as url:
        visit.go(url).take_sample(2)
        assert visit.said() == "Trouser"
        assert time.monotonic() - started < MOST_SECONDS


def test_from_a_resnet_of_ones_own_to_a_jpeg_answered(project):
    """A definition and weights, one `foldserve publish`, one `foldserve serve`, the printed curl: within 3 minutes.

    The class is the one that PyTorch gives, asked without anything of foldserve.
    """
    project, started = project
    folder = project.folder
    (folder / "mynets.py").write_text(RESNET)
    (folder / "labels.txt").write_text("".join(f"class {number}\n" for number in range(1000)))
    (folder / "val").mkdir()
    for number in range(4):
        (folder / f"val/{number}.jpg").write_bytes(photo(number, (400, 300), "JPEG"))
    (folder / "rose.jpg").write_bytes(photo(9, (400, 300), "JPEG"))
    made = project.run("python", "-c", "import mynets, torch; torch.save(mynets.resnet18().state_dict(), 'w.pt')")
    assert made.returncode == 0, made.stderr
    words = ["--weights", "w.pt", "--name", "resnet", "--labels", "labels.txt", "--examples", "val"]
    recipe = ["--image", "resize=256,crop=224,mean=imagenet,std=imagenet"]
    published = project.run("foldserve", "publish", "mynets:resnet18", *words, *recipe)
    assert published.returncode == 0, published.stderr
    assert "21 folded, 0 refused" in published.stdout
    (ask,) = re.findall(r"^ask it: (.*)$", published.stdout, re.MULTILINE)
    with serving([str(project.programs / "foldserve"), "serve", "--port", "0"], folder) as (address, _):
        typed = ask.replace("picture.jpg", "rose.jpg").replace("localhost:8000", address.removeprefix("http://"))
        done = subprocess.run(["sh", "-c", f"{typed} -sS"], cwd=folder, capture_output=True, text=True, timeout=60)
        assert time.monotonic() - started < MOST_SECONDS_RESNET
    direct = project.run("python", "-c", ASKED_DIRECTLY)
    assert direct.returncode == 0, direct.stderr
    assert f'"class_id":{int(direct.stdout)},' in done.stdout, done
