"""Open-loop load: requests leave at planned times whatever the server does, and latency counts from the plan.

    python -m benchmarks.serving.open_loop --port 8000 --rate 1000 --seconds 10 --bodies images.bin --size 784

A process of its own, with nothing in its loop but system calls on sockets that were opened before: no event loop, no
tasks, no garbage collection. A closed loop slows down with its server and so hides the worst; here a late answer delays
nobody. The run is void when the generator itself lags more than 5 ms at its p99. Prints one JSON object.
"""

import argparse
import contextlib
import gc
import json
import os
import re
import select
import socket
import time
from array import array
from collections import Counter, deque
from pathlib import Path

import numpy as np

MOST_LAG_MS = 5.0
NAP_SECONDS = 0.0002  # where nothing is to be done; the system adds some 60 us
LAST_WAIT_SECONDS = 15.0
CONNECTIONS = 1_000  # twice what a server holds that answers within its deadline of a quarter second
QUANTILES = {"p50": 50.0, "p99": 99.0, "p999": 99.9}

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d+\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Connection:
    """One keep-alive connection with at most one request on it."""

    __slots__ = ("buffer", "free_since", "number", "planned", "sock")

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.planned = self.free_since = 0.0
        self.number = -1  # of the request whose answer is due; -1: none


class Load:
    """The whole run.

    Args:
        port: of 127.0.0.1.
        requests: whole requests, asked in turn.
        expected: the body of each one's answer; empty compares nothing.
        deadline_seconds: an answer counts for the goodput when it comes within; None counts all.
        connections: opened beforehand; when the server holds all of them a request waits for one, its clock running.

    Attributes:
        nap_seconds: at most, where nothing is to be done.
    """

    nap_seconds = NAP_SECONDS

    def __init__(
        self, port: int, requests: list[bytes], expected: list[bytes], deadline_seconds: float | None, connections: int
    ) -> None:
        self.port = port
        self.requests = requests
        self.expected = expected
        self.deadline_seconds = deadline_seconds
        self.poll = select.epoll()
        self.by_descriptor: dict[int, Connection] = {}
        # The one that has rested longest goes first, so that none rests until the server closes it.
        self.free: deque[Connection] = deque(self._open() for _ in range(connections))
        self.lags, self.accepted, self.refused = array("d"), array("d"), array("d")
        self.statuses: Counter[int] = Counter()
        self.in_time = self.wrong = self.resets = self.without_retry_after = self.due = 0

    def run(self, rate: float, seconds: float) -> dict[str, object]:
        """Send everything at random times, wait for what is still due, and sum up."""
        steps = np.random.default_rng(1).exponential(1 / rate, int(rate * seconds * 1.5) + 100).cumsum()
        start, used = time.perf_counter() + 0.05, time.process_time()
        times = (steps[steps < seconds] + start).tolist()
        sent, until = 0, start + seconds + LAST_WAIT_SECONDS
        while sent < len(times) or self.due:
            now = time.perf_counter()
            if now > until:
                break
            while sent < len(times) and times[sent] <= now and self._send(times[sent], sent):
                sent += 1
            events = self.poll.poll(0)
            for descriptor, _ in events:
                self._receive(self.by_descriptor[descriptor])
            if not events:
                ahead = times[sent] - now if sent < len(times) else self.nap_seconds
                time.sleep(max(0.0, min(ahead, self.nap_seconds)))
        return {**self._summary(rate, seconds, sent), "cpu_seconds": round(time.process_time() - used, 3)}

    def _open(self) -> Connection:
        connection = Connection(self.port)
        self.by_descriptor[connection.sock.fileno()] = connection
        self.poll.register(connection.sock, select.EPOLLIN)
        return connection

    def _send(self, planned: float, number: int) -> bool:
        """Send one request that was planned for a moment which may have passed; False when no connection is free."""
        if not self.free:
            return False
        connection = self.free.popleft()
        connection.planned, connection.number = planned, number
        self.due += 1
        self.lags.append(time.perf_counter() - max(planned, connection.free_since))
        try:
            connection.sock.send(self.requests[number % len(self.requests)])  # small: one call takes it whole
        except OSError:
            self._lost(connection)
        return True

    def _receive(self, connection: Connection) -> None:
        """Take what came; count an answer once it is whole."""
        try:
            data = connection.sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(connection)
            return
        data = connection.buffer + data
        end = data.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(data, 0, end) if end > 3 else None
        if length is None or len(data) < end + int(length[1]):
            connection.buffer = data
            return
        connection.buffer = b""
        self._answered(connection, int(data[9:12]), data[: end - 2], data[end:])

    def _answered(self, connection: Connection, status: int, head: bytes, body: bytes) -> None:
        seconds = time.perf_counter() - connection.planned
        number, connection.number = connection.number, -1
        self.due -= 1
        self.statuses[status] += 1
        if status == 200:
            self.accepted.append(seconds)
            self.in_time += self.deadline_seconds is None or seconds <= self.deadline_seconds
            self.wrong += bool(self.expected) and self.expected[number % len(self.expected)] != body
        else:
            self.refused.append(seconds)
            self.without_retry_after += status == 503 and not _RETRY_AFTER.search(head)
        if _CLOSE.search(head):
            self._drop(connection)
            connection = self._open()
        connection.free_since = time.perf_counter()
        self.free.append(connection)

    def _lost(self, connection: Connection) -> None:
        """A connection ended; one that was due an answer was reset."""
        if connection.number >= 0:
            self.resets += 1
            self.due -= 1
        else:
            self.free.remove(connection)
        self._drop(connection)
        with contextlib.suppress(OSError):  # the server is gone: what is planned cannot be sent, and is void
            self.free.append(self._open())

    def _drop(self, connection: Connection) -> None:
        del self.by_descriptor[connection.sock.fileno()]
        self.poll.unregister(connection.sock)
        connection.sock.close()

    def _summary(self, rate: float, seconds: float, sent: int) -> dict[str, object]:
        lag = milliseconds(self.lags)["p99"]
        return {
            "rate": rate,
            "seconds": seconds,
            "sent": sent,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "goodput": self.in_time / seconds,
            "accepted_ms": milliseconds(self.accepted),
            "refused_ms": milliseconds(self.refused),
            "wrong": self.wrong,
            "resets": self.resets,
            "unanswered": self.due,
            "refused_without_retry_after": self.without_retry_after,
            "connections": len(self.by_descriptor),
            "lag_p99_ms": lag,
            "void": lag is None or lag > MOST_LAG_MS,
        }


