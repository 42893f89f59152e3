"""R12 and R14: clients that close while they wait, and clients that hardly read.

For R12 the service notes itself how many requests it ran though their client had gone while they waited: nobody
outside can know. For R14 the write deadline is shorter than it is by default, so that the run is.
"""

import functools
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.endurance.load import LeavingLoad, beside
from benchmarks.endurance.setup import Found, Service, serving, wait_until
from benchmarks.serving.open_loop import Load, requests_for
from benchmarks.serving.servers import OCTETS
from benchmarks.serving.slowed_service import ROWS_PER_SECOND

LEAVE_SHARE = 0.8  # of capacity
CONNECTIONS = 400
LONGEST_SECONDS = 0.05  # that one who leaves has waited
NEVER_RUN_SHARE = 0.95
BACK_SECONDS = 2.0

READERS = 50
ANSWER_ROWS = 4_000  # some 1 MB
WRITE_SECONDS = 8
LATE_SECONDS = 2.0  # the service looks each quarter second, and the reader each second
SLOW_MIB = 100.0
BESIDE_RATE = 1_000.0
_ESTABLISHED = "01"
_ONE_AFTER_ANOTHER = threading.Lock()
_ONE_READER = threading.Lock()


def measure_leaving(models: Path, seconds: float, changes: str = "slowed,noting") -> Found:
    """Half of the clients close at a random moment after they have asked, with a reset and then without one.

    Args:
        models: folder of models.
        seconds: of each of the two loads.
        changes: to the service, see `service.py`.
    """
    rate = LEAVE_SHARE * ROWS_PER_SECOND
    recipe = (
        f"open loop at {LEAVE_SHARE:g} of capacity ({rate:,.0f} requests/s, engine slowed) over {CONNECTIONS} "
        f"connections; half of the clients close within {LONGEST_SECONDS * 1e3:g} ms, {seconds:g} s of them with a "
        f"reset, {seconds:g} s as a system closes for a program (which reads like a client that will send no more)"
    )
    found = Found("R12", recipe)
    with serving(models, "--buckets 1,2,4,8,16,32,64", changes) as service, beside() as begin:
        before = service.open_files()
        for is_rude in (True, False):
            noted = notes(service)
            load = (LONGEST_SECONDS, is_rude, service.port, requests_for("/predict", service.bodies, None))
            run = begin(LeavingLoad, (*load, service.alone, None, CONNECTIONS), rate, seconds).result()
            back = wait_until(lambda: service.open_files() <= before, 5 * BACK_SECONDS)
            gone = {name: count - noted[name] for name, count in notes(service).items()}
            judge_leaving(found, "reset" if is_rude else "closed", run, gone, back)
        tracebacks = service.tracebacks()
    found.add("tracebacks in the log", "0", str(tracebacks), tracebacks == 0)
    return found


def notes(service: Service) -> dict[str, float]:
    """What the service counted: requests run, of those run though nobody waited, and never run since nobody did."""
    noted = json.loads((service.folder / "notes").read_text())
    return noted | {"never_run": service.total("foldserve_refused_total", reason="cancelled")}


def judge_leaving(found: Found, way: str, run: dict[str, Any], gone: dict[str, float], back: float | None) -> None:
    """Note what was promised beside what came."""
    queued = gone["never_run"] + gone["run_though_gone"]
    share = gone["never_run"] / queued if queued else 0.0
    measured = f"{share:.1%} ({gone['never_run']:,.0f} of {queued:,.0f}; {run['left']:,} of {run['sent']:,} left)"
    found.add(f"{way}: never run, of those that waited", ">= 95 %", measured, share >= NEVER_RUN_SHARE)
    stayed = run["sent"] - run["left"]
    answered = run["statuses"].get("200", 0)
    found.add(f"{way}: answered, of those that stayed", "all", f"{answered:,} of {stayed:,}", answered == stayed)
    found.add(f"{way}: wrong answers", "0", str(run["wrong"]), run["wrong"] == 0)
    measured = f"{back:.2f} s" if back is not None else f"not within {5 * BACK_SECONDS:g} s"
    found.add(f"{way}: descriptors as before", f"<= {BACK_SECONDS:g} s", measured, (back or 99.0) <= BACK_SECONDS)
    found.details[way] = {"run": run, "gone": gone, "back_seconds": back}


