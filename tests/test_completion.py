"""`foldserve completion`: what a shell offers after foldserve, asked of the shells themselves where they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foldserve.command import COMMANDS
from foldserve.completion import SHELLS, script

TEXTS = {name: command.help for name, command in COMMANDS.items()}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which this foldserve is found."""
    program = tmp_path / "foldserve"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m foldserve "$@"\n')
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def offered(path: str, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    typed = " ".join(f"'{word}'" for word in words)
    code = f"{script('bash', TEXTS)}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _foldserve; "
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    root = Path(__file__).parents[1]
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_and_files(path):
    """Each command by its beginning, the flags of the one that was typed, and files everywhere else."""
    assert offered(path, "foldserve", "") == list(COMMANDS)
    assert offered(path, "foldserve", "ben") == ["bench"]
    assert offered(path, "foldserve", "bench", "--") == ["--connections", "--help", "--json", "--model", "--seconds"]
    assert offered(path, "foldserve", "models", "READ") == ["README.md"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_names_every_command_and_is_read(shell):
    """By its own shell, where that is here."""
    text = script(shell, TEXTS)
    assert all(name in text for name in COMMANDS)
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    subprocess.run([shell, "-n"], input=text, text=True, check=True)
