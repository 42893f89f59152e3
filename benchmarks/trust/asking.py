"""Requests as the attacks send them: any bytes over a connection of their own, and the answer taken apart."""

import contextlib
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Answer:
    """An answer; status 0 where none came."""

    status: int
    head: bytes = b""
    body: bytes = b""
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


def raw(port: int, *parts: bytes, timeout: float = 10.0, ends: bool = False) -> Answer:
    """Send bytes as they are and read the first answer; `ends` says that no more will be sent."""
    began, data = time.perf_counter(), b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        with contextlib.suppress(OSError):  # it may be answered before it is read to its end
            for part in parts:
                connection.sendall(part)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while not is_whole(data) and (piece := connection.recv(65_536)):
                data += piece
    return answer(data, time.perf_counter() - began)


def answer(data: bytes, seconds: float = 0.0) -> Answer:
    """Take the first answer of a connection apart."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/1.1 "):
        return Answer(0, head, body, seconds)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Answer(int(lines[0].split()[1]), head, body[: int(headers.get("content-length", 0))], seconds, headers)


def is_whole(data: bytes) -> bool:
    """Whether a whole answer has been read."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(lengths) and len(body) >= int(lengths[0])


def request(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a whole request."""
    lines = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, timeout: float = 10
) -> Answer:
    """Send one request."""
    return raw(port, request(method, path, body, headers), timeout=timeout)


def post(port: int, body: bytes, path: str = "/predict", headers: Mapping[str, str] | None = None) -> Answer:
    """Ask a model with raw bytes."""
    return ask(port, "POST", path, body, {**OCTETS, **(headers or {})})


def get(port: int, path: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Read a path."""
    return ask(port, "GET", path, b"", headers)


def statuses(answers: Iterable[Answer]) -> str:
    """The statuses that came, in words."""
    found = [one.status for one in answers]
    return ", ".join(f"{status} x {found.count(status)}" for status in sorted(set(found)))
