"""`foldserve bench`: a bounded load on this machine, its table, and what it refuses to ask."""

import json
import re
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from foldserve import exit_codes
from foldserve.command import main
from foldserve.service.app import create_app
from foldserve.service.keys import new_key
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A service that asks for a key, and the key."""
    root = tmp_path_factory.mktemp("bench")
    artifacts.publish_classifier(root / "models")
    artifacts.publish_echo(root / "models")
    key, line = new_key("bench", ["infer", "read"])
    (root / "keys").write_text(f"{line}\n")
    closed = {"keys_file": root / "keys", "closed_scopes": ("infer", "read")}
    with serve(create_app(Settings(models_dir=root / "models", provider="cpu", buckets=(1, 8), **closed))) as url:
        yield url, key


@pytest.mark.parametrize("model", ["fashion", "echo"])
def test_every_answer_is_counted(keyed, model, monkeypatch, capsys):
    """Pictures and rows: what it says it got is what the service says it gave; quantiles are in order."""
    url, key = keyed
    monkeypatch.setenv("API_KEY", key)

    def given() -> int:
        stats = httpx.get(f"{url}/v2/models/{model}/stats", headers={"X-API-Key": key}).json()["model_stats"][0]
        return stats["inference_stats"]["success"]["count"]

    before = given()
    words = ["bench", url, "--model", model, "--connections", "1,3", "--seconds", "0.2", "--json"]
    assert main(words) == exit_codes.DONE
    rows = json.loads(capsys.readouterr().out)["loads"]
    assert [row["connections"] for row in rows] == [1, 3]
    assert sum(row["answered"] for row in rows) == given() - before > 4
    assert all(0 < row["p50 ms"] <= row["p95 ms"] <= row["p99 ms"] for row in rows)


def test_the_table_is_for_people(keyed, monkeypatch, capsys):
    """A line of names and one for each load, under one another."""
    url, key = keyed
    monkeypatch.setenv("API_KEY", key)
    assert main(["bench", url, "--connections", "2", "--seconds", "0.1"]) == exit_codes.DONE
    names, row = capsys.readouterr().out.splitlines()
    assert names.split() == ["connections", "answered", "refused", "answers/s", "p50", "ms", "p95", "ms", "p99", "ms"]
    assert re.fullmatch(r" +2 +\d+ +0 +\d+( +\d+\.\d+){3}", row)
    assert len(names) == len(row)


def test_a_missing_key_is_said_by_the_service(keyed, monkeypatch, capsys):
    """In its own sentence."""
    monkeypatch.delenv("API_KEY", raising=False)
    assert main(["bench", keyed[0]]) == exit_codes.FAILED
    assert "no API key, expected one as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["http://example.org"], "expected an http address of this machine"),
        (["https://127.0.0.1:1"], "expected an http address of this machine"),
        (["http://10.0.0.7:8000"], "expected an http address of this machine"),
        (["http://127.0.0.1.example.org"], "expected an http address of this machine"),
        (["127.0.0.1:1", "--connections", "5000"], "expected numbers from 1 to 256"),
        (["127.0.0.1:1", "--connections", "x"], "invalid literal"),
        (["127.0.0.1:1", "--seconds", "3600"], "expected more than 0 and at most 60"),
    ],
)
def test_a_load_stays_small_and_on_this_machine(words, sentence, capsys):
    """Before anything is sent."""
    assert main(["bench", *words]) == exit_codes.USAGE
    assert sentence in capsys.readouterr().err


def test_nobody_there_is_one_line(capsys):
    """And so is a service that closes its connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        closing = threading.Thread(target=lambda: listener.accept()[0].close())
        closing.start()
        assert main(["bench", f"http://127.0.0.1:{port}"]) == exit_codes.FAILED
        closing.join()
    assert main(["bench", f"http://127.0.0.1:{port}"]) == exit_codes.FAILED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "refused" in lines[1]


def test_the_models_that_there_are_are_named(keyed, monkeypatch, capsys):
    """Where another one is asked for."""
    monkeypatch.setenv("API_KEY", keyed[1])
    assert main(["bench", keyed[0], "--model", "none"]) == exit_codes.USAGE
    assert "model 'none' is not served; there are ['echo', 'fashion']" in capsys.readouterr().err
