"""The fast lane against the application: the same questions on both ways, and what only the lane can get wrong."""

import asyncio
import base64
import io
import itertools
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from foldserve.service.app import create_app
from foldserve.service.lane.connection import lane_connection
from foldserve.service.lane.lane import VERSION_ROUTE
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.wire import Answer, Client, Serving, on_loop, running

OCTETS = b"application/octet-stream"
JSON = b"application/json"
ONE = artifacts.images(1, seed=3).tobytes()


@dataclass
class Service(Serving):
    """A served application, and the paths of the requests that came as far as it."""

    app: Any = None
    seen: list[str] = field(default_factory=list)

    @property
    def model(self) -> Any:
        """The model that answers."""
        return self.app.state.registry.models()[0]


@asynccontextmanager
async def service(models: Path, **settings: Any) -> AsyncIterator[Service]:
    """Serve `models` as the command line does."""
    app = create_app(Settings(models_dir=models, provider="cpu", threads=1, **settings))
    seen: list[str] = []

    async def noting(scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(scope["path"])
        await app(scope, receive, send)

    async with running(noting, lane_connection) as (port, server, finished):
        yield Service(port, None, server, finished, app, seen)  # type: ignore[arg-type]
        await app.state.reconciler.stop()


def ask(body: bytes, media_type: bytes = OCTETS, *headers: bytes, target: bytes = b"/predict") -> bytes:
    """Return a request."""
    lines = [b"POST %b HTTP/1.1" % target, b"Host: here", b"Content-Type: " + media_type, *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def png(size: int, noise: int = 0) -> str:
    """Return a square PNG in base64, larger with noise."""
    file = io.BytesIO()
    pixels = np.random.default_rng(5).integers(0, 1 + noise, (size, size)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def instances(*images: Any) -> bytes:
    """Return a JSON body."""
    return orjson.dumps({"instances": list(images)})


PIXELS = np.frombuffer(ONE, np.uint8)
FLAT = PIXELS.tolist()
NESTED = PIXELS.reshape(28, 28).tolist()

FORMS: dict[str, tuple[bytes, bytes]] = {
    "one image": (ONE, OCTETS),
    "five images": (artifacts.images(5).tobytes(), OCTETS),
    "more than the largest batch": (artifacts.images(9).tobytes(), OCTETS),
    "flat": (instances(FLAT), JSON),
    "nested": (instances(NESTED), JSON),
    "two": (instances(FLAT, NESTED), JSON),
    "more than the largest batch, in JSON": (instances(*[FLAT] * 9), JSON),
    "floats": (instances([float(value) for value in FLAT]), JSON),
    "charset": (instances(FLAT), b"application/json; charset=utf-8"),
    "small file": (instances({"b64": png(28)}), JSON),
    "large file": (instances({"b64": png(60, 250)}), JSON),
}

ERRORS: dict[str, tuple[bytes, bytes]] = {
    "783 bytes": (ONE[:-1], OCTETS),
    "11 images": (artifacts.images(11).tobytes(), OCTETS),
    "11 in JSON": (instances(*[{"b64": png(28)}] * 11), JSON),
    "not JSON": (b"{", JSON),
    "no instances": (b"{}", JSON),
    "empty": (instances(), JSON),
    "785 values": (instances([*FLAT, 0]), JSON),
    "256": (instances([256, *FLAT[1:]]), JSON),
    "true": (instances([True, *FLAT[1:]]), JSON),
    "NaN": (b'{"instances":[[NaN]]}', JSON),
    "not an image": (instances({"b64": "AAAA"}), JSON),
    "a large file that is none": (instances({"b64": "A" * 4000}), JSON),
    "media type": (ONE, b"text/plain"),
    "nothing": (b"", OCTETS),
}


async def both(server: Service, body: bytes, media_type: bytes, *headers: bytes) -> tuple[Answer, Answer]:
    """Ask on the lane and by a spelling of the same target that the lane leaves alone."""
    async with server.connect() as client:
        await client.send(ask(body, media_type, *headers))
        on_lane = await client.answer()
        await client.send(ask(body, media_type, *headers, target=b"/predict?"))
        return on_lane, await client.answer()


def assert_equal(on_lane: Answer, application: Answer) -> None:
    """Compare all that does not differ from request to request."""
    assert (on_lane.status, on_lane.body) == (application.status, application.body)
    assert set(on_lane.headers) == set(application.headers)
    varying = {"date", "x-request-id", "server-timing"}
    assert {k: v for k, v in on_lane.headers.items() if k not in varying} == {
        k: v for k, v in application.headers.items() if k not in varying
    }
    stages = [
        [stage.partition(";")[0] for stage in answer.headers["server-timing"].split(", ")]
        for answer in (on_lane, application)
    ]
    if on_lane.status == 200:
        assert stages[0] == stages[1]


# -- the same answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "media_type"), FORMS.values(), ids=FORMS)
@on_loop
async def test_both_ways_give_the_same_answer(fashion: Path, body: bytes, media_type: bytes) -> None:
    """Byte for byte, in every form that a body may have, and with the same headers."""
    async with service(fashion, buckets=(1, 2, 4, 8)) as server:
        on_lane, application = await both(server, body, media_type)
        assert on_lane.status == 200
        assert_equal(on_lane, application)


@pytest.mark.parametrize(("body", "media_type"), ERRORS.values(), ids=ERRORS)
@on_loop
async def test_both_ways_refuse_in_the_same_words(fashion: Path, body: bytes, media_type: bytes) -> None:
    """Status, sentence and headers of an error do not depend on the way."""
    async with service(fashion, buckets=(1, 2, 4, 8), max_rows=10) as server:
        on_lane, application = await both(server, body, media_type)
        assert on_lane.error
        assert_equal(on_lane, application)


def v2(rows: int = 1, data: Any = None, **more: Any) -> bytes:
    """Return a JSON body of the Open Inference Protocol."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [rows, 1, 28, 28]}
    tensor |= {"data": FLAT * rows if data is None else data}
    return orjson.dumps({"inputs": [tensor], **more})


def v2_binary(rows: int = 1, **more: Any) -> tuple[bytes, bytes]:
    """Return a body whose tensor stands behind its JSON, and the header that says where."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [rows, 1, 28, 28]}
    head = orjson.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 784 * rows}}], **more})
    return head + ONE * rows, b"Inference-Header-Content-Length: %d" % len(head)


