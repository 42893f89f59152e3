"""R16: bodies made to fill a memory: bombs, a hundred thousand chunks, more bytes than are allowed.

One after another over connections of their own; what counts is how far the service's memory grows while so many come,
once a tenth as many have been seen.
"""

import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.endurance.setup import Found, Service, serving
from benchmarks.serving.servers import OCTETS
from foldserve.service.settings import MEBIBYTE, Settings
from tests.support import artifacts
from tests.support.bad_requests import BOMB, FLAT_BOMB, INFER

MOST_BODY_BYTES: int = Settings.model_fields["max_body_bytes"].default
CHUNKS = 100_000
SETTLE_SECONDS = 2.0
PIECE = bytes(MEBIBYTE)

Sender = Callable[[int], int]  # port -> status


def measure(times: int) -> Found:
    """Send so many of each kind.

    Args:
        times: of each kind; a tenth as many go before and are not counted.
    """
    kinds: dict[str, tuple[Sender, float, set[int]]] = {
        f"gzip bombs of {len(BOMB) // 1000} kB that hold 100 MB": (gzip_bomb, 32.0, {413}),
        f"deflate bombs of {len(FLAT_BOMB) // 1000} kB that hold 100 MB": (deflate_bomb, 32.0, {413}),
        f"bodies of {CHUNKS:,} chunks": (many_chunks, 1.0, {400, 408, 413}),
        f"bodies that say they hold more than {MOST_BODY_BYTES // MEBIBYTE} MiB": (too_much_said, 1.0, {413}),
        f"chunked bodies that hold more than {MOST_BODY_BYTES // MEBIBYTE} MiB": (too_much_sent, 1.0, {413}),
    }
    recipe = (
        f"{times} of each, one after another; memory after {max(1, times // 10)} of them and after all, "
        f"{SETTLE_SECONDS:g} s later each"
    )
    found = Found("R16", recipe)
    with tempfile.TemporaryDirectory() as models, serving(published(models)) as service:
        for name, (send, most_mib, wanted) in kinds.items():
            attack(service, send, max(1, times // 10))
            before, started = settled(service), time.perf_counter()
            statuses, first_peak = attack(service, send, times - times // 2)
            half = settled(service)
            more_statuses, peak = attack(service, send, times // 2)
            after, seconds = settled(service), time.perf_counter() - started - 2 * SETTLE_SECONDS
            statuses |= more_statuses
            grew, late, peak = after - before, after - half, max(first_peak, peak) - before
            measured = f"{grew:+.2f} MiB, {late:+.2f} of it in the second half; at most {peak:+.0f} meanwhile"
            found.add(f"memory, {times} {name}", f"<= {most_mib:g} MiB", measured, grew <= most_mib)
            words = ", ".join(str(status) for status in sorted(wanted))
            found.add(f"status, {name}", words, ", ".join(map(str, sorted(statuses))), statuses <= wanted)
            figures = {"seconds": seconds, "grew_mib": grew, "late_mib": late, "peak_mib": peak}
            found.details[name] = figures | {"statuses": sorted(statuses)}
        is_whole = gzip_bomb(service.port) == 413 and service.tracebacks() == 0
    found.add("afterwards", "it answers, no traceback", "so" if is_whole else "not so", is_whole)
    return found


def published(folder: str) -> Path:
    """Put the tests' model into a folder."""
    artifacts.publish_classifier(Path(folder))
    return Path(folder)


def attack(service: Service, send: Sender, times: int) -> tuple[set[int], float]:
    """Send so many; return which statuses came, and the most memory right behind one of them, in MiB."""
    statuses, peak = set(), 0.0
    for _ in range(times):
        statuses.add(send(service.port))
        peak = max(peak, service.rss_kib() / 1024)
    return statuses, peak


def settled(service: Service) -> float:
    """Return the service's memory in MiB, once it has had the time to let go of the last request."""
    time.sleep(SETTLE_SECONDS)
    return service.rss_kib() / 1024


def gzip_bomb(port: int) -> int:
    """A body whose end says how much it holds."""
    return ask(port, f"Content-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n", [BOMB], INFER)


def deflate_bomb(port: int) -> int:
    """A body that has to be inflated to know."""
    return ask(port, f"Content-Encoding: deflate\r\nContent-Length: {len(FLAT_BOMB)}\r\n", [FLAT_BOMB], INFER)


def many_chunks(port: int) -> int:
    """A byte a chunk."""
    return ask(port, "Transfer-Encoding: chunked\r\n", [b"1\r\nx\r\n" * CHUNKS, b"0\r\n\r\n"])


def too_much_said(port: int) -> int:
    """Refused before any of it is taken."""
    return ask(port, f"Content-Length: {MOST_BODY_BYTES + 1}\r\n", [PIECE])


def too_much_sent(port: int) -> int:
    """Refused once it has come so far."""
    chunk = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
    return ask(port, "Transfer-Encoding: chunked\r\n", [chunk] * (MOST_BODY_BYTES // len(PIECE) + 1))


def ask(port: int, headers: str, parts: list[bytes], path: str = "/predict") -> int:
    """Send a request until it is whole or the service hears no more; return the status of the answer, 0 for none."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {OCTETS}\r\n{headers}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            for part in (head.encode(), *parts):
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused in the middle: the answer says why
        try:
            return int(connection.recv(64)[9:12] or 0)
        except ConnectionResetError:
            return 0
