"""Any error -> what a client gets for it, behind every door: HTTP, its fast lane, gRPC, and the connection itself.

The rule that a client learns nothing of a failure of ours but the request's id stands here and nowhere else; `ErrorLog`
writes what the client does not learn. Pure functions and a log: no request, no framework.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from .errors import EngineError, ServiceError

logger = logging.getLogger(__name__)

ERROR_BYTES = 2_048  # of a whole error answer, whatever a message quotes
_REFUSAL_SECONDS = 1.0  # between two lines


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """What a client gets instead of what it wanted.

    Attributes:
        status: of HTTP.
        grpc_status: the name of the gRPC status code.
        message: one sentence.
        headers: those that belong to the error itself, such as Retry-After; names in lower case.
    """

    status: int
    grpc_status: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def body(self) -> bytes:
        """The JSON of the answer."""
        return error_json(self.message)


def error_answer(error: Exception, request_id: str) -> ErrorAnswer:
    """Return the answer to a request that ended in an error; after a failure of ours it holds the id alone."""
    if not isinstance(error, ServiceError) or error.status == 500:
        sentence = f"the service failed on request {request_id}; its log has the reason under this id"
        return ErrorAnswer(500, EngineError.grpc_status, sentence, ())
    headers = tuple((name.lower().encode(), value.encode()) for name, value in error.headers.items())
    return ErrorAnswer(error.status, error.grpc_status, str(error), headers)


def error_json(message: str) -> bytes:
    """Return `{"error": message}`, at most `ERROR_BYTES` long and on one line."""
    sentence = " ".join(message.split())
    answer = orjson.dumps({"error": sentence.encode("utf-8", "replace").decode()})
    if len(answer) <= ERROR_BYTES:
        return answer
    # A character of those kept takes at most two bytes in JSON.
    kept = "".join(char if char.isascii() and char.isprintable() else "?" for char in sentence[: ERROR_BYTES // 2 - 20])
    return orjson.dumps({"error": f"{kept}..."})


class ErrorLog:
    """Lines for errors that are the service's own: one for each failure, for refusals at most one a second.

    The traceback of one that comes again and again is written once a second (`logs`), its reason and id each time.

    A refusal (501, 503, 504) is written at once; those that follow within a second share a line with their number, or
    they would become the load. The metrics have them all. Errors of clients (4xx) are not written.

    Args:
        later: calls something after so many seconds; None uses the running event loop.
    """

    def __init__(self, later: Callable[[float, Callable[[], None]], object] | None = None) -> None:
        self._later = later
        self._unwritten = 0
        self._last: dict[str, object] = {}
        self._is_waiting = False

    def note(self, error: Exception, request_id: str, path: str) -> None:
        """Write what a client is not told about an error, or remember a refusal for the next line."""
        status = error.status if isinstance(error, ServiceError) else 500
        fields = {"request_id": request_id, "status": status, "reason": str(error), "path": path}
        if status == 500:
            logger.error("request failed", exc_info=error, extra=fields)
        elif status > 500:
            self._note_refusal(fields)

    def _note_refusal(self, fields: dict[str, object]) -> None:
        if self._is_waiting:
            self._unwritten += 1
            self._last = {name: fields[name] for name in ("status", "reason")}
            return
        logger.warning("request refused", extra=fields)
        self._wait()

    def _wait(self) -> None:
        self._is_waiting = True
        (self._later or asyncio.get_running_loop().call_later)(_REFUSAL_SECONDS, self._write_rest)

    def _write_rest(self) -> None:
        self._is_waiting = False
        if self._unwritten:
            fields = {"count": self._unwritten, **self._last}
            logger.warning("more requests refused, the last of them so", extra=fields)
            self._unwritten = 0
            self._wait()
