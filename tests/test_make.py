"""Every `make` target that a page names does what it says: the quick ones run, the long ones get right commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
_NAME = re.compile(r"(?:`|^ {0,4})make ([a-z][a-z -]+)", re.MULTILINE)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
NAMED = sorted({name for page in PAGES for line in _NAME.findall(page.read_text()) for name in line.split()})


def test_every_target_that_a_page_names_exists() -> None:
    """`make X` is a target of the Makefile."""
    assert "demo" in NAMED
    assert set(NAMED) <= TARGETS


def make(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run make with this Python and nothing to install."""
    settings = [f"PYTHON={sys.executable}", "--no-print-directory", "-o", "install"]
    done = subprocess.run(["make", *settings, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def python_commands(target: str) -> list[list[str]]:
    """Return what `make target` would start with our Python, as words without the interpreter."""
    lines = make("-n", target).stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.split()[:1] == [sys.executable]]


def help_of(words: list[str]) -> str:
    """Return the help of the command that `words` start: a module, and for foldserve its subcommand."""
    ours = words[: 3 if words[1] == "foldserve" else 2]
    command = [sys.executable, *ours, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("target", NAMED)
def test_the_commands_of_a_target_know_its_flags(target: str) -> None:
    """Each module and subcommand exists, and its help names every flag that the target gives."""
    for words in python_commands(target):
        assert words[0] == "-m", words
        if words[1] in ("pip", "pytest", "venv", "ruff", "mypy", "codespell_lib"):
            continue
        text = help_of(words)
        assert [word for word in words[2:] if word.startswith("--") and word not in text] == []


def test_verify_proves_the_newest_version_of_the_model() -> None:
    """`make verify` names the version folder and passes; what cannot be checked without data is said."""
    printed = make("verify").stdout
    assert re.search(r"models/lenet-bn/\d+: \d of 5 checks passed", printed)
    assert "FAILED" not in printed


def test_verify_takes_another_model(tmp_path: Path) -> None:
    """MODEL=... goes to the command, whose failure is make's."""
    done = make("verify", f"MODEL={tmp_path}", check=False)
    assert done.returncode != 0
    assert "expected a version folder" in done.stderr


def test_gates_say_that_they_train_nothing_where_all_is_measured() -> None:
    """On a clone `make gates` judges the published figures and leaves the tree as it is."""
    before = [(path, path.stat().st_mtime_ns) for path in (ROOT / "docs/results/compare").iterdir()]
    printed = make("gates").stdout
    assert "nothing to train" in printed
    assert "14 of 14 gates passed" in printed
    assert [(path, path.stat().st_mtime_ns) for path in (ROOT / "docs/results/compare").iterdir()] == before


def test_gpu_check_ends_with_2_without_a_gpu() -> None:
    """Nothing is written, and both reasons are said."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = make("gpu-check", check=False)
    assert "no GPU to check with; nothing was written" in done.stderr
    assert "Error 2" in done.stderr
