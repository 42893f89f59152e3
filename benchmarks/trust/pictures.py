"""K2 and K20: pictures, whose decoding is work: as much as there are cores, refused at once beyond, within memory.

The load is the open loop of `benchmarks.endurance`; its requests are photographs of twelve megapixels, and so few bytes
that sending them costs little beside decoding them. What the machine can do changes while others work on it: so
capacity is measured before and after each load, and a load is held against the mean of both. The load runs on the same
cores as the service, which clients elsewhere do not: the processor time that it took, as the system counts it for its
process, is no part of what the service could have used. What its bytes cost the service stays in.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.endurance.load import beside
from benchmarks.endurance.setup import Service
from benchmarks.serving.open_loop import Connection, Load
from benchmarks.trust.asking import ask, get, raw, request, statuses
from benchmarks.trust.row import Bench, Measured, Row
from foldserve.service.cores import available_cores
from tests.support.pictures import encoded

PHOTO = (4_000, 3_000)
DEADLINE_MS = 2_000
LEVELS = (2, 4)  # times capacity
ROUNDS = 3
BYTES_OF_A_VALUE = 4  # of a pixel and channel, beside the picture itself
SPARE_BYTES = 24 * 1024 * 1024  # of decoder and allocator, whatever the picture


class PhotoLoad(Load):
    """An open loop whose requests are too long for a socket that never waits; counts what is answered while it asks.

    It looks for answers each two milliseconds, since looking more often takes a twentieth of the machine.
    """

    nap_seconds = 0.002

    def run(self, rate: float, seconds: float) -> dict[str, object]:
        """Send, and return the summary; what comes after the last request was sent says nothing of the rate."""
        self._until, self.within = time.perf_counter() + seconds, 0
        return {**super().run(rate, seconds), "within": self.within}

    def _answered(self, connection: Connection, status: int, head: bytes, body: bytes) -> None:
        super()._answered(connection, status, head, body)
        self.within += status == 200 and time.perf_counter() <= self._until

    def _open(self) -> Connection:
        connection = super()._open()
        connection.sock.setblocking(True)
        return connection


def too_many(bench: Bench) -> Measured:
    """K2: twice and four times as many photographs as are decoded when just enough ask at once; medians of rounds."""
    headers = {"Content-Type": "image/jpeg", "X-Deadline-Ms": str(DEADLINE_MS)}
    sent = request("POST", "/predict", photo(), headers)
    shares: dict[int, list[float]] = {times: [] for times in LEVELS}
    runs, own = [], []
    # The first pictures import the decoder, say how fast it is, and the C library keeps one's memory in each thread.
    with bench.serve(warm=lambda service: capacity_of(service, sent, 2.0)) as service:
        capacities = [capacity_of(service, sent, bench.seconds / 2)]
        for times in LEVELS * ROUNDS:
            run = offer(service, sent, times * capacities[-1], bench.seconds)
            capacities.append(capacity_of(service, sent, bench.seconds / 2))
            own.append(run["cpu_seconds"] / bench.seconds / available_cores())
            able = float(np.mean(capacities[-2:])) * (1 - own[-1])
            shares[times].append(run["within"] / bench.seconds / able)
            runs.append(run)
        ready = get(service.port, "/v2/health/ready").status
    medians = {times: float(np.median(found)) for times, found in shares.items()}
    refused = float(np.median([run["refused_ms"]["p99"] or 0.0 for run in runs]))
    harmed = sum(run["resets"] + run["unanswered"] for run in runs)
    ranges = {times: f"{min(found):.2f} to {max(found):.2f}" for times, found in shares.items()}
    words = ", ".join(f"{medians[times]:.2f} C ({ranges[times]}) at {times} C" for times in LEVELS)
    words = f"C = {np.median(capacities):.0f} photographs/s ({min(capacities):.0f} to {max(capacities):.0f}): {words}"
    words = f"{words} less the {min(own):.0%} to {max(own):.0%} of the cores that the load took"
    words = f"{words}; refusals p99 {refused:.0f} ms, {harmed} cut off; ready {ready}"
    return Measured(words, min(medians.values()) >= 0.9 and refused <= 50 and not harmed and ready == 200)


def photo() -> bytes:
    """A photograph of twelve megapixels: colours that change slowly."""
    few = np.random.default_rng(1).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return encoded(Image.fromarray(few).resize(PHOTO, Image.Resampling.BICUBIC), "JPEG", quality=75)


def capacity_of(service: Service, sent: bytes, seconds: float) -> float:
    """Photographs a second that are answered when four clients ask one after the other."""
    until = time.perf_counter() + seconds

    def client(_: int) -> int:
        done = 0
        while time.perf_counter() < until:
            done += raw(service.port, sent).status == 200 and time.perf_counter() <= until
        return done

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(client, range(4))) / seconds


def offer(service: Service, sent: bytes, rate: float, seconds: float) -> dict[str, Any]:
    """Send photographs at a rate, from another process."""
    with beside() as begin:
        run: dict[str, Any] = begin(PhotoLoad, (service.port, [sent], [], None, 200), rate, seconds).result()
    return run


def memory(bench: Bench) -> Measured:
    """K20: the most memory that pictures of many kinds take, each alone."""
    with bench.serve() as service:
        found = {name: grown(service, *one) for name, one in kinds().items()}
    worst = max(found, key=lambda name: found[name][1])
    over = [name for name, (_, share) in found.items() if share > 1]
    words = f"{len(found)} kinds, {len(over)} over it; most of its bound takes {worst}: {found[worst][1]:.2f}"
    return Measured(f"{words}; {statuses(answer for answer, _ in found.values())}", not over)


def grown(service: Service, body: bytes, kind: str, values: int, own_bytes: int) -> tuple[Any, float]:
    """Send a picture; return the answer, and the memory that it took at most as a part of its bound."""
    workers = service.workers()
    for pid in workers:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    before = service.rss_kib()
    answer = ask(service.port, "POST", "/predict", body, {"Content-Type": kind}, timeout=30)
    peak = sum(peak_kib(pid) for pid in workers)
    bound = values * (BYTES_OF_A_VALUE + own_bytes) + len(body) + SPARE_BYTES
    return answer, (peak - before) * 1024 / bound


def peak_kib(pid: int) -> int:
    """The most resident memory of a process since it was last asked to forget."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0])


