"""What is known of one request while it runs: its id, its deadline and where its time goes.

Read in one way from the headers of HTTP, for the application and for the fast lane, and from the metadata of gRPC.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import getrandbits
from typing import Any, TypeVar

from .errors import InvalidInput, clip

T = TypeVar("T")
Headers = Iterable[tuple[bytes, bytes]]
Ids = tuple[bytes | None, bytes | None]  # the client's own: X-Request-ID, None has one made; traceparent

_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
# Version, trace, span and flags; a later version may append more. Source: W3C Trace Context, section 3.2.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a request: the name of the key, None where none was needed, and the address that it was sent from."""

    key: str | None = None
    address: str | None = None


@dataclass(slots=True)
class RequestContext:
    """One request.

    Attributes:
        request_id: the client's own where it is safe to repeat, else a new one.
        started: when it began, on the clock of `time.perf_counter`.
        default_timeout_seconds: within which it is answered or refused where the client does not say otherwise.
        deadline_ms: the header X-Deadline-Ms as the client wrote it.
        traceparent: the client's place in a trace, where it is one.
        remaining_seconds: what the transport itself says of the deadline, as gRPC does.
        stages: seconds by stage, in order: parse (decode where pictures wait for a decoder), queue, infer.
        answered: when the model gave its answer, on the same clock.
        model_headers: what the version that answered says of itself, once one has.
        caller: who made it, once the key was checked.
        asked: name and version of the model that was asked, and how many rows, once they are known.
    """

    request_id: str
    started: float
    default_timeout_seconds: float
    deadline_ms: bytes | None = None
    traceparent: bytes | None = None
    remaining_seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    answered: float = 0.0
    model_headers: tuple[tuple[bytes, bytes], ...] = ()
    caller: Caller = Caller()
    asked: tuple[str, int, int] | None = None

    @classmethod
    def read(
        cls, headers: Headers, default_timeout_seconds: float, remaining_seconds: float | None = None
    ) -> "RequestContext":
        """Return the context of a request that begins now; names of headers are in lower case."""
        by_name = dict(headers)
        return cls(
            read_request_id(by_name.get(b"x-request-id")).decode(),
            time.perf_counter(),
            default_timeout_seconds,
            by_name.get(b"x-deadline-ms"),
            read_traceparent(by_name.get(b"traceparent")),
            remaining_seconds,
        )

    def deadline(self, timeout_seconds: float | None = None) -> float:
        """Return the moment after which an answer is of no use, on the clock of `time.perf_counter`.

        Args:
            timeout_seconds: what the body says of it; the shortest limit that the client gives holds.

        Raises:
            InvalidInput: the header X-Deadline-Ms is not a whole number of milliseconds above 0.
        """
        stated = (read_timeout(self.deadline_ms), self.remaining_seconds, timeout_seconds)
        return self.started + shortest_timeout(self.default_timeout_seconds, *stated)

    def next_in_stream(self) -> "RequestContext":
        """Return the context of a request that begins now on the same stream."""
        return replace(self, started=time.perf_counter(), stages={}, model_headers=(), asked=None)

    async def parse(self, read: Callable[..., T], *arguments: Any, is_quick: bool) -> T:
        """Return `read(*arguments)`, and keep how long it took.

        Args:
            read: makes arrays of a body.
            arguments: of it.
            is_quick: whether the event loop can afford it; else it runs in a thread.
        """
        started = time.perf_counter()
        result = read(*arguments) if is_quick else await asyncio.to_thread(read, *arguments)
        self.stages["parse"] = time.perf_counter() - started
        return result

    def known(self) -> dict[str, Any]:
        """Return what a line about the request may say of it."""
        model, version, rows = self.asked or (None, None, None)
        told = {"request_id": self.request_id, "model": model, "version": version, "rows": rows}
        told |= {"key": self.caller.key, "address": self.caller.address}
        return told if self.traceparent is None else told | {"trace_id": trace_id(self.traceparent)}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer that starts now."""
        timing = server_timing(**self.stages, total=time.perf_counter() - self.started)
        trace = [] if self.traceparent is None else [(b"traceparent", self.traceparent)]
        return [(b"x-request-id", self.request_id.encode()), *trace, (b"server-timing", timing), *self.model_headers]


def safe_request_id(value: bytes | None) -> bytes | None:
    """Return a client's X-Request-ID where it is at most 64 safe characters, else None."""
    return value if value is not None and _SAFE_ID.fullmatch(value) else None


def read_request_id(value: bytes | None) -> bytes:
    """Return a client's X-Request-ID where it is safe to repeat, else a new id."""
    return safe_request_id(value) or new_request_id()


def read_traceparent(value: bytes | None) -> bytes | None:
    """Return a client's traceparent where it is one as the W3C writes it, else None."""
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None


def trace_id(traceparent: bytes) -> str:
    """Return the trace that a traceparent belongs to, 32 hexadecimal digits."""
    return traceparent[3:35].decode()


def new_request_id() -> bytes:
    """Return a new request id: 16 random hexadecimal digits, different in each worker."""
    return b"%016x" % getrandbits(64)


def read_timeout(deadline_ms: bytes | None) -> float | None:
    """Return the seconds that the header X-Deadline-Ms gives; None where there is no such header.

    Raises:
        InvalidInput: it is not a whole number of milliseconds above 0.
    """
    if deadline_ms is None:
        return None
    if not (deadline_ms.isdigit() and len(deadline_ms) <= 9 and int(deadline_ms)):
        quoted = clip(deadline_ms.decode("latin-1"))
        raise InvalidInput(f"X-Deadline-Ms: {quoted!r}, expected a whole number of milliseconds above 0")
    return int(deadline_ms) / 1000


def shortest_timeout(default_seconds: float, *stated: float | None) -> float:
    """Return the shortest of the timeouts that a client states, in seconds; the default where it states none."""
    return min((seconds for seconds in stated if seconds is not None), default=default_seconds)


def server_timing(**seconds: float) -> bytes:
    """Return the header Server-Timing: the milliseconds of each stage, in this order."""
    return b", ".join(b"%b;dur=%.3f" % (stage.encode(), spent * 1000) for stage, spent in seconds.items())


def answer_timing(parse: float, queue: float, infer: float, total: float, first: bytes = b"parse") -> bytes:
    """Return the same for a whole answer; in one go, since the fast lane writes one for each.

    `first` is the name of the first stage.
    """
    stages = (first, parse * 1000, queue * 1000, infer * 1000, total * 1000)
    return b"%b;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f, total;dur=%.3f" % stages
