"""Where decisions are kept: what is lost, damaged or held by others, and what holds meanwhile."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from foldserve.service.errors import ArtifactInvalid, NotReady
from foldserve.service.live.state import ROLLBACK, ModelState
from foldserve.service.live.state_dir import StateDir
from foldserve.service.metrics import Metrics
from foldserve.service.request_context import Caller
from tests.support.operator import publish, running


class Kept:
    """A state folder as one process sees it, with what it counts."""

    def __init__(self, folder: Path, **options) -> None:
        self.metrics = Metrics()
        self.state = StateDir(folder, self.metrics, **options)
        self.state.make()

    def value(self, metric: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"foldserve_{metric}")

    def roll_back(self, target: int) -> ModelState:
        caller = Caller("ops", "10.0.0.7")
        return self.state.change("m", lambda state: state.moved("latest", target, ROLLBACK, target + 1, caller))


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def emptied(folder: Path) -> None:
    (folder / "state.json").unlink()


def replaced_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def replaced_by_a_pipe(folder: Path) -> None:
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")


def cut_off(folder: Path) -> None:
    data = (folder / "state.json").read_bytes()
    (folder / "state.json").write_bytes(data[: len(data) // 2])


def of_a_newer_release(folder: Path) -> None:
    document = json.loads((folder / "state.json").read_text()) | {"format": 2}
    (folder / "newer.json").write_text(json.dumps(document))
    (folder / "newer.json").rename(folder / "state.json")


@pytest.mark.parametrize(
    "lose", [removed, emptied, replaced_by_a_file, replaced_by_a_pipe, cut_off, of_a_newer_release]
)
def test_what_was_decided_holds_while_its_file_is_lost(tmp_path, caplog, lose):
    """The last decision stays, the loss is said once, changes are refused with the reason until the file is back."""
    kept = Kept(tmp_path / "state")
    kept.roll_back(1)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    lose(tmp_path / "state")
    for _ in range(3):
        assert kept.state.of("m").labels == {"latest": 1}
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(lines) == 1
    assert str(tmp_path / "state") in lines[0]
    assert kept.value("state_lost") == 1
    with pytest.raises(NotReady, match=r"state (file|folder)"):
        kept.roll_back(2)
    assert kept.value("refused_changes_total") == 1
    removed(tmp_path / "state") if (tmp_path / "state").is_dir() else (tmp_path / "state").unlink(missing_ok=True)
    (tmp_path / "copy").rename(tmp_path / "state")
    assert kept.roll_back(3).labels == {"latest": 3}
    assert kept.value("state_lost") == 0


def test_a_worker_that_starts_while_the_file_is_lost_follows_the_last_decision(tmp_path):
    """Workers leave it to one another; with nothing left behind, an unreadable file ends the start."""
    shared = tmp_path / "shared"
    shared.mkdir()
    first = Kept(tmp_path / "state", spare=shared)
    first.roll_back(1)
    for lose in (cut_off, removed):
        lose(tmp_path / "state")
        assert Kept(tmp_path / "state", spare=shared).state.of("m").labels == {"latest": 1}
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state/state.json").write_text("{")
    with pytest.raises(ArtifactInvalid, match=r"state\.json cannot be read"):
        Kept(tmp_path / "state").state.read()


def test_a_folder_that_goes_before_anything_was_decided_is_noticed(tmp_path):
    """A decision written into a folder that was mounted over would be lost with it."""
    kept = Kept(tmp_path / "state")
    assert kept.state.read() == {}
    removed(tmp_path / "state")
    assert kept.state.read() == {}
    assert kept.value("state_lost") == 1
    with pytest.raises(NotReady, match="is gone"):
        kept.roll_back(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loaded": "12"}, "'12', expected a list"),
        ({"loaded": [0]}, "version 0, expected a positive whole number"),
        ({"labels": {"latest": "1"}}, "version '1', expected"),
        ({"labels": {"../x": 1}}, "label '../x', expected"),
        ({"labels": [1]}, "has no attribute 'items'"),
        ({"is_unloaded": "no"}, "'no', expected a bool"),
        ({"shadow": {"version": 1, "since": 0, "until": "soon"}}, "time 'soon', expected seconds"),
        ({"shadow": {"version": 1, "since": 0, "until": float("inf")}}, "time inf, expected seconds"),
        ({"shadow": {"version": 1}}, "missing 2 required"),
        ({"history": [{"at": 1.0}]}, "missing"),
        ({"history": None}, "NoneType"),
    ],
)
def test_damage_is_named_in_one_sentence_with_its_file(tmp_path, change, said):
    """Whatever is wrong inside: what stands there, and what was expected."""
    kept = Kept(tmp_path)
    kept.roll_back(1)
    document = json.loads((tmp_path / "state.json").read_text())
    document["models"]["m"] |= change
    (tmp_path / "state.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactInvalid, match=r"state\.json cannot be read") as caught:
        Kept(tmp_path).state.read()
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "null", "[]", "[" * 100_000, '{"models": {}}', '{"format": 2}', "\0"])
def test_a_file_that_is_no_state_at_all_is_named(tmp_path, text):
    """Empty, of another kind, or from another release."""
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ArtifactInvalid, match=r"state\.json cannot be read"):
        Kept(tmp_path).state.read()


def test_a_lock_that_others_hold_ends_in_a_sentence(tmp_path):
    """A change waits for a while, and no longer; a pipe in the lock's place holds up nobody."""
    kept = Kept(tmp_path, lock_seconds=0.1)
    with (tmp_path / "state.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(NotReady, match=r"another process has held state\.lock for 0\.1 s"):
            kept.roll_back(1)
    assert kept.roll_back(1).labels == {"latest": 1}
    (tmp_path / "state.lock").unlink()
    os.mkfifo(tmp_path / "state.lock")
    assert kept.roll_back(2).labels == {"latest": 2}


def test_history_knows_who_and_from_where_and_older_releases_still_read_it(tmp_path):
    """Callers stand beside the moves; a file that an older release wrote again has moves without them."""
    Kept(tmp_path).roll_back(1)
    move = Kept(tmp_path).state.of("m").history[0]
    assert (move.key, move.address, move.target) == ("ops", "10.0.0.7", 1)
    document = json.loads((tmp_path / "state.json").read_text())
    entry = document["models"]["m"]
    assert set(entry["history"][0]) == {"at", "label", "action", "source", "target"}
    entry["history"].append(entry["history"][0])
    (tmp_path / "state.json").write_text(json.dumps(document))
    assert [move.key for move in Kept(tmp_path).state.of("m").history] == [None, None]


def test_a_lost_folder_is_told_over_http_and_undoes_no_rollback(models):
    """Admin calls are 503, `show` says why, the history names the operator, and the rolled back version answers on."""
    for version in (1, 2):
        publish(models, version)
    with running(models) as operator:
        shown = operator.done("models/fashion/rollback")
        assert [(move["key"], move["address"]) for move in shown["history"]] == [("operator", "127.0.0.1")]
        shutil.rmtree(models.parent / "state")
        for call in ("promote", "rollback", "unload", "shadow"):
            answer = operator.call(f"models/fashion/{call}", version=2)
            assert answer.status_code == 503, call
            assert "state f" in answer.json()["error"]
        operator.done("models/fashion/load")
        assert operator.answering() == 1
        assert "is gone" in operator.get("/v2/repository/models/fashion").json()["state_lost"]