def milliseconds(seconds: "array[float]") -> dict[str, float | None]:
    """Return the quantiles of times in seconds, in milliseconds; None of nothing."""
    if not seconds:
        return dict.fromkeys(QUANTILES)
    return {name: round(float(np.percentile(seconds, q)) * 1e3, 3) for name, q in QUANTILES.items()}


def requests_for(path: str, bodies: list[bytes], deadline_ms: int | None) -> list[bytes]:
    """Return whole requests with binary bodies, ready to be sent."""
    deadline = f"X-Deadline-Ms: {deadline_ms}\r\n" if deadline_ms else ""
    return [
        (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n{deadline}"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        + body
        for body in bodies
    ]


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/predict")
    parser.add_argument("--rate", type=float, required=True, help="requests a second, at random times")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--bodies", type=Path, required=True, help="file of bodies of --size bytes each")
    parser.add_argument("--size", type=int, default=784)
    parser.add_argument("--deadline-ms", type=int)
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="opened beforehand")
    parser.add_argument("--expected", type=Path, help="JSON list: the body of the answer to each body")
    arguments = parser.parse_args()
    data = arguments.bodies.read_bytes()
    bodies = [data[start : start + arguments.size] for start in range(0, len(data), arguments.size)]
    expected = [text.encode() for text in json.loads(arguments.expected.read_text())] if arguments.expected else []
    deadline_seconds = arguments.deadline_ms / 1e3 if arguments.deadline_ms else None
    requests = requests_for(arguments.path, bodies, arguments.deadline_ms)
    with contextlib.suppress(PermissionError):  # who measures has to be on time, also beside other work
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gc.disable()
    load = Load(arguments.port, requests, expected, deadline_seconds, arguments.connections)
    print(json.dumps(load.run(arguments.rate, arguments.seconds)))


if __name__ == "__main__":
    main()
