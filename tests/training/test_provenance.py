"""Provenance: the revision is that of the code that ran, and the environment names no person and no path."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from foldserve.training import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a file that is committed in a repository of its own."""
    file = tmp_path / "package" / "module.py"
    file.parent.mkdir()
    file.write_text("first = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "First")
    return file


def test_the_revision_is_the_commit(source: Path) -> None:
    """A clean tree is named by the commit that git itself reports."""
    assert provenance.revision(source) == git(source.parent, "rev-parse", "HEAD")


def test_uncommitted_changes_are_said(source: Path) -> None:
    """Weights from changed code must not point at the unchanged commit."""
    source.write_text("first = 2\n")
    assert provenance.revision(source) == git(source.parent, "rev-parse", "HEAD") + "+dirty"


def test_code_outside_a_repository_is_unknown(tmp_path: Path) -> None:
    """An unpacked archive has no revision."""
    assert provenance.revision(tmp_path / "module.py") == "unknown"


def test_code_installed_inside_somebody_elses_repository_is_unknown(source: Path) -> None:
    """Their commit says nothing about our code."""
    installed = source.parent / "site-packages" / "module.py"
    installed.parent.mkdir()
    installed.write_text("")
    assert provenance.revision(installed) == "unknown"


def test_a_git_hooks_environment_does_not_mislead(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a hook GIT_DIR names another repository than the one the code lies in."""
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert len(provenance.revision(source)) == 40


def test_without_git_the_revision_is_unknown(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without git trains all the same."""
    monkeypatch.setenv("PATH", "")
    assert provenance.revision(source) == "unknown"


def test_the_environment_names_versions_and_hardware_and_nothing_private() -> None:
    """It goes into public manifests: versions and processor, but no path, user or host."""
    environment = provenance.environment()
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    text = json.dumps(environment)
    assert str(Path.home()) not in text
    assert "/" not in text.replace(environment["cpu"], "")


def test_the_processor_is_read_as_linux_states_it(tmp_path: Path) -> None:
    """The first model name counts; where there is none, something else is said rather than nothing."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Example CPU: 3000\n")
    assert provenance.cpu_model(cpuinfo) == "Example CPU: 3000"
    assert provenance.cpu_model(tmp_path / "absent")
