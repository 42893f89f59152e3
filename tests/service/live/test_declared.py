"""Pins and labels that are declared: they hold in every replica, whatever is called for and however badly edited."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from foldserve.service.errors import ArtifactInvalid
from foldserve.service.live.declared import parse_declared
from foldserve.service.settings import Settings
from tests.support import live_models
from tests.support.operator import Operator, publish, running


@pytest.fixture
def three(models: Path) -> Path:
    """The models folder with versions 1 to 3."""
    for version in (1, 2, 3):
        publish(models, version)
    return models


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.02)


def refused(operator: Operator, path: str, **body: object) -> str:
    answer = operator.call(f"models/fashion/{path}", **body)
    assert answer.status_code == 409, answer.text
    return answer.json()["error"]


def test_a_pin_and_a_label_hold_from_the_start(three):
    """By flags: version 1 answers, though 3 is the newest, and 2 answers under its label; `show` says so."""
    with running(three, pin=("fashion=1",), label=("fashion:canary=2",)) as operator:
        assert operator.answering() == 1
        assert operator.answering("&label=canary") == 2
        shown = operator.get("/v2/repository/models/fashion").json()
        assert shown["declared"] == {"latest": 1, "canary": 2}
        assert (shown["latest"], shown["pinned"]) == (1, True)
        assert "declared_lost" not in shown


def test_calls_that_contradict_are_409_and_say_where(three):
    """Promote, rollback and unload; a call that agrees is done, and what is not declared is the operator's."""
    with running(three, pin=("fashion=1",), label=("fashion:canary=2",)) as operator:
        expected = "label 'latest' of model 'fashion' is declared as version 1 by --pin; change that instead"
        assert refused(operator, "promote", version=3) == expected
        assert refused(operator, "promote") == expected
        assert refused(operator, "rollback") == expected
        assert "by --label" in refused(operator, "promote", version=3, label="canary")
        assert "take it out there first" in refused(operator, "unload")
        operator.done("models/fashion/promote", version=1)
        operator.done("models/fashion/promote", version=3, label="mine")
        assert operator.answering("&label=mine") == 3
        operator.done("models/fashion/shadow", version=3, seconds=60)
        assert operator.answering() == 1


def test_what_is_declared_wins_over_what_was_decided(three):
    """State of an earlier life says otherwise, and is back in force once nothing is declared."""
    with running(three) as operator:
        operator.done("models/fashion/promote", version=2)
        operator.done("models/fashion/unload")
    with running(three, pin=("fashion=1",)) as operator:
        assert operator.answering() == 1
    with running(three) as operator:
        assert operator.index()["1"][0] == "UNAVAILABLE"


def test_the_file_is_followed(three, tmp_path):
    """A new pin takes over by itself, through the link that a ConfigMap is changed by; an empty file is no pin."""
    for name, text in {"a": "[models.fashion]\npin = 1\n", "b": "[models.fashion]\npin = 2\n", "c": ""}.items():
        (tmp_path / name).write_text(text)
    file = tmp_path / "deployment.toml"
    file.symlink_to("a")
    with running(three, deployment_file=file, poll_seconds=0.02) as operator:
        assert operator.answering() == 1
        for name, version in {"b": 2, "c": 3}.items():
            (tmp_path / "new").symlink_to(name)
            (tmp_path / "new").rename(file)
            eventually(lambda version=version: operator.answering() == version)


