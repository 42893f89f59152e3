"""The doors of the service, one beside the other: what is written once for all of them holds behind each.

`/predict` and the infer route each on the fast lane and through the application, and gRPC, all of one application.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import pytest

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve

grpc = pytest.importorskip("grpc", reason="needs the extra grpc")

from tests.support.grpc_calls import request, stubs  # noqa: E402

ONE = artifacts.images(1, seed=5)
NOT_FOR_THE_LANE = {"Content-Encoding": "identity"}  # every header of this kind leads through the application
DEFAULT_DEADLINE_MS = 2_000
FAILURE = "the service failed on request my-id; its log has the reason under this id"


@dataclass(frozen=True)
class Outcome:
    """What a client gets: a status of HTTP (of gRPC its name), the sentence of an error, the headers."""

    status: int | str
    sentence: str
    headers: Mapping[str, str]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One application behind all doors; runs go to a thread, where a test can hold them up."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    options = {"default_deadline_ms": DEFAULT_DEADLINE_MS, "inline_below_ms": 0, "canary_seconds": 0}
    app = create_app(Settings(models_dir=root, provider="cpu", buckets=(1,), grpc_port=0, **options))
    with (
        serve(app) as url,
        httpx.Client(base_url=url, timeout=60) as http,
        grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel,
    ):
        yield SimpleNamespace(app=app, http=http, calls=stubs(channel))


def over_http(path: str, **always: str) -> Callable[..., Outcome]:
    """A door of HTTP: bytes of one image, and headers that choose the way to the same route."""

    def ask(service: SimpleNamespace, **headers: str) -> Outcome:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = service.http.post(path, content=ONE.tobytes(), headers=always | named)
        sentence = "" if answer.status_code == 200 else answer.json()["error"]
        return Outcome(answer.status_code, sentence, answer.headers)

    return ask


def over_grpc(service: SimpleNamespace, **headers: str) -> Outcome:
    """The door of gRPC, where headers are metadata."""
    metadata = [(name.replace("_", "-"), value) for name, value in headers.items()]
    try:
        _, call = service.calls.ModelInfer.with_call(request(inputs={"image": ONE}), metadata=metadata)
    except grpc.RpcError as err:
        return Outcome(err.code().name, err.details(), dict(err.trailing_metadata()))
    return Outcome(200, "", dict(call.trailing_metadata()))


OCTETS = {"Content-Type": "application/octet-stream"}
BARE = {"Inference-Header-Content-Length": "0"}
DOORS = {
    "lane: predict": over_http("/predict", **OCTETS),
    "lane: infer": over_http("/v2/models/fashion/infer", **OCTETS, **BARE),
    "application: predict": over_http("/predict", **OCTETS, **NOT_FOR_THE_LANE),
    "application: infer": over_http("/v2/models/fashion/infer", **OCTETS, **BARE, **NOT_FOR_THE_LANE),
    "grpc": over_grpc,
}
GRPC_STATUS = {400: "INVALID_ARGUMENT", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}

every_door = pytest.mark.parametrize("door", DOORS)


def refused(service: SimpleNamespace, door: str, status: int, **headers: str) -> Outcome:
    """The refusal of a request, which has to have this status."""
    outcome = DOORS[door](service, **headers)
    assert outcome.status == (GRPC_STATUS[status] if door == "grpc" else status), outcome
    return outcome


@contextmanager
def engine_that(service: SimpleNamespace, run: Callable[..., object]) -> Iterator[None]:
    """The model's engine with another run for a while."""
    engine = service.app.state.registry.get().engine
    right, engine.run = engine.run, run
    try:
        yield
    finally:
        engine.run = right


@every_door
def test_a_safe_request_id_comes_back_and_no_other(service, door):
    """The client's own where it can stand in a log; else a new one, different each time."""
    assert DOORS[door](service, x_request_id="my-id").headers["x-request-id"] == "my-id"
    new = {DOORS[door](service, **sent).headers["x-request-id"] for sent in ({}, {"x_request_id": "no spaces"})}
    assert len(new) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", request_id) for request_id in new)


