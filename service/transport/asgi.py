"""A request at the ASGI application: a parsed head -> a task, the body on the way in, the answer on the way out.

uvicorn's cycle speaks ASGI and writes answers. It is no public interface of uvicorn: a test pins what is used of it.
"""

import asyncio
import logging
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from ..errors import InvalidInput
from .flow import Flow
from .outbox import Outbox
from .parser import ParsedHead
from .proxies import FORWARDED_FOR, TrustedProxies

_HIGH_WATER_BYTES = 64 * 1024  # of a body before the application asks for it
_logger = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, slots=True)
class Server:
    """What uvicorn gives to all connections of one server.

    Attributes:
        config: holds the application.
        state: the open connections, the running tasks, the headers of every answer.
        app_state: what the application's lifespan left for its requests.
    """

    config: Config
    state: ServerState
    app_state: dict[str, Any]

    def run(self, work: Any) -> None:
        """Run a coroutine for a request; the server waits for it before it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)


@dataclass(frozen=True, slots=True)
class Application:
    """The ASGI application as the requests of one connection see it; what their cycles take for their transport.

    Args:
        server: holds it.
        transport: the connection's socket.
        flow: its flow control.
        outbox: where its requests line up.
        close: ends the connection behind an answer that was its last.
        proxies: whose word on the client's address is taken.
        announced: the address that such a proxy named before the first request.
    """

    server: Server
    transport: asyncio.Transport
    flow: Flow
    outbox: Outbox
    close: Callable[[], None]
    proxies: TrustedProxies
    announced: str | None = None

    def write(self, data: bytes) -> None:
        """Write a piece of an answer."""
        self.transport.write(data)

    def is_closing(self) -> bool:
        """Return whether nothing can be written any more."""
        return self.transport.is_closing()

    def scope(self, head: ParsedHead) -> dict[str, Any]:
        """Return the ASGI scope of a request.

        Raises:
            InvalidInput: the target is no path.
        """
        try:
            url = httptools.parse_url(head.target)
            raw_path = url.path or b"/"  # an absolute target may have none
            path = raw_path.decode("ascii")
        except (httptools.HttpParserError, UnicodeDecodeError) as err:
            raise InvalidInput("target: not a path, expected one such as /predict") from err
        return {
            "type": "http",
            "asgi": {"version": self.server.config.asgi_version, "spec_version": "2.3"},
            "http_version": head.version,
            "server": address(self.transport, "sockname"),
            "client": self._client(head),
            "scheme": "http",
            "method": head.method.decode("ascii"),
            "root_path": "",
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "headers": head.headers,
            "state": self.server.app_state.copy(),
        }

    def _client(self, head: ParsedHead) -> tuple[str, int] | None:
        """Return the client's address and the port of its connection."""
        peer = address(self.transport, "peername")
        if peer is not None and self.announced is not None:
            peer = self.announced, peer[1]
        if peer is None or not self.proxies.trusts(peer[0]):
            return peer
        forwarded = [value for name, value in head.headers if name == FORWARDED_FOR]
        return self.proxies.client(peer[0], forwarded), peer[1]


def address(transport: asyncio.Transport, which: str) -> tuple[str, int] | None:
    """Return host and port of one end of a socket, `sockname` or `peername`; None where it has none."""
    info = transport.get_extra_info(which)
    return (str(info[0]), int(info[1])) if isinstance(info, tuple) else None


class AsgiRequest:
    """One request at the application, which runs when its turn has come.

    Args:
        application: what answers it.
        head: of the request.
        is_last: whether the connection ends with its answer.

    Raises:
        InvalidInput: the target is no path.
    """

    answer: bytes | None = None  # it is written piece by piece

    def __init__(self, application: Application, head: ParsedHead, *, is_last: bool) -> None:
        self._application = application
        self._cycle = RequestResponseCycle(
            scope=application.scope(head),  # type: ignore[arg-type]
            transport=application,  # type: ignore[arg-type]
            flow=application.flow,  # type: ignore[arg-type]
            logger=_logger,
            access_logger=_logger,
            access_log=False,
            default_headers=application.server.state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=head.expects_continue,
            keep_alive=not is_last,
            on_response=self._completed,
        )

    # -- the connection calls: what is received ------------------------------------------------------------------

    def add_body(self, data: bytes) -> None:
        """Keep a piece of the body until the application asks for it, which it does not after its answer."""
        cycle = self._cycle
        if cycle.response_complete:
            return
        cycle.body += data
        if len(cycle.body) > _HIGH_WATER_BYTES:
            self._application.flow.pause_reading()
        cycle.message_event.set()

    def complete(self) -> None:
        """The body is whole."""
        self._cycle.more_body = False
        self._cycle.message_event.set()

    def abandon(self) -> bool:
        """Give up a request that will not be whole; False when a part of its answer is written already."""
        if self._cycle.response_started:
            return False
        self._application.outbox.discard(self)
        self.cancel()
        return True

    # -- the outbox calls: its turn ------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the application."""
        server = self._application.server
        server.run(self._cycle.run_asgi(server.config.loaded_app))

    def end_connection(self) -> None:
        """Have the answer say that it is the last."""
        self._cycle.keep_alive = False

    def cancel(self) -> None:
        """Tell the application that its client has gone."""
        self._cycle.disconnected = True
        self._cycle.message_event.set()

    def _completed(self) -> None:
        """Go on behind the answer."""
        self._application.server.state.total_requests += 1
        self._application.flow.resume_reading()
        self._application.outbox.complete(self)
