"""Versions that come, go and are pointed at while the service answers, through the calls an operator makes."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from foldserve.service.app import create_app
from foldserve.service.errors import ArtifactInvalid
from foldserve.service.settings import Settings
from tests.support import artifacts, v2_messages
from tests.support.operator import EXPECTED, OCTETS, PIXELS, Operator, publish, running


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_a_new_version_takes_over_once_it_is_loaded(models):
    """`load` returns when the new version is proved and answers; the old one stays warm and can still be asked."""
    publish(models, 1)
    with running(models) as operator:
        assert operator.answering() == 1
        publish(models, 2)
        assert operator.answering() == 1
        operator.done("models/fashion/load")
        assert operator.answering() == 2
        assert operator.answering("&version=1") == 1
        assert operator.index() == {"1": ("READY", ""), "2": ("READY", "")}
        assert operator.get("/v2/models/fashion").json()["versions"] == ["1", "2"]


def test_a_new_folder_is_found_without_being_told(models):
    """Each worker looks at the models folder from time to time."""
    publish(models, 1)
    changed = threading.Event()
    with running(models, poll_seconds=0.02) as operator:
        operator.app.state.registry.changed.append(changed.set)
        publish(models, 2)
        while operator.answering() == 1:
            assert changed.wait(20)
        assert operator.answering() == 2


def test_only_the_last_versions_stay_in_memory(models):
    """One version stays warm beside the one that answers; the older ones are drained and leave."""
    publish(models, 1)
    with running(models) as operator:
        for version in (2, 3):
            publish(models, version)
            operator.done("models/fashion/load")
        assert operator.index() == {"1": ("UNAVAILABLE", "not loaded"), "2": ("READY", ""), "3": ("READY", "")}
        assert "is served in versions 2, 3, not 1" in refused(
            operator.post("/predict?model=fashion&version=1", content=PIXELS.tobytes(), headers=OCTETS), 404
        )
        assert 'foldserve_latest_version{model="fashion"} 3.0' in operator.get("/metrics").text
        while operator.get("/metrics").text.count("foldserve_model_info{") > 2:  # version 1 drains beside the answers
            pass


def test_a_version_that_was_promoted_leaves_once_it_is_superseded(models):
    """A promote loads what it needs, and keeps it no longer than its label points at it."""
    for version in (1, 2):
        publish(models, version)
    with running(models, keep_warm=0) as operator:
        for version in (1, 2, 1):
            operator.done("models/fashion/promote", version=version)
            assert [row["version"] for row in operator.done("index") if row["state"] == "READY"] == [str(version)]


def test_a_rollback_is_immediate_and_pins_until_the_next_promote(models):
    """After a rollback, newer versions load but do not take over; a promote of the newest lets them again."""
    publish(models, 1)
    with running(models) as operator:
        publish(models, 2)
        operator.done("models/fashion/load")
        shown = operator.done("models/fashion/rollback")
        assert (shown["latest"], shown["pinned"]) == (1, True)
        assert operator.answering() == 1
        publish(models, 3)
        operator.done("models/fashion/load")
        assert operator.answering() == 1
        shown = operator.done("models/fashion/promote", version=3)
        assert (shown["latest"], shown["pinned"]) == (3, False)
        assert operator.answering() == 3
        assert [(move["action"], move["source"], move["target"]) for move in shown["history"]] == [
            ("rollback", 2, 1),
            ("promote", 1, None),
        ]


def test_each_rollback_goes_one_step_further_back(models):
    """Never forward again to the version that was left; a promote starts anew, and a restart changes nothing of it."""
    for version in (1, 2, 3, 4):
        publish(models, version)
    with running(models) as operator:
        assert [operator.done("models/fashion/rollback")["latest"] for _ in range(2)] == [3, 2]
    with running(models) as operator:
        assert operator.done("models/fashion/rollback")["latest"] == 1
        assert "nothing before version 1" in refused(operator.call("models/fashion/rollback"), 400)
        operator.done("models/fashion/promote", version=3)
        assert operator.done("models/fashion/rollback")["latest"] == 1
        for version in (1, 3, 2):
            operator.done("models/fashion/promote", version=version, label="stable")
        labels = [operator.done("models/fashion/rollback", label="stable")["labels"]["stable"] for _ in range(2)]
        assert labels == [3, 1]
        assert "nothing before version 1" in refused(operator.call("models/fashion/rollback", label="stable"), 400)


def test_a_rollback_survives_a_restart(models):
    """The pin is on disk, not in the process."""
    for version in (1, 2):
        publish(models, version)
    with running(models) as operator:
        assert operator.answering() == 2
        operator.done("models/fashion/rollback")
    with running(models) as operator:
        assert operator.answering() == 1
        operator.done("models/fashion/promote")
        assert operator.answering() == 2


def test_labels_are_pointers_of_their_own(models):
    """stable and canary choose their versions by query and by path, whatever latest does, and roll back alone."""
    for version in (1, 2, 3):
        publish(models, version)
    with running(models) as operator:
        operator.done("models/fashion/promote", version=1, label="stable")
        operator.done("models/fashion/promote", version=2, label="canary")
        assert [operator.answering(f"&label={label}") for label in ("stable", "canary", "latest")] == [1, 2, 3]
        assert operator.index() == {"1": ("READY", ""), "2": ("READY", ""), "3": ("READY", "")}
        operator.done("models/fashion/promote", version=2, label="stable")
        assert operator.answering("&label=stable") == 2
        operator.done("models/fashion/rollback", label="stable")
        assert operator.answering("&label=stable") == 1
        body, _ = v2_messages.request({"image": PIXELS})
        answer = operator.post("/v2/models/fashion/labels/stable/infer", content=body)
        assert answer.json()["model_version"] == "1"
        assert operator.get("/v2/models/fashion/labels/canary/ready").status_code == 200
        assert "has no label 'blue'" in refused(operator.get("/v2/models/fashion/labels/blue/ready"), 404)
        rows = {row["version"]: row.get("labels") for row in operator.done("index")}
        assert rows == {"1": ["stable"], "2": ["canary"], "3": ["latest"]}


def test_version_and_label_together_are_refused(fashion):
    """One request, one choice."""
    with running(fashion) as operator:
        assert "both version and label" in refused(operator.post("/predict?version=1&label=stable"), 400)


def test_without_a_state_folder_pointers_do_not_move(models):
    """What could not be kept over a restart is refused with the reason; loading the newest needs no decision."""
    publish(models, 1)
    with running(models, state_dir=None) as operator:
        publish(models, 2)
        for path in ("unload", "promote"):
            assert "FOLDSERVE_STATE_DIR" in refused(operator.call(f"models/fashion/{path}"), 503)
        operator.done("models/fashion/load")
        assert operator.answering() == 2
        assert "FOLDSERVE_STATE_DIR" in refused(operator.call("models/fashion/rollback"), 503)


def test_an_unloaded_model_is_gone_until_it_is_loaded(fashion_and_echo):
    """Its name answers 404, the others go on, and a restart changes nothing about it."""
    with running(fashion_and_echo) as operator:
        operator.done("models/echo/unload")
        assert operator.get("/v2/models").json() == {"models": ["fashion"]}
        assert operator.index("echo") == {"1": ("UNAVAILABLE", "not loaded")}
        refused(operator.get("/v2/models/echo"), 404)
    with running(fashion_and_echo) as operator:
        assert operator.get("/v2/models").json() == {"models": ["fashion"]}
        operator.done("models/echo/load")
        assert operator.get("/v2/models").json() == {"models": ["echo", "fashion"]}


def test_with_promote_new_off_a_version_waits_for_its_promotion(models):
    """New versions are loaded when asked and answer under their number; latest moves by hand alone."""
    publish(models, 1)
    with running(models, promote_new=False) as operator:
        publish(models, 2)
        operator.done("models/fashion/load")
        assert operator.answering() == 1
        operator.done("models/fashion/load", version=2)
        assert operator.answering() == 1
        assert operator.answering("&version=2") == 2
        operator.done("models/fashion/promote", version=2)
        assert operator.answering() == 2


def half(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])


def flip_weight_bit(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 0x40
    (folder / "model.onnx").write_bytes(data)


def lie(folder: Path) -> None:
    artifacts.rewrite_manifest(folder, version=7)


@pytest.mark.parametrize("damage", [half, flip_weight_bit, lie, shutil.rmtree])
def test_a_refused_version_says_why_and_the_old_one_goes_on(models, damage):
    """The reason stands in the answer, in the index and in a metric; the same folder, mended, is taken."""
    publish(models, 1)
    with running(models) as operator:
        folder = publish(models, 2)
        damage(folder)
        folder.mkdir(exist_ok=True)
        sentence = refused(operator.call("models/fashion/load"), 400)
        assert "version 2 was refused, and what served goes on" in sentence
        state, reason = operator.index()["2"]
        assert state == "UNAVAILABLE"
        assert reason in sentence
        assert operator.answering() == 1
        assert operator.get("/v2/health/ready").status_code == 200
        assert 'foldserve_refused_versions_total{model="fashion"} 1.0' in operator.get("/metrics").text
        shutil.rmtree(folder)
        publish(models, 2)
        operator.done("models/fashion/load")
        assert operator.answering() == 2


def test_a_refused_promotion_leaves_every_pointer_where_it_was(models):
    """Nothing is written for a version that was not proved."""
    for version in (1, 2):
        publish(models, version)
    with running(models) as operator:
        flip_weight_bit(publish(models, 3))
        refused(operator.call("models/fashion/promote", version=3, label="stable"), 400)
        shown = operator.get("/v2/repository/models/fashion").json()
        assert (shown["labels"], shown["history"], shown["latest"]) == ({}, [], 2)


def test_the_service_starts_with_the_old_version_where_the_new_one_is_damaged(models):
    """A bad publication does not turn a restart into an outage."""
    publish(models, 1)
    flip_weight_bit(publish(models, 2))
    with running(models) as operator:
        assert operator.answering() == 1
        assert "SHA-256" in operator.index()["2"][1]


def test_requests_never_fail_while_versions_change_under_them(models):
    """Swaps under load: every answer is whole, and exactly that of the version its header names."""
    for version in (1, 2, 3):
        publish(models, version)
    failures: list[str] = []
    seen: set[int] = set()
    ended = threading.Event()

    def load(operator: Operator) -> None:
        while not ended.is_set():
            try:
                seen.add(operator.answering())
            except AssertionError as err:
                failures.append(str(err))

    with running(models, keep_warm=0) as operator:
        threads = [threading.Thread(target=load, args=(operator,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(12):
            operator.done("models/fashion/promote", version=1 + turn % 3)
        ended.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert seen == {1, 2, 3}
        assert len(operator.app.state.registry.all_versions()) <= 2


def test_fifty_calls_at_once_load_once(models):
    """One load at a time, the last decision holds, and every call returns."""
    publish(models, 1)
    with running(models) as operator:
        publish(models, 2)
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(operator.call("models/fashion/load").status_code))
            for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 50
        assert operator.answering() == 2
        assert len(operator.app.state.registry.all_versions()) == 2


def test_a_shadow_is_compared_and_never_heard(models):
    """The candidate answers the same inputs; agreement, confidence and latency are shown, and latest stays."""
    publish(models, 1)
    artifacts.publish_classifier(models, version=2, seed=1)  # the same weights: it has to agree in everything
    publish(models, 3)
    with running(models, promote_new=False) as operator:
        operator.done("models/fashion/promote", version=1)
        for candidate, agrees in ((2, True), (3, False)):
            shown = operator.done("models/fashion/shadow", version=candidate, seconds=600)
            assert shown["shadow"]["version"] == candidate
            for _ in range(5):
                assert operator.answering() == 1
            report = operator.compared(20)
            expected = (EXPECTED[1].argmax(axis=1) == EXPECTED[1 if agrees else 3].argmax(axis=1)).mean()
            assert report["rows"] == 20
            assert report["agreement"] == pytest.approx(expected)
            assert (report["largest_difference"] == 0) == agrees
            shift = EXPECTED[1 if agrees else 3].max(axis=1).mean() - EXPECTED[1].max(axis=1).mean()
            assert report["confidence_shift"] == pytest.approx(shift, abs=1e-5)
            assert report["live_infer_ms"] > 0
            assert report["candidate_infer_ms"] > 0
            assert report["failed"] == report["dropped"] == 0
        assert operator.delete("/v2/repository/models/fashion/shadow").json()["shadow"] is None
        assert operator.index()["2"] == ("UNAVAILABLE", "not loaded")


def test_a_comparison_keeps_its_report_over_a_restart_and_after_its_time(models, monkeypatch):
    """What was found is there until the operator ends it; what comes after its time is not compared any more."""
    for version in (1, 2):
        publish(models, version)
    with running(models) as operator:
        operator.done("models/fashion/promote", version=1)
        operator.done("models/fashion/shadow", version=2, seconds=600)
        operator.answering()
        assert operator.compared(4)["rows"] == 4
    with running(models) as operator:
        operator.answering()
        assert operator.compared(8)["rows"] == 8
        in_an_hour = time.time() + 3600
        monkeypatch.setattr(time, "time", lambda: in_an_hour)
        operator.done("models/fashion/load")
        operator.answering()
        assert operator.get("/v2/repository/models/fashion").json()["shadow"]["rows"] == 8
        operator.delete("/v2/repository/models/fashion/shadow")
    assert list((models.parent / "state/shadows/fashion").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("models/nobody/load", {}, 404, "model 'nobody' does not exist"),
        ("models/..%2f..%2fetc/load", {}, 404, "nothing is served|does not exist"),
        ("models/fashion/load", {"version": 9}, 404, "has no version 9"),
        ("models/fashion/load", {"version": "x"}, 400, "version: 'x', expected a positive whole number"),
        ("models/fashion/load", {"version": -1}, 400, "expected a positive whole number"),
        ("models/fashion/load", {"version": True}, 400, "expected a positive whole number"),
        ("models/fashion/load", {"parameters": []}, 400, "an object under its key parameters"),
        ("models/fashion/load", {"parameters": {"file:1/model.onnx": "eA=="}}, 501, "not from a request"),
        ("models/fashion/promote", {"version": 1, "label": "../x"}, 400, "label '../x'"),
        ("models/fashion/promote", {"version": 1, "label": 5}, 400, "label '5'"),
        ("models/fashion/promote", {"label": "stable"}, 400, "promote: no version, expected"),
        ("models/fashion/rollback", {}, 400, "has pointed at nothing before version 1"),
        ("models/fashion/rollback", {"label": "stable"}, 404, "has no label 'stable'"),
        ("models/fashion/shadow", {}, 400, "shadow: expected"),
        ("models/fashion/shadow", {"version": 1}, 400, "is the one that answers"),
        ("models/fashion/shadow", {"version": 1, "seconds": -1}, 400, "expected a number above 0"),
    ],
)
def test_calls_that_cannot_be_followed_are_refused_in_one_sentence(control, path, body, status, expected):
    """What is wrong is named, and nothing has changed."""
    sentence = refused(control.call(path, **body), status)
    assert any(part in sentence for part in expected.split("|"))
    assert control.get("/v2/repository/models/fashion").json()["history"] == []


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    models = tmp_path_factory.mktemp("control") / "models"
    publish(models, 1)
    with running(models) as operator:
        yield operator


def test_a_body_that_is_no_object_is_refused(control):
    """JSON of another kind, or none at all, is 400; nothing at all is an empty object."""
    assert "not JSON" in refused(control.post("/v2/repository/models/fashion/load", content=b"{"), 400)
    assert "expected a JSON object" in refused(control.post("/v2/repository/index", content=b"[]"), 400)
    refused(control.post("/v2/repository/index", content=b" " * 70_000), 413)
    assert control.post("/v2/repository/index").json() == control.done("index", ready=True)


def test_a_damaged_state_file_ends_the_start(fashion):
    """Going on without it would silently undo a rollback."""
    state = fashion.parent / "state"
    state.mkdir()
    (state / "state.json").write_text(json.dumps({"format": 1, "models": {"fashion": {}}}))
    app = create_app(Settings(models_dir=fashion, provider="cpu", buckets=(1,), state_dir=state))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(ArtifactInvalid, match=r"state\.json cannot be read"):
        asyncio.run(start())
