"""The README and the pages beside it as a reader uses them: every block is run as it stands."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image

from tests.support import onnx_cases, pages

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs/results/README.md"]

FITTED = """
import torch, mynets
from torch.nn.functional import cross_entropy

torch.manual_seed(0)
network = mynets.flowers()
hues = torch.tensor([[200., 200., 120.], [200., 40., 60.], [230., 120., 40.]])
mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
step = torch.optim.Adam(network.parameters(), 0.02)
for _ in range(60):
    classes = torch.arange(12) % 3
    pictures = (hues[classes][:, None] + 40 * torch.randn(12, 256, 3) - mean) / std
    step.zero_grad()
    cross_entropy(network(pictures.mT.reshape(12, 3, 16, 16)), classes).backward()
    step.step()
torch.save(network.eval().state_dict(), "w.pt")
"""


def blocks(page: str, language: str) -> list[str]:
    """The text of the blocks of a page in one language that a usual machine runs."""
    return [block.text for block in pages.blocks(page, language) if not block.needs]


class Reader:
    """Somebody who types blocks in a folder where `foldserve` is this one.

    Attributes:
        folder: where commands run.
        port: the free port that stands for 8000.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = folder / "bin/foldserve"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m foldserve "$@"\n')
        command.chmod(0o755)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = int(taken.getsockname()[1])
        path = f"{command.parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "FOLDSERVE_PORT": str(self.port)}

    def type(self, text: str) -> str:
        """Type into a shell; returns what was printed."""
        text = text.replace("localhost:8000", f"localhost:{self.port}")
        done = subprocess.run(
            ["sh", "-e"], input=text, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def serving(self, line: str) -> Iterator[None]:
        """Type a line that starts a service, wait until it is ready, and end it afterwards."""
        process = subprocess.Popen(["sh", "-c", f"exec {line}"], cwd=self.folder, env=self.environment)
        try:
            for _ in range(600):
                assert process.poll() is None, line
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{self.port}/v2/health/ready").status_code == 200:
                        break
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """In an empty folder."""
    return Reader(tmp_path)


def without_numbers(text: str) -> list[str]:
    """The lines of a report with every number replaced."""
    return [re.sub(r"\d[\d.]*(e-?\d+)?", "#", line).strip() for line in text.strip().splitlines()]


def test_a_network_of_ones_own(reader: Reader) -> None:
    """From ten lines to an answer for a JPEG; the report is the one that the page prints, but for its numbers."""
    (reader.folder / "mynets.py").write_text(blocks("README.md", "python")[0])
    (reader.folder / "labels.txt").write_text("daisy\nrose\ntulip\n")
    reader.type(f"{sys.executable} - <<'END'\n{FITTED}END\n")
    random = np.random.default_rng(0)
    for name, hue in {"daisy": (200, 200, 120), "rose": (200, 40, 60), "tulip": (230, 120, 40)}.items():
        (reader.folder / "val" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.clip(random.normal(hue, 40, (300, 400, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(reader.folder / "val" / name / f"{number}.jpg")
    shutil.copy(reader.folder / "val/rose/0.jpg", reader.folder / "rose.jpg")
    publish, serve, ask = blocks("README.md", "sh")[1].replace("\\\n", " ").splitlines()
    printed = reader.type(publish)
    shown = re.search(r"answers as yours does:\n\n((?:    .*\n|\n)+)", README)
    assert shown
    assert without_numbers(printed) == without_numbers(shown[1]), printed
    with reader.serving(serve):
        assert '"label":"rose"' in reader.type(ask)


def test_the_model_that_comes_along(reader: Reader) -> None:
    """What the first block installs has the extras it names, and serves."""
    first, _ = blocks("README.md", "sh")
    assert blocks("docs/index.md", "sh") == [first]
    install, serve = first.splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.fullmatch(r"pip install '\.\[(.*)\]'", install)
    assert named
    assert set(named[1].split(",")) <= extras.keys()
    with reader.serving(serve):
        assert "lenet-bn" in reader.type("curl -s localhost:8000/v2/models/lenet-bn")


def test_the_page_of_the_service(reader: Reader) -> None:
    """A folder of models, asked about a picture."""
    serve, ask = (block.strip() for block in blocks("docs/serve.md", "sh"))
    (reader.folder / "models").symlink_to(ROOT / "models")
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(reader.folder / "shirt.png")
    with reader.serving(serve):
        assert '"predictions":[{"class_id"' in reader.type(ask)


def test_the_page_of_the_fold(reader: Reader) -> None:
    """The Python blocks, and both commands on files."""
    onnx.save(onnx_cases.cases()[0].build(), reader.folder / "in.onnx")
    for block in blocks("docs/fold.md", "python"):
        reader.type(f"{sys.executable} - <<'END'\n{block}END\n")
    (reader.folder / "mynets.py").write_text(blocks("README.md", "python")[0].replace("flowers", "network"))
    reader.type(
        f"{sys.executable} - <<'END'\nimport mynets, torch\ntorch.save(mynets.network().state_dict(), 'w.pt')\nEND\n"
    )
    (commands,) = blocks("docs/fold.md", "sh")
    reader.type(commands)
    assert (reader.folder / "out.onnx").stat().st_size
    assert (reader.folder / "own.onnx").stat().st_size


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Relative links point at files of the repository."""
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_read_in_two_minutes() -> None:
    """No more than 700 words beside the printed report and what no reader is shown."""
    assert len(re.sub(r"^    .*$|<!--.*?-->", "", README, flags=re.MULTILINE).split()) <= 700


def test_every_page_stands_in_the_navigation_of_the_site() -> None:
    """A reader of the site finds all pages."""
    listed = set(re.findall(r'"([\w/.-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    docs = ROOT / "docs"
    assert listed == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}


def facts(page: Path) -> list[tuple[object, ...]]:
    """What must not depend on the language of a page: commands, links, code and numbers, section by section."""
    text = re.sub(r"!\[[^]]*]|^\[(?:中文|English)]\(.*\)$", "", page.read_text(), flags=re.MULTILINE)
    return [
        (
            re.findall(r"foldserve learn [\w-]+", section),
            re.findall(r"\]\(([^)]*)\)|^\(([^)]*)\)$", section, re.MULTILINE),
            re.findall(r"```python\n.*?```", section, re.DOTALL),
            sorted(re.findall(r"\d[\d.,]*(?:e-?\d+)?(?<![.,])", section)),
        )
        for section in re.split(r"^#+ ", text, flags=re.MULTILINE)
    ]


def test_the_chinese_page_keeps_step() -> None:
    """Headings, commands, pictures, code and every number are those of the English page."""
    assert facts(ROOT / "docs/learn/README.zh.md") == facts(ROOT / "docs/learn/README.md")
