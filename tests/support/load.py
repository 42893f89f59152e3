"""Clients that ask without a pause, each on a connection that it keeps, and count what was not answered."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable

from tests.support import artifacts

PIXELS = artifacts.images(1).tobytes()


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Look until something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.05)


class Load:
    """Some clients that ask for predictions, each one request after the other.

    Args:
        port: of this machine.
        context: of TLS; None asks in the clear.
        host: the name in the header Host.
        path: of every request.
        body: of every request.
        clients: how many.
        pause: seconds between an answer and the next request.
        is_split: whether a body follows its head in a packet of its own, as many clients send it.

    Attributes:
        answered: requests with status 200.
        lost: what became of every other one.
    """

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext | None = None,
        *,
        host: str = "localhost",
        path: str = "/predict",
        body: bytes = PIXELS,
        clients: int = 4,
        pause: float = 0,
        is_split: bool = False,
    ) -> None:
        self.answered, self.lost = 0, []
        self._port, self._context, self._pause = port, context, pause
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        self._pieces = (head.encode(), body) if is_split else (head.encode() + body,)
        self._counting = threading.Lock()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask_until_the_end) for _ in range(clients)]

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            return connection
        return self._context.wrap_socket(connection, server_hostname="127.0.0.1")

    def _ask_until_the_end(self) -> None:
        connection, asked = None, 0
        while not self._ended.wait(self._pause):
            try:
                if connection is None:
                    connection, asked = self._connect(), 0
                asked += 1
                for piece in self._pieces:
                    connection.sendall(piece)
                answer = http.client.HTTPResponse(connection, method="POST")
                answer.begin()
                text = answer.read()
                if answer.status != 200:
                    raise http.client.HTTPException(f"{answer.status} {text[:200]!r}")
                with self._counting:
                    self.answered += 1
                is_over = answer.will_close
            except (OSError, http.client.HTTPException) as err:
                self.lost.append(f"{err!r}, request {asked} of its connection")
                is_over = True
            if is_over and connection is not None:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def asked(self) -> int:
        """How many requests there were."""
        return self.answered + len(self.lost)
