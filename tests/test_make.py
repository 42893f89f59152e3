"""Every `make` target that a page names does what it says: the quick ones run, the long ones get right commands."""

import json
import os
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
    """Run make with this Python, nothing to install, and none of the variables of a make that runs these tests."""
    settings = [f"PYTHON={sys.executable}", "--no-print-directory", "-o", "install"]
    passed_on = {"ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"}
    env = {name: value for name, value in os.environ.items() if name not in passed_on}
    done = subprocess.run(["make", *settings, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def python_commands(target: str) -> list[list[str]]:
    """Return what `make target` would start with our Python, as words without the interpreter."""
    lines = make("-n", target).stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.split()[:1] == [sys.executable]]


# Asks modules for their help, each as `python -m` would, in one process: most of them import torch.
HELPS = """
import contextlib, io, json, runpy, sys
helps = []
for words in json.loads(sys.stdin.read()):
    sys.argv = [*words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    helps.append(printed.getvalue())
print(json.dumps(helps))
"""


def helps_of(commands: list[list[str]]) -> list[str]:
    """Return the help of each command: a module, and for foldserve its subcommand."""
    ours = [words[1 : 3 if words[1] == "foldserve" else 2] for words in commands]
    done = subprocess.run(
        [sys.executable, "-c", HELPS], input=json.dumps(ours), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_commands_of_targets_know_their_flags() -> None:
    """Each module and subcommand exists, and its help names every flag that a target gives."""
    commands = [(target, words) for target in NAMED for words in python_commands(target)]
    assert {words[0] for _, words in commands} == {"-m"}
    others = ("pip", "pytest", "venv", "ruff", "mypy", "codespell_lib")
    ours = [(target, words) for target, words in commands if words[1] not in others]
    for (target, words), text in zip(ours, helps_of([words for _, words in ours]), strict=True):
        assert [word for word in words[2:] if word.startswith("--") and word not in text] == [], target


def test_verify_proves_the_newest_version_of_the_model() -> None:
    """`make verify` names the version folder and passes; what cannot be checked without data is said."""
    printed = make("verify").stdout
    assert re.search(r"models/lenet-bn/\d+: \d of 6 checks passed", printed)
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