BARE = b"Inference-Header-Content-Length: 0"
BINARY_OUT = {"parameters": {"binary_data_output": True}}

V2_FORMS: dict[str, tuple[bytes, ...]] = {
    "JSON": (v2(),),
    "three rows": (v2(3),),
    "nested": (v2(data=[[NESTED]]),),
    "bare bytes": (ONE, BARE),
    "three bare rows": (ONE * 3, BARE),
    "binary in": v2_binary(),
    "binary in and out": v2_binary(**BINARY_OUT),
    "binary out": (v2(2, **BINARY_OUT),),
    "one output": (v2(outputs=[{"name": "class_id"}]),),
    "outputs in another order, one binary": (
        v2(2, outputs=[{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "logits"}]),
    ),
    "classification": (v2(2, outputs=[{"name": "probabilities", "parameters": {"classification": 3}}]),),
    "id": (v2(id="mine"),),
    "timeout": (v2(parameters={"timeout": 5_000_000}),),
    "no timeout": (v2(parameters={"timeout": 0}),),
    "more than the largest batch": (v2(9),),
    "not JSON": (b"{",),
    "wrong shape": (v2(data=FLAT[1:]),),
    "256": (v2(data=[256, *FLAT[1:]]),),
    "unknown output": (v2(outputs=[{"name": "nothing"}]),),
    "eleven rows": (v2(11),),
    "bare bytes too few": (ONE[1:], BARE),
    "header beyond the body": (v2(), b"Inference-Header-Content-Length: 99999"),
    "header that is no number": (v2(), b"Inference-Header-Content-Length: x"),
    "bytes missing": (v2_binary()[0][:-1], v2_binary()[1]),
    "timeout that is none": (v2(parameters={"timeout": "soon"}),),
    "deadline of 0": (v2(), b"X-Deadline-Ms: 0"),
}