BAD = {
    "no TOML": ("[models.fashion", "Expected"),
    "no text": (b"\xff\xfe", "decode"),
    "unknown member": ("[model.fashion]\npin = 1\n", "model is not known, expected models"),
    "unknown key": ("[models.fashion]\npinned = 1\n", "models.fashion.pinned is not known, expected labels or pin"),
    "no version": ('[models.fashion]\npin = "1"\n', "models.fashion.pin is '1', expected a version"),
    "version 0": ("[models.fashion.labels]\ncanary = 0\n", "models.fashion.labels.canary is '0'"),
    "true": ("[models.fashion]\npin = true\n", "expected a version"),
    "latest": ("[models.fashion.labels]\nlatest = 1\n", "expected `pin`"),
    "no label": ('[models.fashion.labels]\n"7" = 1\n', "label '7', expected a letter"),
    "no name": ('[models."../x"]\npin = 1\n', "expected as its name"),
    "no table": ("models = 3\n", "models is a int, expected a table"),
    "against a flag": ("[models.fashion]\npin = 2\n", "it declares version 2 where --pin fashion=1 is given"),
    "gone": (None, "cannot be read"),
    "a folder": ("", "cannot be read"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_a_bad_edit_keeps_what_held_and_says_so(three, tmp_path, caplog, text, said):
    """The last good state answers on, the log, `show` and a metric say why, and the next good edit counts."""
    file = tmp_path / "deployment.toml"
    file.write_text("[models.fashion]\nlabels = {canary = 2}\n")
    with running(three, pin=("fashion=1",), deployment_file=file, poll_seconds=0.02) as operator:

        def lost() -> str:
            return operator.get("/v2/repository/models/fashion").json().get("declared_lost", "")

        file.unlink()
        if said == "cannot be read" and text is not None:
            file.mkdir()
        elif text is not None:
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        eventually(lambda: said in lost())
        assert operator.answering() == 1
        assert operator.answering("&label=canary") == 2
        assert "foldserve_declared_lost 1.0" in operator.get("/metrics").text
        assert sum("what was declared before holds" in record.getMessage() for record in caplog.records) >= 1
        if file.is_dir():
            file.rmdir()
        file.write_text("[models.fashion]\nlabels = {canary = 3}\n")
        eventually(lambda: not lost())
        eventually(lambda: operator.answering("&label=canary") == 3)
        assert "foldserve_declared_lost 0.0" in operator.get("/metrics").text


def refused_start(models: Path, **settings: object) -> str:
    async def start() -> None:
        async with live_models.loaded(models, **settings):
            pass

    with pytest.raises(ArtifactInvalid) as error:
        asyncio.run(start())
    return str(error.value)


@pytest.mark.parametrize("text", ["pin = 1", None])
def test_a_service_does_not_start_from_a_bad_file(three, tmp_path, text):
    """Nothing is known to hold, so nothing is guessed."""
    file = tmp_path / "deployment.toml"
    if text is not None:
        file.write_text(text)
    assert refused_start(three, deployment_file=file).startswith(f"deployment file {file} cannot be")


def test_a_declared_version_that_is_not_there_is_not_replaced_by_another(three):
    """At the start the model is not served, rather than in a version that other replicas do not have."""
    said = "version 7, which is declared, is not there; there are [1, 2, 3]"
    assert refused_start(three, pin=("fashion=7",)) == said


def test_a_declared_version_takes_over_when_it_comes(three, tmp_path):
    """While it is not there yet, what answers goes on."""
    file = tmp_path / "deployment.toml"
    file.write_text("[models.fashion]\npin = 2\n")
    with running(three, deployment_file=file, poll_seconds=0.02) as operator:
        file.write_text("[models.fashion]\npin = 4\n")
        eventually(lambda: operator.get("/v2/repository/models/fashion").json()["declared"] == {"latest": 4})
        assert operator.answering() == 2
        publish(three, 4)
        eventually(lambda: operator.answering() == 4)


@pytest.mark.parametrize(
    "given",
    [
        *({"pin": entry} for entry in ("fashion", "fashion=0", "fashion:canary=1", "a=1,a=2")),
        *({"label": entry} for entry in ("fashion=1", "fashion:latest=1", "fashion:7=1", "a:b:c=1")),
    ],
)
def test_a_flag_that_declares_nothing_is_refused(given):
    """Model and version, with a label where it is one; and no two versions for one label."""
    with pytest.raises(ValidationError):
        Settings(**given)


def test_flags_may_be_given_several_times():
    """Each counts, as do several in one."""
    settings = Settings.from_command_line(["--pin", "a=1", "--pin", "b=2,c=3", "--label", "a:canary=2"])
    assert settings.pin == ("a=1", "b=2", "c=3")
    assert settings.label == ("a:canary=2",)


def test_a_file_may_say_little():
    """A model without a pin, and no models at all."""
    assert parse_declared("") == {}
    assert parse_declared("[models.a]\n[models.b]\npin = 3\nlabels = {stable = 2}") == {
        "a": {},
        "b": {"latest": 3, "stable": 2},
    }


def test_without_a_shared_state_a_rollback_is_one_replica_s_own(three, tmp_path):
    """Two replicas, each with its folder: the other one answers as before; what is declared, both answer with."""
    apart = {"state_dir": tmp_path / "first"}, {"state_dir": tmp_path / "second"}
    with running(three, **apart[0]) as first, running(three, **apart[1]) as second:
        first.done("models/fashion/rollback")
        assert (first.answering(), second.answering()) == (2, 3)
    file = tmp_path / "deployment.toml"
    file.write_text("[models.fashion]\npin = 1\n")
    declared = {"deployment_file": file}
    with running(three, **declared, **apart[0]) as first, running(three, **declared, **apart[1]) as second:
        assert (first.answering(), second.answering()) == (1, 1)


def test_with_a_shared_state_a_rollback_is_every_replica_s(three, tmp_path):
    """Two replicas with one folder, as on a volume that both mount: the other one follows at its next look."""
    shared = {"state_dir": tmp_path / "state", "poll_seconds": 0.05}
    with running(three, **shared) as first, running(three, **shared) as second:
        first.done("models/fashion/rollback")
        eventually(lambda: second.answering() == 2)