def measure_slow_readers(models: Path, seconds: float, flags: str = "") -> Found:
    """Clients that read a byte a second of an answer of a megabyte, and a little load beside them.

    Args:
        models: folder of models.
        seconds: of the load before they come; beside them it lasts as long as they may.
        flags: further ones of the service.
    """
    with serving(models, f"--write-seconds {WRITE_SECONDS} {flags}") as service, beside() as begin:
        load = (service.port, requests_for("/predict", service.bodies, None), service.alone, None, READERS)
        alone = begin(Load, load, BESIDE_RATE, seconds).result()
        before, rows = service.rss_kib(), service.total("foldserve_rows_total") + READERS * ANSWER_ROWS
        with ThreadPoolExecutor(READERS) as pool:
            readers = [pool.submit(read_slowly, service) for _ in range(READERS)]
            wait_until(lambda: service.total("foldserve_rows_total") >= rows, 60)
            grew = (service.rss_kib() - before) / 1024
            crowd = begin(Load, load, BESIDE_RATE, 0.75 * WRITE_SECONDS).result()
            ends = [reader.result() for reader in readers]
        rss_after = (service.rss_kib() - before) / 1024
    recipe = (
        f"{READERS} clients read 1 byte/s of an answer of {ANSWER_ROWS:,} rows, with a receive buffer of 4 KiB; "
        f"--write-seconds {WRITE_SECONDS} (30 by default); {BESIDE_RATE:g} requests/s of others before and beside"
    )
    found = Found("R14", recipe, details={"alone": alone, "beside": crowd, "ends_seconds": ends, "after": rss_after})
    found.add("memory", f"<= {SLOW_MIB:g} MiB", f"{grew:+.0f} MiB, afterwards {rss_after:+.0f}", grew <= SLOW_MIB)
    closed = sorted(end for end in ends if end is not None)
    bar = WRITE_SECONDS + LATE_SECONDS
    span = f", after {closed[0]:.1f} to {closed[-1]:.1f} s" if closed else ""
    is_kept = len(closed) == READERS and closed[-1] <= bar
    found.add("closed by the write deadline", f"all, <= {bar:g} s", f"{len(closed)} of {READERS}{span}", is_kept)
    usual, p99 = alone["accepted_ms"]["p99"], crowd["accepted_ms"]["p99"]
    found.add("p99 of the others", f"<= 1.5 x {usual:.2f} ms", f"{p99:.2f} ms", p99 <= 1.5 * usual)
    harm = [crowd[name] for name in ("wrong", "resets", "unanswered")]
    found.add("others: wrong / reset / unanswered", "0 / 0 / 0", " / ".join(map(str, harm)), not any(harm))
    return found


def read_slowly(service: Service) -> float | None:
    """Ask for a large answer and read a byte of it each second; seconds until the service ended the connection."""
    body = service.bodies[0] * ANSWER_ROWS
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before it connects, or it has no effect
        connection.connect(("127.0.0.1", service.port))
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {OCTETS}\r\nContent-Length: {len(body)}"
        with _ONE_AFTER_ANOTHER:  # so that none is refused: a large request fills much of the queue
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
            start = connection.recv(12)
        if start != b"HTTP/1.1 200":
            raise RuntimeError(f"the large request was answered with {start!r}, expected HTTP/1.1 200")
        started = time.perf_counter()
        while is_open(service.port, connection.getsockname()[1]):
            if time.perf_counter() - started > 6 * WRITE_SECONDS:
                return None
            time.sleep(1.0)
            connection.recv(1)
        return time.perf_counter() - started


def is_open(port: int, client_port: int) -> bool:
    """Whether the service holds a connection: its client cannot see the end of it before it has read all that came."""
    with _ONE_READER:
        return client_port in clients_of(port, int(time.monotonic()))


@functools.lru_cache(maxsize=1)
def clients_of(port: int, _: int) -> frozenset[int]:
    """The ports of the clients whose connections a service holds, read once a second: fifty reads of it are a load."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = (line.split(maxsplit=4)[1:4] for line in lines)
    ends = ((local.partition(":")[2], remote.partition(":")[2], state) for local, remote, state in rows)
    return frozenset(int(there, 16) for here, there, state in ends if state == _ESTABLISHED and int(here, 16) == port)