@every_door
@pytest.mark.parametrize("headers", [{}, {"x_deadline_ms": "soon"}], ids=["answered", "refused"])
def test_the_place_in_a_trace_comes_back(service, door, headers):
    """As the client wrote it, also with a refusal; what is none is not repeated."""
    for place in ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", f"00-{'1' * 32}-{'2' * 16}-00"):
        for _ in range(2):  # the second time the head is known
            assert DOORS[door](service, traceparent=place, **headers).headers["traceparent"] == place
    zero, later, upper = "0" * 32, f"ff-{'1' * 32}-{'2' * 16}-00", f"00-{'A' * 32}-{'2' * 16}-00"
    for none in (f"00-{zero}-{'2' * 16}-01", later, upper, "x", f"00-{'1' * 32}-{'2' * 16}-000"):
        assert "traceparent" not in DOORS[door](service, traceparent=none, **headers).headers


@every_door
def test_an_answer_says_where_its_time_went(service, door):
    """The same stages in the same order, in milliseconds that add up."""
    started = time.perf_counter()
    timing = DOORS[door](service).headers["server-timing"]
    elapsed = (time.perf_counter() - started) * 1000
    stages = [re.fullmatch(r"(\w+);dur=(\d+\.\d{3})", stage).groups() for stage in timing.split(", ")]
    assert [name for name, _ in stages] == ["parse", "queue", "infer", "total"]
    parse, queue, infer, total = (float(milliseconds) for _, milliseconds in stages)
    assert infer > 0
    assert parse + queue + infer <= total + 0.01 <= elapsed


@every_door
@pytest.mark.parametrize("sent", ["0", "soon", "1.5", "9999999999"])
def test_a_deadline_that_is_none_is_refused(service, door, sent):
    """The sentence quotes what was sent."""
    outcome = refused(service, door, 400, x_deadline_ms=sent)
    assert outcome.sentence == f"X-Deadline-Ms: '{sent}', expected a whole number of milliseconds above 0"


@every_door
@pytest.mark.parametrize(("sent", "milliseconds"), [({"x_deadline_ms": "400"}, 400), ({}, DEFAULT_DEADLINE_MS)])
def test_a_deadline_ends_the_wait(service, door, sent, milliseconds):
    """While the engine is busy, the client's own limit holds; the service's holds where it says nothing."""
    is_open, is_held = threading.Event(), threading.Event()

    def hold(inputs: object) -> object:
        is_held.set()
        assert is_open.wait(60)
        return run(inputs)

    run = service.app.state.registry.get().engine.run
    with engine_that(service, hold):
        first = threading.Thread(target=DOORS[door], args=(service,), kwargs={"x_deadline_ms": "60000"})
        first.start()
        try:
            assert is_held.wait(60)
            outcome = refused(service, door, 504, **sent)
        finally:
            is_open.set()
            first.join()
    total = re.search(r"total;dur=([\d.]+)", outcome.headers["server-timing"])
    assert milliseconds <= float(total[1]) < milliseconds + 3_000  # far from ten times as long, on a busy machine too


@every_door
def test_a_failure_of_ours_shows_the_id_alone_and_the_log_has_the_reason(service, door, caplog):
    """Whatever the engine says of the inside stays inside."""

    def fail(inputs: object) -> object:
        raise RuntimeError("secret path /srv/models")

    with engine_that(service, fail):
        outcome = refused(service, door, 500, x_request_id="my-id")
    assert outcome.sentence == FAILURE
    (record,) = [record for record in caplog.records if getattr(record, "status", 0) == 500]
    assert record.request_id == "my-id"
    assert "secret" in record.reason


def test_a_failure_within_a_stream_shows_no_more(service):
    """An answer of a stream that is an error holds the same sentence, and the stream goes on."""
    engine = service.app.state.registry.get().engine
    run, messages = engine.run, [request(inputs={"image": ONE}, id=name) for name in ("bad", "good")]
    failures = iter([RuntimeError("secret path /srv/models")])

    def fail_once(inputs: object) -> object:
        for failure in failures:
            raise failure
        return run(inputs)

    with engine_that(service, fail_once):
        metadata = [("x-request-id", "my-id")]
        bad, good = service.calls.ModelStreamInfer(iter(messages), metadata=metadata)
    assert (bad.error_message, bad.infer_response.id) == (FAILURE, "bad")
    assert (good.error_message, good.infer_response.id) == ("", "good")


@every_door
def test_a_service_that_is_not_ready_says_why(service, door):
    """503 with the reason and when to try again, and right answers again afterwards."""
    registry = service.app.state.registry
    registry.doubt("fashion", "fashion/1 gave wrong golden answers")
    try:
        outcome = refused(service, door, 503)
    finally:
        registry.doubt("fashion", None)
    assert outcome.sentence == "not ready: fashion/1 gave wrong golden answers"
    assert int(outcome.headers["retry-after"]) >= 1
    assert DOORS[door](service).status == 200
