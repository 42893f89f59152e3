"""Versions that their publisher did not promote: listed with the reason, and live only when somebody says so."""

import json
from pathlib import Path

import pytest

from tests.support import artifacts
from tests.support.operator import publish, running
from tests.support.processes import failed

WORSE = "accuracy 0.1300, that of version 1 is 0.8900"
HELD = ("UNAVAILABLE", f"not promoted: {WORSE}")


def held(models: Path, version: int, **keys: object) -> Path:
    folder = publish(models, version)
    artifacts.rewrite_manifest(folder, promotion={"promoted": False, "reason": WORSE}, **keys)
    return folder


def rewrite(folder: Path, **keys: object) -> None:
    artifacts.rewrite_manifest(folder, **keys)


@pytest.mark.parametrize("has_state", [True, False], ids=["state folder", "no state folder"])
def test_it_does_not_go_live_by_itself(models, has_state):
    """Neither beside a live version nor at the next start; a newer one that is promoted does."""
    state = {} if has_state else {"state_dir": None}
    publish(models, 1)
    with running(models, **state) as operator:
        held(models, 2)
        operator.done("models/fashion/load")
        assert operator.answering() == 1
        assert operator.index()["2"] == HELD
    with running(models, **state) as operator:
        assert operator.answering() == 1
        publish(models, 3)
        operator.done("models/fashion/load")
        assert operator.answering() == 3
        assert operator.index()["2"] == HELD


def test_an_operator_s_decision_wins(models):
    """A promote pins it, over a restart too; a rollback goes back, and past it where nobody chose it."""
    publish(models, 1)
    held(models, 2)
    with running(models) as operator:
        operator.done("models/fashion/promote", version=2)
        assert operator.answering() == 2
    with running(models) as operator:
        assert operator.answering() == 2
        publish(models, 3)
        operator.done("models/fashion/promote", version=3)
        assert operator.answering() == 3
    with running(models, keep_warm=0) as operator:
        operator.done("models/fashion/rollback")
        assert operator.answering() == 1


def test_to_follow_the_newest_means_the_newest_that_is_promoted(models):
    """A promote that names no version passes it over, and so does a service that promotes nothing by itself."""
    for version in (1, 2):
        publish(models, version)
    held(models, 3)
    with running(models) as operator:
        operator.done("models/fashion/promote", version=1)
        operator.done("models/fashion/promote")
        assert operator.answering() == 2
    with running(models, promote_new=False, state_dir=models.parent / "other") as operator:
        assert operator.answering() == 2


def test_a_manifest_that_changes_its_mind_is_followed(models):
    """What a publisher allows later goes live at the next look; a comparison may look at it before."""
    publish(models, 1)
    folder = held(models, 2)
    with running(models) as operator:
        operator.done("models/fashion/shadow", version=2, seconds=60)
        assert operator.answering() == 1
        operator.call("models/fashion/load")
        rewrite(folder, promotion={"promoted": True})
        operator.done("models/fashion/load")
        assert operator.answering() == 2


def test_with_nothing_promoted_nothing_starts(models):
    """Exit code 3 and the reason."""
    held(models, 1)
    code, (line,) = failed("--models-dir", str(models))
    assert code == 3
    assert f"is not promoted: {WORSE}" in json.loads(line)["event"]


def test_listings_name_the_accuracy_of_what_is_live(models, caplog):
    """The index, `/v2`, and the log where `latest` moves; without a measured one, nothing is made up."""
    publish(models, 1)
    with running(models) as operator:
        assert operator.done("index")[0]["accuracy"] == operator.get("/v2").json()["models"][0]["accuracy"] == 0.9
        rewrite(publish(models, 2), accuracy={"test": 0.89})
        with caplog.at_level("INFO"):
            operator.done("models/fashion/load")
        assert [row["accuracy"] for row in operator.done("index") if row["version"] == "2"] == [0.89]
        assert operator.get("/v2").json()["models"][0]["accuracy"] == 0.89
        (moved,) = [record for record in caplog.records if record.getMessage() == "latest moved"]
        assert vars(moved)["accuracy"] == 0.89
        rewrite(publish(models, 3), accuracy=None)
        operator.done("models/fashion/load")
        assert operator.answering() == 3
        assert operator.get("/v2").json()["models"][0]["accuracy"] is None