@pytest.mark.parametrize("request_parts", V2_FORMS.values(), ids=V2_FORMS)
@on_loop
async def test_both_ways_answer_the_infer_route_alike(fashion: Path, request_parts: tuple[bytes, ...]) -> None:
    """Every form and every error of the Open Inference Protocol, byte for byte; twice, as the lane remembers."""
    body, *headers = request_parts
    target = b"/v2/models/fashion/infer"
    async with service(fashion, buckets=(1, 2, 4, 8), max_rows=10) as server, server.connect() as client:
        for _ in range(2):
            await client.send(ask(body, JSON, *headers, target=target))
            on_lane = await client.answer()
            await client.send(ask(body, JSON, *headers, target=target + b"?"))
            assert_equal(on_lane, await client.answer())


@on_loop
async def test_the_infer_route_takes_the_lane_and_shares_batches(fashion: Path) -> None:
    """Requests of both routes and all forms, sent at once, are answered right from one batch."""
    body, header = v2_binary(**BINARY_OUT)
    infer = b"/v2/models/fashion/infer"
    requests = [
        ask(ONE),
        ask(v2(), JSON, target=infer),
        ask(ONE, OCTETS, BARE, target=b"/v2/models/fashion/versions/1/infer"),
        ask(body, OCTETS, header, target=infer),
    ]
    async with service(fashion, buckets=(8,)) as server, server.connect() as client:
        alone = []
        for request in requests:
            await client.send(request)
            alone.append((await client.answer()).body)
        await client.send(b"".join(requests))
        assert [(await client.answer()).body for _ in requests] == alone
        assert server.seen == []
        statistics = server.model.statistics.to_json("fashion", 1)["inference_stats"]
        assert statistics["success"]["count"] == 6


@pytest.mark.parametrize("value", [b"0", b"-1", b"soon", b"1.5", b""])
@on_loop
async def test_a_deadline_that_is_none_is_refused(fashion: Path, value: bytes) -> None:
    """X-Deadline-Ms has to be a whole number above 0, on both ways."""
    async with service(fashion) as server:
        on_lane, application = await both(server, ONE, OCTETS, b"X-Deadline-Ms: " + value)
        assert on_lane.status == 400
        assert_equal(on_lane, application)