def kinds() -> dict[str, tuple[bytes, str, int, int]]:
    """Name -> file, media type, pixels x channels, bytes of one of those in the picture itself."""
    size = (4_000, 4_000)
    pixels = size[0] * size[1]
    grey = Image.new("L", size, 77)
    return {
        "16-bit grey PNG": (encoded(grey.convert("I;16")), "image/png", pixels, 2),
        "grey PNG": (encoded(grey), "image/png", pixels, 1),
        "bilevel PNG": (encoded(grey.convert("1")), "image/png", pixels, 1),
        "palette PNG": (encoded(grey.convert("P")), "image/png", 3 * pixels, 1),
        "PNG with alpha": (encoded(grey.convert("RGBA")), "image/png", 4 * pixels, 1),
        "grey JPEG": (encoded(grey, "JPEG"), "image/jpeg", pixels, 1),
        "progressive JPEG": (encoded(grey.convert("RGB"), "JPEG", progressive=True), "image/jpeg", 3 * pixels, 2),
        "CMYK JPEG": (encoded(grey.convert("CMYK"), "JPEG"), "image/jpeg", 4 * pixels, 1),
    }


ROWS = [
    Row(
        "K2",
        "decoding is admitted as work",
        "goodput >= 0.9 C at 2 C and 4 C, refusals p99 <= 50 ms",
        too_many,
        change="patient-decoding",
        part=12,
    ),
    Row(
        "K20",
        "memory of pictures",
        "4 bytes a pixel and channel beside the picture, and 24 MiB",
        memory,
        change="wide-pixels",
        workers=(1,),
        part=12,
    ),
]
