"""Answers as bytes on the wire, for what is answered below the application: status line, headers, body.

Pure functions. What is answered through FastAPI is written by uvicorn instead; both carry the same headers.
"""

from http import HTTPStatus

from ..error_answers import error_answer
from ..errors import ServiceError
from ..request_context import Headers, server_timing


def answer_bytes(status: int, headers: Headers, body: bytes, *, is_last: bool) -> bytes:
    """Return a whole answer; Content-Length is added, and `Connection: close` when it is the connection's last."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%b: %b\r\n" % header for header in headers]
    lines.append(b"content-length: %d\r\n" % len(body))
    lines.append(b"connection: close\r\n\r\n" if is_last else b"\r\n")
    lines.append(body)
    return b"".join(lines)


def error_answer_bytes(
    error: ServiceError, request_id: bytes, default_headers: Headers, seconds: float, *, is_last: bool
) -> bytes:
    """Return the answer to a request that ended in an error.

    Args:
        error: gives status, sentence and headers of its own.
        request_id: of the request.
        default_headers: what the server adds to every answer.
        seconds: since the request began.
        is_last: whether the connection ends with it.
    """
    refused = error_answer(error, request_id.decode())
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id),
        (b"server-timing", server_timing(total=seconds)),
        *refused.headers,
    ]
    return answer_bytes(refused.status, headers, refused.body, is_last=is_last)
