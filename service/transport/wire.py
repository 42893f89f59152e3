"""Answers as bytes on the wire, for whoever answers below the application: status line, headers, body.

Pure functions. What is answered through FastAPI is written by uvicorn instead; both carry the same headers.
"""

import re
import secrets
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ..bodies.answers import error_json
from ..errors import ServiceError

Headers = Iterable[tuple[bytes, bytes]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


def request_id(headers: Headers) -> bytes:
    """Return the client's X-Request-ID where it is at most 64 safe characters, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(8).encode()


def answer(status: int, headers: Headers, body: bytes, *, is_last: bool) -> bytes:
    """Return a whole answer; Content-Length is added, and `Connection: close` when it is the connection's last."""
    lines = [STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in headers)]
    lines.append(b"content-length: %d\r\n" % len(body))
    lines.append(b"connection: close\r\n\r\n" if is_last else b"\r\n")
    lines.append(body)
    return b"".join(lines)


def error_answer(error: ServiceError, request_headers: Headers, default_headers: Headers, seconds: float) -> bytes:
    """Return the answer that refuses a request and ends its connection.

    Args:
        error: gives status, sentence and headers of its own.
        request_headers: as far as they came, for the id.
        default_headers: what the server adds to every answer.
        seconds: since the request began.
    """
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id(request_headers)),
        (b"server-timing", b"total;dur=%.3f" % (seconds * 1000)),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
    ]
    return answer(error.status, headers, error_json(str(error)), is_last=True)
