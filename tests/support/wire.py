"""A real uvicorn on a free port of this machine, and a client that sees every byte, for tests of the protocol."""

import asyncio
import dataclasses
import functools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn
import uvloop

from foldserve.service.settings import Settings
from foldserve.service.transport.asgi import Server
from foldserve.service.transport.connection import GUARD, Connection
from foldserve.service.transport.guard import Guard
from foldserve.service.transport.limits import ConnectionLimits, connection_limits

App = Callable[[dict, Callable[[], Awaitable[dict]], Callable[[dict], Awaitable[None]]], Awaitable[None]]


@dataclass
class Answer:
    """One answer, taken apart."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The sentence of an error answer, which holds nothing else."""
        document = orjson.loads(self.body)
        assert list(document) == ["error"], document
        assert self.headers["content-type"] == "application/json"
        return document["error"]


class Client:
    """One connection; `send` writes bytes as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write and wait until the kernel has taken it."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, has_body: bool = True) -> Answer:
        """Read the next answer, interim ones included."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        status = int(lines[0].split()[1])
        length = int(headers.get("content-length", "0")) if has_body and status != 100 else 0
        return Answer(status, headers, await self.reader.readexactly(length))

    async def is_closed(self) -> bool:
        """Wait until the server closes; False if it says anything more before."""
        return await self.reader.read() == b""

    def reset(self) -> None:
        """Vanish, as a client does that crashes: the server gets a reset rather than an orderly end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def end(self) -> None:
        """Say that nothing more will be sent; answers can still come."""
        self.writer.write_eof()


@dataclass
class Serving:
    """A running server and what a test may look at."""

    port: int
    guard: Guard
    server: uvicorn.Server
    finished: asyncio.Task[None]

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        """Open a connection, and close it whatever happens."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()

    async def stop(self) -> None:
        """End the server as a signal does, and wait for it."""
        self.server.should_exit = True
        await self.finished


class NullLane:
    """Leaves every request to the application."""

    def receive(self, data: bytes) -> bytes:
        """Leave all of it to the parser."""
        return data

    def accept(self, head: Any) -> None:
        """Leave it."""

    def half_closed(self) -> None:
        """Nothing waits here."""


def connection_without_lane(config: Any, server_state: Any, app_state: dict, _loop: Any = None) -> Connection:
    """What uvicorn calls for each socket."""
    return Connection(Server(config, server_state, app_state), app_state[GUARD], lambda connection: NullLane())


def limited(**limits: Any) -> ConnectionLimits:
    """The limits of the settings, but for those that are given, and for any host."""
    return dataclasses.replace(connection_limits(Settings(allowed_hosts=("*",))), **limits)


def ignore(status: int, seconds: float) -> None:
    """Take note of no refusal."""


@asynccontextmanager
async def serving(
    app: App, limits: ConnectionLimits | None = None, refused: Callable[[int, float], None] = ignore, **options: Any
) -> AsyncIterator[Serving]:
    """Serve a bare ASGI application behind guarded connections until the block ends."""
    guard = Guard(limits or limited(), refused)

    async def with_lifespan(scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        scope["state"][GUARD] = guard
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async with running(with_lifespan, connection_without_lane, **options) as (port, server, finished):
        yield Serving(port, guard, server, finished)


@asynccontextmanager
async def running(
    app: App, protocol: Callable[..., Any], **options: Any
) -> AsyncIterator[tuple[int, uvicorn.Server, asyncio.Task[None]]]:
    """Run uvicorn in this loop on a free port; at the end it is cut off rather than drained, which is quicker."""
    before = asyncio.all_tasks()
    listener = socket.create_server(("127.0.0.1", 0))  # it listens already: a client need not wait for the server
    options = {"timeout_graceful_shutdown": 5, **options}
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="on", access_log=False, log_config=None, **options)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1], server, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for listening in getattr(server, "servers", ()):
            listening.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # lets the transports tell their protocols
        listener.close()
        # uvicorn keeps no hold of its lifespan: one that is left is collected in the middle of whatever runs then.
        made = asyncio.all_tasks() - before
        left = [task for task in made if getattr(task.get_coro(), "__qualname__", "") == "LifespanOn.main"]
        for lifespan in left:
            lifespan.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test on the loop that the service uses, for a minute at most: a busy machine may need some of it."""
    uvloop.run(asyncio.wait_for(test, 60))


async def until(holds: Callable[[], Any]) -> None:
    """Wait for something of which no event tells."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def read_body(receive: Callable[[], Awaitable[dict]]) -> bytes | None:
    """Return the whole body, None when the client has gone before it was complete."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


async def respond(send: Callable[[dict], Awaitable[None]], body: bytes, status: int = 200) -> None:
    """Send a whole answer."""
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an ordinary test of a coroutine function."""

    @functools.wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return call
