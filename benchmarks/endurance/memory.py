"""R15: memory does not grow with the number of requests, good or malformed; a service that leaks must be told.

Good requests come closed-loop from `wrk`, malformed ones open-loop from the tests' table. Memory is fitted by a
straight line over the number of requests, first tenth left out.
"""

import os
import subprocess
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.endurance.load import beside
from benchmarks.endurance.setup import Found, Service, serving, wait_until
from benchmarks.serving.open_loop import Load
from benchmarks.serving.servers import OCTETS
from tests.support import artifacts
from tests.support.bad_requests import ALL, MAX_ROWS, BadRequest

CONNECTIONS = 256
BAD_CONNECTIONS = 100
BAD_RATE = 1_000.0
SMALL_BYTES = 8_192  # malformed requests up to this size; one system call sends them
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)  # of Python's default executor, which grows as it is needed
MOST_MIB = 10.0  # for 10^6 requests
SAMPLE_SECONDS = 0.5
WARM_SECONDS = 2.0
ROUND_SECONDS = 5  # of wrk, which counts seconds and not requests

Sample = tuple[float, float]  # requests so far, MiB


def measure(requests: int, malformed: int) -> Found:
    """Send good requests, then malformed ones; then good ones again to a service that leaks, a tenth as many.

    Args:
        requests: good ones, about; sent in rounds of a few seconds.
        malformed: ones that have to be refused.
    """
    with tempfile.TemporaryDirectory() as name:
        models = Path(name)
        artifacts.publish_classifier(models)
        honest = run(models, requests, malformed, "")
        leaking = run(models, requests // 10, 0, "leaking")
    recipe = (
        f"{honest['good']:,} good requests over {CONNECTIONS} connections (wrk, raw bytes, one worker), then "
        f"{honest['bad']:,} malformed ones over {BAD_CONNECTIONS}; a service that keeps 100 bytes a row gets "
        f"{leaking['good']:,} good ones and has to be told by the same fit"
    )
    found = Found("R15", recipe, details={"honest": honest, "leaking": leaking})
    slope = honest["mib_per_million"]
    wanted = f"<= {MOST_MIB:g} MiB for 10^6"
    found.add("memory over the number of requests", wanted, f"{slope:+.1f} MiB for 10^6", slope <= MOST_MIB)
    grew = honest["grew_bad_mib"]
    bar = MOST_MIB * max(malformed, 1) / 1e6
    found.add("of that, while malformed ones came", f"told (even: {bar:.1f} MiB)", f"{grew:+.1f} MiB", True)
    before, after = honest["open_files"]
    found.add("open files", f"{before} as before", str(after), after == before)
    before, after = honest["threads"]
    most = before + POOL_THREADS
    found.add("threads", f"{before} as before, at most {most} if a pool filled", str(after), after <= most)
    statuses = {status: count for status, count in honest["bad_statuses"].items() if not status.startswith("4")}
    expected = honest["expected_5xx"]
    is_right = set(statuses) <= {"501"} and statuses.get("501", 0) == expected
    found.add("malformed ones refused with 4xx, or 501", "all", "all" if is_right else f"{statuses}", is_right)
    slope = leaking["mib_per_million"]
    found.add("the service that leaks", f"> {MOST_MIB:g} MiB for 10^6", f"{slope:+.1f} MiB", slope > MOST_MIB)
    return found


def run(models: Path, requests: int, malformed: int, changes: str) -> dict[str, Any]:
    """Return what one service's memory, descriptors and threads did."""
    with serving(models, f"--max-rows {MAX_ROWS}", changes) as service, beside() as begin:
        (service.folder / "bodies").write_bytes(b"".join(service.bodies))
        table = small_ones()
        wrk(service, 1).wait()  # threads start, buffers take their size, code paths are taken for the first time
        begin(Load, bad_load(service, table), BAD_RATE, WARM_SECONDS).result()
        held = settled(service)
        samples: list[Sample] = [sample(service)]
        first = samples[0][0]
        while samples[-1][0] - first < requests:
            with wrk(service, ROUND_SECONDS) as process:
                while process.poll() is None:
                    time.sleep(SAMPLE_SECONDS)
                    samples.append(sample(service))
        good = samples[-1][0] - first
        before_bad, statuses = samples[-1][1], {}
        if malformed:
            future = begin(Load, bad_load(service, table), BAD_RATE, malformed / BAD_RATE)
            samples += sample_until(service, future)
            statuses = future.result()["statuses"]
        after = settled(service)
        bad = round(sum(statuses.values()))
        return {
            "good": round(good),
            "bad": bad,
            "mib_per_million": slope(samples),
            "grew_bad_mib": samples[-1][1] - before_bad,
            "mib": [samples[0][1], samples[-1][1]],
            "open_files": [held[0], after[0]],
            "threads": [held[1], after[1]],
            "bad_statuses": statuses,
            "expected_5xx": sum(table[number % len(table)].status == 501 for number in range(bad)),
            "samples": samples,
        }


def small_ones() -> list[BadRequest]:
    """Those of the tests' table that are sent at once; one that lies about its length never ends and is not there."""
    return [bad for bad in ALL if len(bad.body) <= SMALL_BYTES]


def bad_load(service: Service, table: list[BadRequest]) -> tuple[Any, ...]:
    """Return the arguments of the open loop that sends them in turn."""
    return service.port, [raw(bad) for bad in table], [], None, BAD_CONNECTIONS


def raw(bad: BadRequest) -> bytes:
    """Return the bytes of a whole request."""
    headers = {"Content-Type": "application/json", **bad.headers, "Content-Length": str(len(bad.body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {bad.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode() + bad.body


def wrk(service: Service, seconds: int) -> "subprocess.Popen[bytes]":
    """Start a closed loop of good requests."""
    env = {"WRK_BODIES": str(service.folder / "bodies"), "WRK_SIZE": "784", "WRK_TYPE": OCTETS, "WRK_HEADER": ""}
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(ROOT / "benchmarks/serving/wrk.lua")]
    command.append(f"http://127.0.0.1:{service.port}/predict")
    return subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL)


def sample(service: Service) -> Sample:
    """Requests that were answered so far, and resident memory."""
    return service.total("foldserve_requests_total"), service.rss_kib() / 1024


def sample_until(service: Service, future: "Future[Any]") -> list[Sample]:
    """Samples until a load has ended."""
    samples = []
    while not future.done():
        time.sleep(SAMPLE_SECONDS)
        samples.append(sample(service))
    return samples


def settled(service: Service) -> tuple[int, int]:
    """Descriptors and threads once every connection of a load has been closed."""
    last = [service.open_files()]

    def is_still() -> bool:
        time.sleep(0.3)
        last.append(service.open_files())
        return last[-1] == last[-2]

    wait_until(is_still, 10)
    return last[-1], service.threads()


def slope(samples: list[Sample]) -> float:
    """MiB for 10^6 requests, by least squares over all but the first tenth of the requests."""
    counts, mib = np.array(samples).T
    start = counts[0] + (counts[-1] - counts[0]) / 10
    kept = counts >= start
    return float(np.polyfit(counts[kept], mib[kept], 1)[0] * 1e6)
