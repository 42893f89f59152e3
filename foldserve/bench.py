"""`foldserve bench URL`: a short, bounded load on a service of this machine, and a table of what it answered how fast.

One process asks over open connections, each the next question once the last one is answered. It shows what a service
does on this machine next to its client, which takes a core of it; to compare servers there is `make bench-serving`.
"""

import asyncio
import ipaddress
import json
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from .arguments import Parser, add_json
from .exit_codes import DONE, FAILED, USAGE
from .json_document import complain, fill
from .key_file import KEY_VARIABLE, read_key
from .patience import shown

MOST_CONNECTIONS, MOST_SECONDS = 256, 60.0
_HEADER_END = b"\r\n\r\n"
_COLUMNS = ("connections", "answered", "refused", "answers/s", "p50 ms", "p95 ms", "p99 ms")


@dataclass
class Outcome:
    """What one load got.

    Attributes:
        connections: that asked at once.
        seconds: that it took.
        latencies: seconds of each answer with status 200.
        refused: how many answers had each other status.
    """

    connections: int
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: dict[int, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the row of the table; latencies in milliseconds, None where nothing was answered."""
        cuts = quantiles(self.latencies, n=100, method="inclusive") if len(self.latencies) > 1 else []
        at = {f"p{share} ms": round(cuts[share - 1] * 1000, 2) if cuts else None for share in (50, 95, 99)}
        return {
            "connections": self.connections,
            "answered": len(self.latencies),
            "refused": sum(self.refused.values()),
            "answers/s": round(len(self.latencies) / self.seconds),
            **at,
            "statuses": self.refused,
        }


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. What goes wrong is one line on standard error."""
    arguments = _parser().parse_args(argv)
    try:
        place = loopback(arguments.url)
        connections = [int(count) for count in arguments.connections.split(",")]
        if not all(0 < count <= MOST_CONNECTIONS for count in connections):
            raise ValueError(f"--connections {arguments.connections}: expected numbers from 1 to {MOST_CONNECTIONS}")
        if not 0 < arguments.seconds <= MOST_SECONDS:
            raise ValueError(f"--seconds {arguments.seconds:g}: expected more than 0 and at most {MOST_SECONDS:g}")
        request = question(place, arguments.model)
        outcomes = []
        for count in connections:
            with shown(f"asking over {count} connections for {arguments.seconds:g} s"):
                outcomes.append(asyncio.run(load(place, request, count, arguments.seconds)))
    except ValueError as err:
        complain(f"foldserve bench: {err}")
        return USAGE
    except OSError as err:
        complain(f"foldserve bench: {arguments.url}: {_reason(err)}")
        return FAILED
    rows = [outcome.as_dict() for outcome in outcomes]
    fill(url=arguments.url, loads=rows)
    if not arguments.json:
        print(table(rows))
    return DONE if any(row["answered"] for row in rows) else FAILED


def loopback(url: str) -> SplitResult:
    """Return the parts of an address of this machine.

    Raises:
        ValueError: it is none of HTTP, or of another machine.
    """
    place = urlsplit(url if "://" in url else f"http://{url}")
    host = place.hostname or ""
    try:
        is_here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = False
    if place.scheme != "http" or not is_here:
        raise ValueError(f"{url}: expected an http address of this machine, such as http://127.0.0.1:8000")
    return place


def question(place: SplitResult, model: str | None) -> bytes:
    """Return a request about the first golden sample of a model, as the bytes that are sent.

    Raises:
        ValueError: there is no such model, or it has no sample.
        OSError: the service cannot be asked.
    """
    models = {entry["name"]: entry["version"] for entry in _get(place, "v2")["models"]}
    name: str = model or next(iter(models), "")
    if name not in models:
        raise ValueError(f"model {name!r} is not served; there are {sorted(models)}")
    samples = _get(place, f"v2/models/{quote(name)}/versions/{models[name]}/samples")["samples"]
    if not samples:
        raise ValueError(f"model {name!r} has no golden sample to ask about")
    sample = samples[0]
    is_picture = sample["b64"] is not None
    body = b64decode(sample["b64"]) if is_picture else json.dumps({"instances": [sample["instance"]]}).encode()
    headers = {"Host": place.netloc, "Content-Type": sample["media_type"] or "application/json", **_key()}
    head = "".join(f"{header}: {value}\r\n" for header, value in headers.items())
    path = f"{place.path.rstrip('/')}/predict?model={quote(name)}"
    return f"POST {path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def load(place: SplitResult, request: bytes, connections: int, seconds: float) -> Outcome:
    """Ask over so many connections for so long.

    Raises:
        OSError: the service cannot be reached, or closed a connection.
    """
    outcome, started = Outcome(connections), time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(_ask(place, request, outcome, started + seconds))
    except* OSError as failed:
        raise failed.exceptions[0]  # noqa: B904 - one reason is enough: the others are the same
    outcome.seconds = time.perf_counter() - started
    return outcome


async def _ask(place: SplitResult, request: bytes, outcome: Outcome, end: float) -> None:
    reader, writer = await asyncio.open_connection(place.hostname, place.port or 80)
    try:
        while (began := time.perf_counter()) < end:
            writer.write(request)
            head = await reader.readuntil(_HEADER_END)
            await reader.readexactly(_length(head))
            status = int(head[9:12])
            if status == 200:
                outcome.latencies.append(time.perf_counter() - began)
            else:
                outcome.refused[status] = outcome.refused.get(status, 0) + 1
    except asyncio.IncompleteReadError as err:
        raise ConnectionError("the service closed a connection before its answer was whole") from err
    finally:
        writer.close()


def _length(head: bytes) -> int:
    lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    return next((int(value) for name, _, value in lines if name == b"content-length"), 0)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows for people to read, and below them which statuses the refusals had."""
    lines = ["  ".join(f"{name:>11}" for name in _COLUMNS)]
    lines += ["  ".join(f"{'-' if row[name] is None else row[name]:>11}" for name in _COLUMNS) for row in rows]
    statuses = {
        status: sum(row["statuses"].get(status, 0) for row in rows) for row in rows for status in row["statuses"]
    }
    return "\n".join([*lines, *(f"refused with {status}: {count}" for status, count in sorted(statuses.items()))])


def _get(place: SplitResult, path: str) -> Any:
    request = urllib.request.Request(f"{place.geturl().rstrip('/')}/{path}", headers=_key())
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def _key() -> dict[str, str]:
    key = read_key(None)
    return {"X-API-Key": key} if key else {}


def _reason(err: Exception) -> str:
    """Return why the service did not answer: its own sentence where it gave one."""
    if isinstance(err, urllib.error.HTTPError):
        try:
            return str(json.load(err)["error"])
        except (ValueError, KeyError):
            return f"{err.code} {err.reason}"
    return f"{getattr(err, 'reason', None) or err}; does a service run there?"


def _parser() -> Parser:
    parser = Parser(
        prog="foldserve bench",
        description="Ask a service of this machine about a golden sample, over and over, and say how fast it answered.",
        epilog=f"A key is read from {KEY_VARIABLE}.",
    )
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="of the service (%(default)s)")
    parser.add_argument("--model", help="which model; the first where none is named")
    parser.add_argument("--connections", default="1,8,32", help="how many ask at once, one load each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help=f"of each load, at most {MOST_SECONDS:g} (3)")
    add_json(parser)
    return parser
