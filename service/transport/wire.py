"""Answers as bytes on the wire, for whoever answers below the application: status line, headers, body.

Pure functions. What is answered through FastAPI is written by uvicorn instead; both carry the same headers.
"""

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ..error_answers import error_answer
from ..errors import ServiceError
from ..request_context import Headers, read_request_id, server_timing


def answer(status: int, headers: Headers, body: bytes, *, is_last: bool) -> bytes:
    """Return a whole answer; Content-Length is added, and `Connection: close` when it is the connection's last."""
    lines = [STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in headers)]
    lines.append(b"content-length: %d\r\n" % len(body))
    lines.append(b"connection: close\r\n\r\n" if is_last else b"\r\n")
    lines.append(body)
    return b"".join(lines)


def refusal(error: ServiceError, request_headers: Headers, default_headers: Headers, seconds: float) -> bytes:
    """Return the answer that refuses a request and ends its connection.

    Args:
        error: gives status, sentence and headers of its own.
        request_headers: as far as they came, for the id.
        default_headers: what the server adds to every answer.
        seconds: since the request began.
    """
    request_id = read_request_id(dict(request_headers).get(b"x-request-id"))
    refused = error_answer(error, request_id.decode())
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id),
        (b"server-timing", server_timing(total=seconds)),
        *refused.headers,
    ]
    return answer(refused.status, headers, refused.body, is_last=True)
