"""A service on the fast lane: served as the command line does, asked byte by byte, and held up at will."""

import asyncio
import base64
import io
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from PIL import Image

from foldserve.service.app import create_app
from foldserve.service.lane.connection import lane_connection
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.wire import Answer, Client, Serving, running, until

OCTETS = b"application/octet-stream"
JSON = b"application/json"
ONE = artifacts.images(1, seed=3).tobytes()
PIXELS = np.frombuffer(ONE, np.uint8)
FLAT = PIXELS.tolist()
NESTED = PIXELS.reshape(28, 28).tolist()


@dataclass
class Service(Serving):
    """A served application, and the paths of the requests that reached it."""

    app: Any = None
    seen: list[str] = field(default_factory=list)

    @property
    def model(self) -> Any:
        """The model that answers."""
        return self.app.state.registry.models()[0]


@asynccontextmanager
async def service(models: Path, **settings: Any) -> AsyncIterator[Service]:
    """Serve `models` as the command line does."""
    settings = {"allowed_hosts": ("here",), **settings}
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


@contextmanager
def of(case: object) -> Iterator[None]:
    """Name the case that fails, of many that one service answers."""
    try:
        yield
    except BaseException as err:
        err.add_note(f"in the case {case!r}")
        raise


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
        assert stages[0] == stages[1], stages


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
        await until(lambda: server.server.started)
        valve = Valve(server)
        try:
            await first.send(ask(ONE))
            await valve.is_held()
            yield server, valve, first
        finally:
            valve.open.set()
