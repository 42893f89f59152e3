"""Open-loop load: requests leave at planned times whatever the server does, and latency counts from the plan.

    python benchmarks/open_loop.py --port 8000 --rate 1000 --seconds 10 --bodies images.bin --size 784

A process of its own. A closed loop slows down with its server and so hides the worst; here a late answer delays
nobody. The run is void when the generator itself lags more than 5 ms at its p99. Prints one JSON object.
"""

import argparse
import asyncio
import json
import random
import time
from pathlib import Path

import uvloop

MOST_LAG_MS = 5.0
TURN_SECONDS = 0.001


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.planned = 0.0
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def send(self, planned: float, request: bytes) -> None:
        """Send one request that was planned for a moment which may have passed."""
        self.planned = planned
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collect one answer and tell the load."""
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) >= length:
            self.buffer = b""
            self.load.answered(self, int(head[9:12]), head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count a request that died with its connection."""
        self.load.lost(self)


class Load:
    """The whole run."""

    def __init__(self, port: int, requests: list[bytes], rate: float, seconds: float, expected: list[bytes]) -> None:
        self.port = port
        self.requests = requests
        self.expected = expected
        self.rate = rate
        self.seconds = seconds
        self.free: list[Connection] = []
        self.busy: dict[Connection, int] = {}
        self.lags: list[float] = []
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self.statuses: dict[int, int] = {}
        self.wrong = self.resets = self.without_retry_after = 0

    async def run(self) -> dict[str, object]:
        """Send everything, wait for what is still due, and sum up."""
        loop = asyncio.get_running_loop()
        chance = random.Random(1)
        start = loop.time() + 0.1
        at, number = start, 0
        while at < start + self.seconds:
            now = loop.time()
            while at <= now and at < start + self.seconds:
                await self._send(at, number)
                number += 1
                at += chance.expovariate(self.rate)
            await asyncio.sleep(max(0.0, min(at - loop.time(), TURN_SECONDS)))
        deadline = loop.time() + 15
        while self.busy and loop.time() < deadline:  # noqa: ASYNC110 - the end of a run may be coarse
            await asyncio.sleep(0.01)
        return self._summary(number)

    async def _send(self, planned: float, number: int) -> None:
        if self.free:
            connection = self.free.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
        self.busy[connection] = number % len(self.requests)
        connection.send(planned, self.requests[number % len(self.requests)])
        self.lags.append(asyncio.get_running_loop().time() - planned)

    def answered(self, connection: Connection, status: int, head: bytes, body: bytes) -> None:
        """Take an answer."""
        number = self.busy.pop(connection)
        seconds = asyncio.get_running_loop().time() - connection.planned
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.accepted.append(seconds)
            self.wrong += bool(self.expected) and self.expected[number] not in body
        else:
            self.refused.append(seconds)
            self.without_retry_after += status == 503 and b"\r\nretry-after: " not in head.lower()
        if b"\r\nconnection: close" in head.lower():
            connection.transport.close()
        else:
            self.free.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection ended."""
        if self.busy.pop(connection, None) is not None:
            self.resets += 1
        if connection in self.free:
            self.free.remove(connection)

    def _summary(self, sent: int) -> dict[str, object]:
        lag = _percentile(self.lags, 0.99)
        return {
            "rate": self.rate,
            "seconds": self.seconds,
            "sent": sent,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "goodput": len(self.accepted) / self.seconds,
            "accepted_ms": {name: _percentile(self.accepted, q) for name, q in QUANTILES.items()},
            "refused_ms": {name: _percentile(self.refused, q) for name, q in QUANTILES.items()},
            "wrong": self.wrong,
            "resets": self.resets,
            "unanswered": len(self.busy),
            "refused_without_retry_after": self.without_retry_after,
            "lag_p99_ms": lag,
            "void": lag is not None and lag > MOST_LAG_MS,
        }


QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


def _percentile(seconds: list[float], quantile: float) -> float | None:
    """Return a quantile in milliseconds, None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return round(ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1e3, 3)


def requests_for(path: str, media_type: str, bodies: list[bytes], deadline_ms: int | None) -> list[bytes]:
    """Return whole requests, ready to be sent."""
    deadline = f"X-Deadline-Ms: {deadline_ms}\r\n" if deadline_ms else ""
    return [
        (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media_type}\r\n{deadline}"
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
    parser.add_argument("--expected", type=Path, help="JSON list: what the answer to each body has to contain")
    arguments = parser.parse_args()
    data = arguments.bodies.read_bytes()
    bodies = [data[start : start + arguments.size] for start in range(0, len(data), arguments.size)]
    expected = [text.encode() for text in json.loads(arguments.expected.read_text())] if arguments.expected else []
    requests = requests_for(arguments.path, "application/octet-stream", bodies, arguments.deadline_ms)
    started = time.time()
    load = Load(arguments.port, requests, arguments.rate, arguments.seconds, expected)
    print(json.dumps({"started": started, **uvloop.run(load.run())}))


if __name__ == "__main__":
    main()
