"""The limits of a connection: those that are settings, and those that are not."""

from dataclasses import dataclass

from ..settings import Settings
from .hosts import AllowedHosts, allowed_hosts
from .proxies import TrustedProxies


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How much a client may send and hold, and how long it may take.

    Those without a default are settings, which have the default.

    Args:
        header_seconds: from the first byte of a request (or the connection) to the end of its headers; else 408.
        header_bytes: of the request line and all headers together; else 431.
        header_count: headers of one request; else 431.
        body_seconds: how long a body may stand still, the window in which `body_bytes_per_second` counts; else 408.
        body_bytes: of one body, counted as they arrive; else 413.
        body_bytes_per_second: slowest speed of a body over that window.
        write_seconds: head start of a client that reads an answer slowly; then it is cut off.
        write_bytes_per_second: slowest average speed at which an answer is read.
        connections: open at once; one more is answered 503.
        connections_per_address: the same for each peer address.
        proxies: count for no address, since many clients come through them.
        hosts: the names under which requests are answered.
        pipelined: requests of one connection that wait for their turn before we stop reading from it.
        linger_seconds: how long a refused client may go on sending, so that it reads why instead of a reset.
        drain_seconds: how long a half-sent request may go on once the service ends.
    """

    header_seconds: float
    header_bytes: int
    header_count: int = 100
    body_seconds: float
    body_bytes: int
    body_bytes_per_second: int = 16 * 1024
    write_seconds: float
    write_bytes_per_second: int = 16 * 1024
    connections: int
    connections_per_address: int
    proxies: TrustedProxies
    hosts: AllowedHosts
    pipelined: int = 64
    linger_seconds: float = 2.0
    drain_seconds: float = 3.0

    @property
    def tick_seconds(self) -> float:
        """How often to look for the overdue: a tenth of the shortest limit, between 5 ms and a quarter second."""
        shortest = min(
            self.header_seconds, self.body_seconds, self.write_seconds, self.linger_seconds, self.drain_seconds
        )
        return min(0.25, max(0.005, shortest / 10))


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Return the limits that the settings ask for."""
    return ConnectionLimits(
        header_seconds=settings.header_seconds,
        header_bytes=settings.max_header_bytes,
        body_seconds=settings.body_seconds,
        body_bytes=settings.max_body_bytes,
        write_seconds=settings.write_seconds,
        connections=settings.max_connections,
        connections_per_address=settings.max_connections_per_address,
        proxies=TrustedProxies(settings.trusted_proxies),
        hosts=allowed_hosts(settings),
    )
