"""`foldserve models` and `foldserve keys`, typed against a running service."""

import json
import time
from datetime import datetime

import pytest

from foldserve.command import main
from foldserve.service.keys import read_keys
from tests.support.operator import publish, running


@pytest.fixture
def typed(models, capsys, monkeypatch):
    """A function that types a command and returns its exit code and what it printed."""
    publish(models, 1)
    publish(models, 2)
    with running(models) as operator:
        monkeypatch.setenv("API_KEY", operator.headers["X-API-Key"])

        def type_in(*words: str) -> tuple[int, str]:
            code = main(["models", "--url", str(operator.base_url), *words])
            said = capsys.readouterr()
            return code, said.out or said.err

        type_in.operator = operator
        yield type_in


def test_a_version_is_promoted_compared_and_taken_back(typed):
    """Each command does what its call does, and shows where that led."""
    assert json.loads(typed("load", "fashion", "--version", "1")[1])["latest"] == 2
    code, table = typed("list")
    assert code == 0
    assert [line.split()[:4] for line in table.splitlines()] == [
        ["model", "version", "state", "labels"], ["fashion", "1", "READY"], ["fashion", "2", "READY", "latest"],
    ]  # fmt: skip
    assert json.loads(typed("promote", "fashion", "--version", "1")[1])["latest"] == 1
    assert typed.operator.answering() == 1
    assert json.loads(typed("shadow", "fashion", "--version", "2", "--seconds", "60")[1])["shadow"]["version"] == 2
    assert json.loads(typed("shadow", "fashion", "--end")[1])["shadow"] is None
    shown, given = (json.loads(typed("show", "fashion", *more)[1])["history"][0]["at"] for more in ([], ["--json"]))
    assert datetime.fromisoformat(shown).timestamp() == int(given) > time.time() - 600
    assert json.loads(typed("rollback", "fashion")[1])["latest"] == 2
    assert json.loads(typed("promote", "fashion", "--version", "1", "--label", "stable")[1])["labels"] == {"stable": 1}
    assert json.loads(typed("show", "fashion")[1])["pinned"] is True
    assert typed("unload", "fashion") == (0, "fashion is unloaded\n")


def test_a_refusal_is_one_line_and_an_exit_code(typed, monkeypatch, tmp_path):
    """The service's own sentence with its status; a key that is wrong, or a service that is not there, alike."""
    assert typed("load", "nobody") == (1, "404: model 'nobody' does not exist; there are ['fashion']\n")
    (tmp_path / "key").write_text("wrong\n")
    code, said = typed("--key-file", str(tmp_path / "key"), "unload", "fashion")
    assert (code, said[:4]) == (1, "401:")
    code, said = typed("list", "--url", "http://127.0.0.1:9")  # behind the call, where other commands have it
    assert (code, said.startswith("no answer from http://127.0.0.1:9: ")) == (1, True)
    code, said = typed("unload", "fashion", "--key-file", str(tmp_path / "key"))
    assert (code, said[:4]) == (1, "401:")
    code, said = typed("--url", "http://127.0.0.1:9", "list")
    assert code == 1
    assert said.startswith("no answer from http://127.0.0.1:9: ")
    assert said.count("\n") == 1
    code, said = typed("--key-file", str(tmp_path / "none"), "list")
    assert (code, said) == (1, f"key file {tmp_path / 'none'} cannot be read: No such file or directory\n")


def test_a_new_key_is_shown_once_beside_its_line(capsys, tmp_path):
    """The line goes into the file and holds the digest alone."""
    assert main(["keys", "new", "--name", "ci", "--scopes", "infer,metrics"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    key, line = first.rpartition(": ")[2], second.rpartition(":  ")[2]
    (tmp_path / "keys").write_text(line)
    (known,) = read_keys(tmp_path / "keys")
    assert (known.name, known.scopes) == ("ci", frozenset({"infer", "metrics"}))
    assert key not in line
    for words in (["--name", "a b", "--scopes", "infer"], ["--name", "ci", "--scopes", "fly"]):
        assert main(["keys", "new", *words]) == 1
