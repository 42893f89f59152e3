"""A line for each request, where it is asked for: from every door, and no more of them than were asked for."""

import logging

import httpx
import pytest

from foldserve.service.access_log import AccessLog
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve
from tests.support.processes import OCTETS

PIXELS = artifacts.images(3).tobytes()


def lines(caplog: pytest.LogCaptureFixture) -> list[dict]:
    records = [record for record in caplog.records if record.name == "foldserve.access"]
    standard = vars(logging.makeLogRecord({})).keys()
    return [{key: value for key, value in vars(record).items() if key not in standard} for record in records]


def test_each_request_has_a_line(fashion, caplog):
    """By the fast way and by the application alike: route, status, model, version, rows, ms; refusals too."""
    caplog.set_level(logging.INFO, "foldserve.access")
    settings = Settings(models_dir=fashion, provider="cpu", access_log_rate=1000)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as http:
        named = {**OCTETS, "X-Request-Id": "mine"}
        assert http.post("/predict", content=PIXELS, headers=named).status_code == 200
        assert http.post("/predict?model=fashion&version=1", content=PIXELS, headers=named).status_code == 200
        assert (
            http.post(
                "/predict", content=b"x", headers=named | {"traceparent": f"00-{'3' * 32}-{'2' * 16}-01"}
            ).status_code
            == 400
        )
        assert http.get("/v2/models/none").status_code == 404
    found = lines(caplog)
    assert [(line["route"], line["status"]) for line in found] == [
        ("/predict", 200),
        ("/predict", 200),
        ("/predict", 400),
        ("/v2/models/{model}", 404),
    ]
    for line in found[:2]:
        assert (line["model"], line["version"], line["rows"], line["request_id"]) == ("fashion", 1, 3, "mine")
        assert 0 < line["ms"] < 60_000
    assert (found[2]["request_id"], found[2]["trace_id"]) == ("mine", "3" * 32)
    assert "trace_id" not in found[0]


def test_each_call_of_grpc_has_a_line(fashion, caplog):
    """With what a line of HTTP says, the status as HTTP has it, and the trace that the client is in."""
    grpc = pytest.importorskip("grpc", reason="needs the extra grpc")
    from tests.support.grpc_calls import request, stubs

    caplog.set_level(logging.INFO, "foldserve.access")
    app = create_app(Settings(models_dir=fashion, provider="cpu", access_log_rate=1000, grpc_port=0))
    known = [("x-request-id", "mine"), ("traceparent", f"00-{'1' * 32}-{'2' * 16}-01")]
    with serve(app), grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel:
        stubs(channel).ModelInfer(request(), metadata=known)
        with pytest.raises(grpc.RpcError):
            stubs(channel).ModelInfer(request(model="none"))
    route = "/inference.GRPCInferenceService/ModelInfer"
    found = lines(caplog)
    assert [(line["route"], line["status"]) for line in found] == [(route, 200), (route, 404)]
    told = {"model": "fashion", "version": 1, "rows": 3, "request_id": "mine", "trace_id": "1" * 32}
    assert found[0].items() >= told.items()
    assert "model" not in found[1]


def test_it_is_off_by_default(fashion, caplog):
    """No line, whatever the level."""
    caplog.set_level(logging.DEBUG, "foldserve.access")
    with serve(create_app(Settings(models_dir=fashion, provider="cpu"))) as url:
        assert httpx.post(f"{url}/predict", content=PIXELS, headers=OCTETS).status_code == 200
    assert lines(caplog) == []


def test_lines_beyond_the_rate_are_left_out_and_counted(caplog, monkeypatch):
    """Two a second: of ten requests in a moment two have a line, and the next one says how many had none."""
    now = 1000.0
    monkeypatch.setattr("foldserve.service.rates.time.monotonic", lambda: now)
    caplog.set_level(logging.INFO, "foldserve.access")
    log = AccessLog(2)
    for _ in range(10):
        log.note("/predict", 200, 0.001)
    assert len(lines(caplog)) == 2
    now += 1
    log.note("/predict", 200, 0.001)
    assert [line.get("left_out") for line in lines(caplog)] == [None, None, 8]
