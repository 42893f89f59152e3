"""A model that cannot be served, beside one that can: at the start as while running, the good one answers."""

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support import artifacts, damage
from tests.support.operator import OCTETS, PIXELS, Operator, publish, running
from tests.support.processes import failed, started


def junk(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"<html>")


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def wrong_answers(folder: Path) -> None:
    damage.changed(lambda model: damage.weights(model, lambda bias: bias + 1))(folder)


BROKEN = {"junk": junk, "no manifest": no_manifest, "wrong answers": wrong_answers}


@pytest.fixture(params=BROKEN.values(), ids=BROKEN)
def breaks(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return request.param


def check_the_good_one_answers(operator: Operator) -> None:
    assert operator.get("/v2/health/ready").status_code == 200
    assert operator.answering() == 1
    ((state, reason),) = operator.index("broken").values()
    assert state == "UNAVAILABLE"
    assert "broken" in reason or "golden" in reason
    answer = operator.get("/v2/models/broken/ready")
    assert (answer.status_code, answer.json()["error"]) == (503, f"model 'broken' is not served: {reason}")
    asked = operator.post("/predict?model=broken", content=PIXELS.tobytes(), headers=OCTETS)
    assert (asked.status_code, reason in asked.json()["error"]) == (503, True)
    assert operator.get("/v2/models/nowhere/ready").status_code == 404


def test_it_is_listed_with_its_reason_and_the_good_one_answers(models, breaks):
    """At the start; once mended, it is served too."""
    publish(models, 1)
    folder = publish(models, 1, "broken")
    breaks(folder)
    with running(models) as operator:
        check_the_good_one_answers(operator)
        publish(models, 2, "broken")
        operator.done("models/broken/load")
        assert operator.get("/v2/models/broken/ready").status_code == 200
        assert operator.index("broken")["2"] == ("READY", "")


def test_it_is_listed_the_same_when_it_comes_while_the_service_runs(models, breaks):
    """What a start lets through and what a poll does are one rule."""
    publish(models, 1)
    with running(models) as operator:
        breaks(publish(models, 1, "broken"))
        assert operator.call("models/broken/load").status_code == 400
        check_the_good_one_answers(operator)


def test_without_any_good_model_nothing_starts(models):
    """Exit code 3 and the reason of the first."""
    for name in ("fashion", "broken"):
        junk(publish(models, 1, name))
    code, (line,) = failed("--models-dir", str(models))
    assert code == 3
    assert str(models / "broken") in line


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_starts_with_the_good_one(models, workers):
    """With one worker and with two."""
    publish(models, 1)
    junk(publish(models, 1, "broken"))
    flags = ("--models-dir", str(models), "--workers", str(workers))
    with started(*flags, ready_lines=workers) as (_, address):
        answer = httpx.post(f"{address}/predict?model=fashion", content=PIXELS.tobytes(), headers=OCTETS)
        found = [entry["probabilities"] for entry in answer.json()["predictions"]]
        expected = artifacts.classify(PIXELS, artifacts.classifier_weights(1))["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert httpx.get(f"{address}/v2/models/broken/ready").status_code == 503
        assert httpx.get(f"{address}/v2/health/ready").status_code == 200
