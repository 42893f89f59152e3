"""docs/training.md as a reader uses it: every command and the Python block, as they stand, in the order of the page."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from foldserve.command import main
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import pages
from tests.support.class_folders import FRUIT, save_classes
from tests.support.live import serve

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/training.md").read_text()
COMMANDS = pages.lines("docs/training.md")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page's reader stands: a folder of pictures, one of them outside, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_classes(tmp_path / "flowers", 10)
    shutil.copy(next((tmp_path / "flowers" / FRUIT[0]).glob("*.jpg")), "rose.jpg")
    return tmp_path


def test_the_page_does_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained, served, asked and proved again, each by the line that the page has for it."""
    train, service, ask, verify = COMMANDS
    assert main(shlex.split(train)[1:]) == 0, capsys.readouterr()
    assert shlex.split(service) == ["foldserve", "serve", "--models-dir", "models"]
    with serve(create_app(Settings(models_dir=folder / "models", provider="cpu", buckets=(1, 4)))) as url:
        asked = ask.replace("localhost:8000", url.removeprefix("http://"))
        answer = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, check=True).stdout
    assert any(f'"label":"{name}"' in answer for name in FRUIT), answer
    assert main(shlex.split(verify)[1:]) == 0
    assert "6 of 6 checks passed" in capsys.readouterr().out


def test_the_python_block_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On objects with the attributes that torchvision documents for CIFAR10."""
    generator = np.random.default_rng(0)

    def cifar10(root: str, train: bool) -> SimpleNamespace:
        rows = 40 if train else 20
        images = generator.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(data=images, targets=[row % 2 for row in range(rows)], classes=["cat", "dog"])

    module = ModuleType("torchvision.datasets")
    module.CIFAR10 = cifar10  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    made: dict[str, object] = {}
    exec(compile(block, "docs/training.md", "exec"), made)
    assert made["data"].class_names == ("cat", "dog")  # type: ignore[attr-defined]


def test_the_shipped_version_is_proved_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The line of docs/lenet.md, without test images at hand or with them."""
    (verify,) = pages.lines("docs/lenet.md")
    assert shlex.split(verify) == ["foldserve", "verify", "models/lenet-bn/1"]
    assert main(["verify", str(ROOT / "models/lenet-bn/1"), "--data-dir", str(ROOT / "docs")]) == 0
    assert "4 of 6 checks passed, 2 not checked" in capsys.readouterr().out


@pytest.mark.skipif(not os.environ.get("PAGES_TEST"), reason="trains for minutes: make pages-test")
def test_the_trainings_of_the_book_run(tmp_path: Path) -> None:
    """Every line of docs/lenet.md that needs minutes, as it stands; each publishes the next version."""
    (block,) = (block for block in pages.blocks("docs/lenet.md", "sh") if block.needs == "minutes")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("foldserve", "foldserve"), ("torchrun", "torch.distributed.run")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    lines = block.text.splitlines()
    for number, line in enumerate(lines, start=1):
        subprocess.run(["sh", "-e", "-c", line], cwd=tmp_path, env=environment, check=True, timeout=1800)
        assert (tmp_path / f"models/lenet-bn/{number}/model.onnx").is_file()


def test_pages_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """What the page names between backticks, the command knows."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert named
    assert named <= known, sorted(named - known)
