"""The application as a whole: its parts are its own, its failures have one shape, its end is orderly."""

import asyncio
import json
import logging
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from foldserve.service.app import create_app
from foldserve.service.errors import ArtifactInvalid, EngineError, NotReady, Overloaded
from foldserve.service.settings import Settings
from tests.support import artifacts, processes
from tests.support.live import serve

OCTETS = {"Content-Type": "application/octet-stream"}
FAILURE = "the service failed on request my-id; its log has the reason under this id"


def settings(models: Path, **changes: object) -> Settings:
    return Settings(models_dir=models, provider="cpu", buckets=(1, 4), **changes)


def ask(app: FastAPI, method: str, path: str, **options: object) -> httpx.Response:
    """One request without a server, and without starting the application."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, **options)

    return asyncio.run(send())


def test_two_applications_live_in_one_process(tmp_path):
    """Different models, different answers, separate metrics: nothing is shared."""
    for seed, name in ((0, "first"), (3, "second")):
        artifacts.publish_classifier(tmp_path / name, name, seed=seed)
    pixels = artifacts.images(1).tobytes()
    with (
        serve(create_app(settings(tmp_path / "first"))) as one,
        serve(create_app(settings(tmp_path / "second"))) as two,
    ):
        answers = [httpx.post(f"{url}/predict", content=pixels, headers=OCTETS).json() for url in (one, two)]
        assert [answer["model"] for answer in answers] == ["first", "second"]
        assert answers[0]["predictions"] != answers[1]["predictions"]
        assert 'model="second"' not in httpx.get(f"{one}/metrics").text


def test_an_application_is_not_ready_before_it_has_loaded(fashion):
    """Live at once; ready, and open for predictions, only after the golden answers: until then 503 with the reason."""
    app = create_app(settings(fashion))
    assert ask(app, "GET", "/v2/health/live").status_code == 200
    requests = [("GET", "/v2/health/ready", {}), ("POST", "/predict", {"content": bytes(784), "headers": OCTETS})]
    for method, path, options in requests:
        answer = ask(app, method, path, **options)
        assert answer.status_code == 503
        assert answer.json() == {"error": "not ready: the models are being loaded"}
        assert int(answer.headers["retry-after"]) >= 1


def test_an_application_that_ends_is_not_ready(fashion):
    """After its lifespan, ready is 503 again and predictions are refused."""
    app = create_app(settings(fashion))

    async def live_once() -> None:
        async with app.router.lifespan_context(app):
            assert app.state.registry.ready

    asyncio.run(live_once())
    assert ask(app, "GET", "/v2/health/ready").json() == {"error": "not ready: the service is shutting down"}
    assert ask(app, "POST", "/predict").status_code == 503


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped"])
def test_a_failed_load_stops_the_start(models, damage):
    """No folder, no model, or a model that is not what its manifest says: the lifespan fails with the reason."""
    folder = models / "nowhere" if damage == "missing" else models
    if damage == "flipped":
        path = artifacts.publish_classifier(models) / "model.onnx"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    app = create_app(settings(folder))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pytest.fail("it started")

    with pytest.raises(ArtifactInvalid):
        asyncio.run(start())
    assert str(folder) in app.state.start_failure
    assert "\n" not in app.state.start_failure


def test_why_a_start_failed_is_said_once_by_the_service_itself(tmp_path):
    """One line, under a name of ours, with one worker and with two."""
    for workers in ("1", "2"):
        code, lines = processes.failed("--models-dir", str(tmp_path), "--workers", workers)
        events = [json.loads(line) for line in lines]
        assert (code, [event["logger"] for event in events]) == (3, ["foldserve.service.app"])
        assert "holds no <model>/<version>/model.onnx" in events[0]["event"]


def failing(models: Path, error: Exception) -> FastAPI:
    """The application with one more route, which fails."""
    app = create_app(settings(models))

    async def fail() -> None:
        raise error

    app.add_api_route("/fail", fail)
    return app


def test_a_failure_shows_a_request_id_and_nothing_else(fashion, caplog):
    """The traceback stands in the log under the id that the client sees; the answer tells nothing of the inside."""
    app = failing(fashion, RuntimeError("secret path /srv/models"))
    answer = ask(app, "GET", "/fail", headers={"X-Request-ID": "my-id"})
    assert answer.status_code == 500
    assert answer.json() == {"error": FAILURE}
    assert answer.headers["x-request-id"] == "my-id"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.request_id == "my-id"
    assert "secret path" in str(record.exc_info[1])


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (NotReady("draining", 7), 503, "draining"),
        (Overloaded("queue full", 3), 503, "queue full"),
        (EngineError("secret: onnxruntime said no"), 500, FAILURE),
        (ArtifactInvalid("/srv/models is broken"), 500, FAILURE),
    ],
)  # fmt: skip
def test_our_own_errors_keep_their_status_and_headers(fashion, caplog, error, status, sentence):
    """503 says why and when to try again; a 500 says its id alone, and the log has the sentence."""
    answer = ask(failing(fashion, error), "GET", "/fail", headers={"X-Request-ID": "my-id"})
    assert (answer.status_code, answer.json()) == (status, {"error": sentence})
    if hasattr(error, "retry_after"):
        assert answer.headers["retry-after"] == str(error.retry_after)
    assert any(getattr(record, "reason", None) == str(error) for record in caplog.records)


def test_no_answer_is_ever_422(fashion):
    """A parameter that FastAPI checks itself is refused in our shape, and what was sent is not repeated."""
    app = create_app(settings(fashion))

    async def double(number: int) -> int:
        return 2 * number

    app.add_api_route("/double", double)
    answer = ask(app, "GET", "/double", params={"number": "x" * 5000})
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith("query.number: ")
    assert "xxx" not in answer.text


def test_bodies_are_bounded_in_their_sum_and_given_back(fashion):
    """A body over the budget of all bodies is 503 with Retry-After, and afterwards nothing is held any more."""
    app = create_app(settings(fashion, max_buffered_bytes=1000))
    with serve(app) as url:
        answers = [httpx.post(f"{url}/predict", content=bytes(size), headers=OCTETS) for size in (784, 1568, 784)]
    assert [answer.status_code for answer in answers] == [200, 503, 200]
    assert int(answers[1].headers["retry-after"]) >= 1
    assert app.state.body_budget.held_bytes == 0
