"""An error as bytes on the wire, for what is answered below the application: status line, headers, body.

A pure function. Errors of the application are written by uvicorn instead; both carry the same headers.
"""

from http import HTTPStatus

from ..error_answers import error_answer
from ..errors import ServiceError
from ..request_context import Headers, server_timing


def error_bytes(
    error: ServiceError,
    request_id: bytes,
    default_headers: Headers,
    seconds: float,
    *,
    is_last: bool,
    traceparent: bytes | None = None,
) -> bytes:
    """Return the whole answer to a request that ended in an error.

    Args:
        error: gives status, sentence and headers of its own.
        request_id: of the request.
        default_headers: what the server adds to every answer.
        seconds: since the request began.
        is_last: whether the connection ends with it; then it says `Connection: close`.
        traceparent: of the request.
    """
    answer = error_answer(error, request_id.decode())
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id),
        *([(b"traceparent", traceparent)] if traceparent is not None else ()),
        (b"server-timing", server_timing(total=seconds)),
        *answer.headers,
        (b"content-length", b"%d" % len(answer.body)),
        *([(b"connection", b"close")] if is_last else ()),
    ]
    status_line = b"HTTP/1.1 %d %b\r\n" % (answer.status, HTTPStatus(answer.status).phrase.encode())
    return b"%b%b\r\n%b" % (status_line, b"".join(b"%b: %b\r\n" % header for header in headers), answer.body)