@on_loop
async def test_usual_requests_take_the_lane_and_others_the_application(fashion: Path) -> None:
    """The comparison above compares two ways only if there are two."""
    async with service(fashion) as server, server.connect() as client:
        for request in (ask(ONE), ask(instances(FLAT), JSON), ask(ONE, target=b"/predict?model=fashion")):
            await client.send(request)
            assert (await client.answer()).status == 200
        assert server.seen == []
        unusual = [b"Content-Encoding: gzip", b"Authorization: Bearer none", b"Content-Type: text/plain"]
        for header in unusual:
            await client.send(ask(ONE, OCTETS, header))
            await client.answer()
        await client.send(ask(ONE, b"image/png"))
        await client.answer()
        await client.send(b"GET /predict HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await client.answer()).status == 405
        assert server.seen == ["/predict"] * 5


@on_loop
async def test_a_chunked_body_and_one_that_waits_for_100_are_answered_too(fashion: Path) -> None:
    """Neither is for the lane; both are for the service."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(
            b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/octet-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n310\r\n" + ONE + b"\r\n0\r\n\r\n"
        )
        chunked = await client.answer()
        head, body = ask(ONE, OCTETS, b"Expect: 100-continue").split(b"\r\n\r\n", 1)
        await client.send(head + b"\r\n\r\n")
        assert (await client.answer()).status == 100
        await client.send(body)
        assert (await client.answer()).body == chunked.body


@on_loop
async def test_the_description_names_what_the_lane_answers(fashion: Path) -> None:
    """Every target and media type of the lane stands in the OpenAPI document, since /docs is what users see."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(ask(ONE))
        await client.answer()
        (connection,) = server.server.server_state.connections
        described = server.app.openapi()["paths"]
        for route in (endpoint.route for endpoint in connection.lane.shared.endpoints.values()):
            if route.label != VERSION_ROUTE:  # the same operation under a longer path, left out of the page
                content = described[route.label]["post"]["requestBody"]["content"]
                assert {OCTETS.decode(), JSON.decode()} <= set(content)


# -- heads that are known ----------------------------------------------------------------------------------------


@on_loop
async def test_a_known_head_is_answered_as_the_first_time(fashion: Path) -> None:
    """The second request of the same bytes is not parsed, and its answer is the same."""
    async with service(fashion) as server, server.connect() as client, server.connect() as other:
        await client.send(ask(ONE))
        first = await client.answer()
        for again in (client, client, other):
            await again.send(ask(ONE))
            assert (await again.answer()).body == first.body
        (connection, _) = server.server.server_state.connections
        assert len(connection.lane.shared.heads) == 1


@pytest.mark.parametrize("cuts", [(1,), (20,), (-784,), (-783,), (-1,), (30, -784, -400, -1)])
@on_loop
async def test_requests_in_pieces_are_answered(fashion: Path, cuts: tuple[int, ...]) -> None:
    """Wherever the network cuts a request, new or known, its answer is the same."""
    request = ask(ONE)
    places = [0, *(cut % len(request) for cut in cuts), len(request)]
    async with service(fashion) as server, server.connect() as client:
        await client.send(request)
        whole = await client.answer()
        for _ in range(2):
            for start, stop in itertools.pairwise(places):
                await client.send(request[start:stop])
                await asyncio.sleep(0.002)  # a packet of its own
            assert (await client.answer()).body == whole.body


@on_loop
async def test_requests_that_share_packets_are_answered_in_order(fashion: Path) -> None:
    """Several in one packet, and one and a half: each gets its own answer."""
    rows = artifacts.images(8)
    requests = [ask(row.tobytes()) for row in rows]
    async with service(fashion) as server, server.connect() as client:
        alone = []
        for request in requests:
            await client.send(request)
            alone.append((await client.answer()).body)
        stream = b"".join(requests)
        for size in (len(stream), len(requests[0]) * 3 // 2):
            for start in range(0, len(stream), size):
                await client.send(stream[start : start + size])
            assert [(await client.answer()).body for _ in rows] == alone


@on_loop
async def test_a_stray_line_does_not_teach_the_lane_a_head(fashion: Path) -> None:
    """The empty line that some clients send behind a body must not become a known head."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(b"\r\n\r\n" + ask(ONE))
        assert (await client.answer()).status == 200
        await client.send(b"\r\n\r\n" + b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n")
        assert orjson.loads((await client.answer()).body) == {"live": True}


# -- beside the application --------------------------------------------------------------------------------------


@on_loop
async def test_order_is_kept_between_the_lane_and_the_application(fashion: Path) -> None:
    """Pipelined requests for both are answered as they came."""
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n"
    async with service(fashion) as server, server.connect() as client:
        for _ in range(3):
            await client.send(ask(ONE) + live + ask(ONE) + ask(b"x") + live + live + ask(ONE))
            bodies = [(await client.answer()).body[:9] for _ in range(7)]
            yes, no = b'{"model":', b'{"live":t'
            assert bodies == [yes, no, yes, b'{"error":', no, no, yes]


@on_loop
async def test_rubbish_behind_a_request_takes_nothing_from_it(fashion: Path) -> None:
    """The answer comes first, then the refusal, then the end."""
    async with service(fashion) as server, server.connect() as client:
        for _ in range(2):
            await client.send(ask(ONE) + b"rubbish\r\n\r\n")
            assert (await client.answer()).status == 200
            assert (await client.answer()).status == 400
            assert await client.is_closed()
            break
    async with service(fashion) as server, server.connect() as client:
        await client.send(ask(ONE))
        await client.answer()
        await client.send(ask(ONE) + b"rubbish\r\n\r\n")
        assert [(await client.answer()).status for _ in range(2)] == [200, 400]


@on_loop
async def test_close_is_honoured_on_the_lane(fashion: Path) -> None:
    """New or known, a request that asks for it is the connection's last."""
    async with service(fashion) as server:
        for _ in range(2):
            async with server.connect() as client:
                await client.send(ask(ONE, OCTETS, b"Connection: close") + ask(ONE))
                assert (await client.answer()).headers["connection"] == "close"
                assert await client.is_closed()


@on_loop
async def test_request_ids_are_given_and_kept(fashion: Path) -> None:
    """A safe id comes back; an unsafe one, or none, is replaced by one that is new each time."""
    async with service(fashion) as server, server.connect() as client:
        seen = set()
        for header in (b"X-Request-ID: mine-7", b"X-Request-ID: not safe", b"X-Other: none", b"X-Other: none"):
            await client.send(ask(ONE, OCTETS, header))
            seen.add((await client.answer()).headers["x-request-id"])
        assert "mine-7" in seen
        assert "not safe" not in seen
        assert len(seen) == 4


@on_loop
async def test_answers_on_the_lane_are_counted(fashion: Path) -> None:
    """The metrics know of each answer by its status, in the counter and in the histogram."""
    async with service(fashion) as server, server.connect() as client:
        for body in (ONE, ONE, ONE, b"x"):
            await client.send(ask(body))
            await client.answer()
        text = server.app.state.metrics.exposition().decode()
        assert 'foldserve_requests_total{method="POST",route="/predict",status="200"} 3.0' in text
        assert 'foldserve_requests_total{method="POST",route="/predict",status="400"} 1.0' in text
        assert 'foldserve_request_seconds_count{route="/predict"} 4.0' in text
        assert 'foldserve_request_seconds_bucket{le="5.0",route="/predict"} 4.0' in text


@on_loop
async def test_refusals_of_the_connection_are_counted(fashion: Path) -> None:
    """An answer below application and lane is an answer too: the metrics have it, under no route of ours."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(b"rubbish\r\n\r\n")
        assert (await client.answer()).status == 400
        text = server.app.state.metrics.exposition().decode()
        assert 'foldserve_requests_total{method="other",route="unknown",status="400"} 1.0' in text


# -- bad luck ----------------------------------------------------------------------------------------------------


class Valve:
    """Holds a model's runs until it is opened, and counts them."""

    def __init__(self, server: Service) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.runs = 0
        self._run = server.model.engine.run
        server.model.engine.run = self

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.entered.set()
        assert self.open.wait(10)
        self.runs += 1
        return self._run(inputs)

    async def is_held(self) -> None:
        """Wait until a run has begun."""
        assert await asyncio.to_thread(self.entered.wait, 10)


@asynccontextmanager
async def held(models: Path, **settings: Any) -> AsyncIterator[tuple[Service, Valve, Client]]:
    """A service whose engine is held by a first request, in its thread."""
    async with service(models, inline_below_ms=0, buckets=(4,), **settings) as server, server.connect() as first:
        while not server.server.started:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.001)
        valve = Valve(server)
        try:
            await first.send(ask(ONE))
            await valve.is_held()
            yield server, valve, first
        finally:
            valve.open.set()


async def gone(server: Service, connections: int) -> None:
    """Wait until the server has only so many connections."""
    while len(server.server.server_state.connections) > connections:  # noqa: ASYNC110 - uvicorn tells nobody
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("vanish", ["reset", "close"])
@on_loop
async def test_a_client_that_has_gone_costs_no_run(fashion: Path, vanish: str) -> None:
    """Its request is dropped from the queue, whether its system said goodbye or not."""
    async with held(fashion) as (server, valve, first):
        async with server.connect() as second:
            await second.send(ask(ONE))
            while server.model.batcher.queued_rows != 1:  # noqa: ASYNC110 - the queue tells nobody
                await asyncio.sleep(0.001)
            second.reset() if vanish == "reset" else second.writer.close()
            await gone(server, 1)
        valve.open.set()
        assert (await first.answer()).status == 200
        await first.send(ask(ONE))
        assert (await first.answer()).status == 200
        assert valve.runs == 2


@on_loop
async def test_a_client_that_only_stopped_sending_is_answered(fashion: Path) -> None:
    """After the interim answer that tells the two apart comes the real one."""
    async with held(fashion) as (server, valve, _first), server.connect() as second:
        await second.send(ask(ONE))
        second.end()
        assert (await second.answer()).status == 100
        valve.open.set()
        assert (await second.answer()).status == 200
        assert await second.is_closed()


@on_loop
async def test_a_deadline_that_passes_in_the_queue_is_answered_504(fashion: Path) -> None:
    """The client hears of it when it happens rather than when the engine frees."""
    async with held(fashion) as (server, _valve, _first), server.connect() as second:
        await second.send(ask(ONE, OCTETS, b"X-Deadline-Ms: 100"))
        answer = await second.answer()
        assert answer.status == 504
        assert "deadline" in answer.error


@on_loop
async def test_a_full_queue_is_answered_503_with_retry_after(fashion: Path) -> None:
    """Beyond the rows that may wait there is a computed time to come back."""
    async with held(fashion, max_rows=16, max_queue_rows=16) as (server, _valve, _first), server.connect() as second:
        await second.send(ask(ONE) * 16)
        async with server.connect() as third:
            while server.model.batcher.queued_rows < 12:  # noqa: ASYNC110 - the queue tells nobody
                await asyncio.sleep(0.001)
            await third.send(ask(ONE))
            answer = await third.answer()
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1


@on_loop
async def test_a_row_that_is_not_a_number_harms_only_itself(fashion: Path) -> None:
    """Its request gets 500; the neighbours in the same batch get their answers."""
    async with service(fashion, buckets=(4,)) as server, server.connect() as client:
        await client.send(ask(ONE))
        right = (await client.answer()).body
        run = server.model.engine.run

        def poisoned(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = {name: array.copy() for name, array in run(inputs).items()}
            outputs["probabilities"][1, 3] = np.nan
            return outputs

        server.model.engine.run = poisoned
        await client.send(ask(ONE) * 3)
        answers = [await client.answer() for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 500, 200]
        assert answers[0].body == answers[2].body == right


@on_loop
async def test_answers_that_cannot_be_written_are_500_and_leave_nobody_waiting(fashion: Path) -> None:
    """An output that no route can read, a mistake of ours, ends in an error for each and a connection that goes on."""
    async with service(fashion, buckets=(4,)) as server, server.connect() as client:
        await client.send(ask(ONE))
        right = (await client.answer()).body
        run = server.model.engine.run
        server.model.engine.run = lambda inputs: {"probabilities": run(inputs)["probabilities"]}
        await client.send(ask(ONE) * 3)
        answers = [await client.answer() for _ in range(3)]
        assert [answer.status for answer in answers] == [500] * 3
        assert "KeyError" not in answers[0].error
        server.model.engine.run = run
        await client.send(ask(ONE))
        assert (await client.answer()).body == right


@on_loop
async def test_a_request_on_the_lane_is_answered_before_the_end(fashion: Path) -> None:
    """SIGTERM waits for the engine; the answer says that the connection ends."""
    async with held(fashion) as (server, valve, first):
        stopping = asyncio.create_task(server.stop())
        while not server.server.should_exit or server.server.servers[0].is_serving():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        valve.open.set()
        assert (await first.answer()).status == 200
        assert await first.is_closed()
        await stopping
