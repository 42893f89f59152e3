"""Spans that reach an OpenTelemetry collector: of every door, with the parent that the client names.

Collector and service run in the environment of `make cluster-test` that has the extra `otel`.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.test_nginx import free_port
from tests.support import artifacts, processes
from tests.support.manifests import ROOT

PYTHON = os.environ.get("RAY_PYTHON", "")


def has_otel() -> bool:
    needed = "import opentelemetry.exporter.otlp.proto.http, grpc"
    return bool(PYTHON) and subprocess.run([PYTHON, "-c", needed], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_otel(), reason="the extra otel is not installed: make cluster-test installs it"),
]
ONE = artifacts.images(1, seed=5)
GRPC = "/inference.GRPCInferenceService/ModelInfer"


class Collector:
    """`tests/support/otlp_collector.py` as a process of its own."""

    def __init__(self) -> None:
        command = [PYTHON, "-m", "tests.support.otlp_collector"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.endpoint = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.spans: list[dict[str, Any]] = []

    def trace(self, trace: str, spans: int) -> dict[str, dict[str, Any]]:
        """So many spans of one trace, by their names; waits until they are there."""
        while True:
            found = [span for span in self.spans if span["trace"] == trace]
            if len(found) >= spans:
                return {span["name"]: span for span in found}
            self.spans.append(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    try:
        yield collector
    finally:
        collector.process.kill()
        collector.process.wait(10)
        collector.process.stdout.close()


@contextlib.contextmanager
def service(folder: Path, *flags: str, endpoint: str) -> Iterator[tuple[httpx.Client, str, subprocess.Popen]]:
    """A service with spans, asked over HTTP; its address of gRPC."""
    artifacts.publish_classifier(folder)
    port = str(free_port())
    given = ["--models-dir", str(folder), "--otlp-endpoint", endpoint, "--grpc-port", port, *flags]
    with (
        processes.started(*given, python=PYTHON, variables={"OTEL_BSP_SCHEDULE_DELAY": "100"}) as (process, address),
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        yield http, f"127.0.0.1:{port}", process


@pytest.fixture(scope="module")
def traced(collector, tmp_path_factory) -> Iterator[tuple[httpx.Client, str]]:
    with service(tmp_path_factory.mktemp("traced"), endpoint=collector.endpoint) as (http, grpc, _):
        yield http, grpc


def over_http(traced: tuple[httpx.Client, str], traceparent: str, **headers: str) -> None:
    answer = traced[0].post(
        "/predict", content=ONE.tobytes(), headers={**processes.OCTETS, "traceparent": traceparent, **headers}
    )
    assert answer.status_code == 200
    assert answer.headers["traceparent"] == traceparent


def beside_the_lane(traced: tuple[httpx.Client, str], traceparent: str) -> None:
    over_http(traced, traceparent, **{"Content-Encoding": "identity"})


def over_grpc(traced: tuple[httpx.Client, str], traceparent: str) -> None:
    import grpc

    from tests.support import grpc_calls

    with grpc.insecure_channel(traced[1]) as channel:
        _, call = grpc_calls.stubs(channel).ModelInfer.with_call(
            grpc_calls.request(inputs={"image": ONE}), metadata=[("traceparent", traceparent)]
        )
    assert dict(call.trailing_metadata())["traceparent"] == traceparent


DOORS = {
    "lane": (over_http, "/predict"),
    "application": (beside_the_lane, "/predict"),
    "gRPC": (over_grpc, GRPC),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_request_is_one_span_and_its_stages_lie_below(collector, traced, door):
    """Below the client's own span; with model, version, rows and status, and inside one another in time."""
    ask, route = DOORS[door]
    trace, parent = os.urandom(16).hex(), os.urandom(8).hex()
    before = time.time_ns()
    ask(traced, f"00-{trace}-{parent}-01")
    after = time.time_ns()
    spans = collector.trace(trace, 4)
    assert spans.keys() == {route, "parse", "queue", "run"}
    request = spans[route]
    assert (request["parent"], request["service"], request["path"]) == (parent, "foldserve", "/v1/traces")
    expected = {"foldserve.model": "fashion", "foldserve.version": 1, "foldserve.rows": 1}
    assert request["attributes"].items() >= (expected | {"http.route": route, "http.response.status_code": 200}).items()
    slack = 50_000_000  # the two clocks are read one after the other
    assert before - slack <= request["start"] <= request["end"] <= after + slack
    begin = request["start"]
    for name in ("parse", "queue", "run"):
        assert spans[name]["parent"] == request["span"]
        assert begin <= spans[name]["start"] <= spans[name]["end"] <= request["end"] + slack
        begin = spans[name]["end"]


def test_a_client_that_is_not_traced_stays_so(collector, traced):
    """Its traceparent says so; the request behind it is told of."""
    silent, told = os.urandom(16).hex(), os.urandom(16).hex()
    over_http(traced, f"00-{silent}-{os.urandom(8).hex()}-00")
    over_http(traced, f"00-{told}-{os.urandom(8).hex()}-01")
    assert collector.trace(told, 4)
    assert not [span for span in collector.spans if span["trace"] == silent]


@pytest.mark.parametrize("coding", [{}, {"Content-Encoding": "identity"}])
def test_a_refused_request_is_a_span_too(collector, traced, coding):
    """With its status, on the lane and beside it."""
    trace = os.urandom(16).hex()
    headers = {**processes.OCTETS, **coding, "traceparent": f"00-{trace}-{os.urandom(8).hex()}-01"}
    answer = traced[0].post("/predict", content=b"x", headers=headers)
    assert answer.status_code == 400
    assert answer.headers["traceparent"] == headers["traceparent"]
    span = collector.trace(trace, 1)["/predict"]
    assert span["attributes"]["http.response.status_code"] == 400
    assert not span["is_error"]  # it is the client's


def test_without_a_traceparent_a_share_is_traced(collector, tmp_path):
    """None of them where the share is 0; a client that is traced still is."""
    with service(tmp_path, "--otlp-share", "0", endpoint=collector.endpoint) as (http, grpc, _):
        for _ in range(20):
            assert http.post("/predict", content=ONE.tobytes(), headers=processes.OCTETS).status_code == 200
        trace = os.urandom(16).hex()
        before = len(collector.spans)
        over_http((http, grpc), f"00-{trace}-{os.urandom(8).hex()}-01")
        collector.trace(trace, 4)
        assert {span["trace"] for span in collector.spans[before:]} == {trace}


def test_spans_are_sent_before_the_end_and_a_dead_collector_holds_nothing_up(collector, tmp_path):
    """The end sends what is left; where nobody takes it, requests are answered and the end comes all the same."""
    trace = os.urandom(16).hex()
    slow = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
    for endpoint in (collector.endpoint, f"http://127.0.0.1:{free_port()}"):
        folder = tmp_path / endpoint.rsplit(":", 1)[1]
        artifacts.publish_classifier(folder)
        flags = ["--models-dir", str(folder), "--otlp-endpoint", endpoint]
        with processes.started(*flags, python=PYTHON, variables=slow) as (process, address):
            headers = {**processes.OCTETS, "traceparent": f"00-{trace}-{os.urandom(8).hex()}-01"}
            assert httpx.post(f"{address}/predict", content=ONE.tobytes(), headers=headers).status_code == 200
            process.terminate()
            assert process.wait(60) == 0
    assert collector.trace(trace, 4)
