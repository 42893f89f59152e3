"""R6: workers are killed at random moments under load, and nobody but those they were answering notices.

An open loop at half of capacity over two workers, with an engine slowed so that capacity is known; every client asks
once more when its connection breaks. The killer knows the service's own processes by their parent, and no others.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.endurance.load import PatientLoad, beside
from benchmarks.endurance.setup import Found, Service, serving, wait_until
from benchmarks.serving.open_loop import requests_for
from benchmarks.serving.slowed_service import ROWS_PER_SECOND

WORKERS = 2
SHARE = 0.5
CONNECTIONS = 200
READY_SECONDS = 3.0  # besides what the model takes to load
_DYING_SECONDS = 0.1  # a killed process keeps its sockets until its memory has been given back


def measure(models: Path, kills: int, seconds: float, changes: str = "slowed") -> Found:
    """Kill so many workers in so many seconds.

    Args:
        models: folder of models.
        kills: at random moments, each of a worker chosen at random.
        seconds: of the whole load.
        changes: to the service, see `service.py`.
    """
    rate = SHARE * WORKERS * ROWS_PER_SECOND
    with serving(models, "--buckets 1,2,4,8,16,32,64", changes, WORKERS) as service, beside() as begin:
        load = (service.port, requests_for("/predict", service.bodies, None), service.alone, None, CONNECTIONS)
        future = begin(PatientLoad, load, rate, seconds)
        fallen = kill_at_random(service, kills, seconds)
        run = future.result()
        loads = [event["seconds"] for event in service.events("ready")]
        answered = service.total("foldserve_requests_total", route="/predict", status="200") - len(service.bodies)
    recipe = (
        f"{kills} x SIGKILL of a random one of {WORKERS} workers at random moments of {seconds:g} s; open loop at "
        f"{SHARE:g} of capacity ({rate:,.0f} requests/s, engine slowed to {ROWS_PER_SECOND:,}/s a worker), "
        f"{CONNECTIONS} connections, one retry"
    )
    found = Found("R6", recipe, details={"run": run, "kills": fallen, "load_seconds": loads, "counted": answered})
    judge(found, run, fallen, max(loads))
    return found


def kill_at_random(service: Service, kills: int, seconds: float) -> list[dict[str, float]]:
    """Kill, and see after how many seconds all workers are ready again.

    A kill whose moment comes before that waits for it: with both gone nobody could answer who asks once more.
    """
    chance = random.Random(6)
    begin = time.perf_counter()
    times = sorted(begin + chance.uniform(0.02, 0.95) * seconds for _ in range(kills))
    fallen: list[dict[str, float]] = []
    for at in times:
        time.sleep(max(0.0, at - time.perf_counter()))
        victim = chance.choice(service.workers())
        killed_at = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        starts = WORKERS + len(fallen) + 1
        fallen.append({"at": killed_at, "ready_again_seconds": until_whole(service, victim, starts) - killed_at})
    return fallen


def until_whole(service: Service, victim: int, starts: int) -> float:
    """Return when the victim was replaced and so many workers had said that they are ready; a gauge outlives them."""

    def is_whole() -> bool:
        workers = service.workers()
        return victim not in workers and len(workers) == WORKERS and len(service.events("ready")) >= starts

    if wait_until(is_whole, 60) is None:
        raise RuntimeError(f"worker {victim} was not replaced within a minute; its service: {service.events()[-3:]}")
    return time.perf_counter()


def judge(found: Found, run: dict[str, Any], fallen: list[dict[str, float]], load_seconds: float) -> None:
    """Note what was promised beside what came."""
    last = [max((kill["at"] for kill in fallen if kill["at"] <= ended), default=0.0) for _, ended in run["losses"]]
    waits = [sent - kill for (sent, _), kill in zip(run["losses"], last, strict=True)]
    others = sum(wait > _DYING_SECONDS for wait in waits)
    in_flight = sum(wait <= 0 for wait in waits)
    measured = f"{len(waits)} failed once: {in_flight} in flight, {len(waits) - in_flight - others} sent while it died"
    found.add("failures, of requests that no killed worker had", "0", f"{others} ({measured})", others == 0)
    refused = sum(count for status, count in run["statuses"].items() if status != "200")
    short = refused + run["failed_twice"] + run["unanswered"]
    share = run["statuses"].get("200", 0) / run["sent"]
    found.add("with one retry", "100 %", f"{share:.4%} of {run['sent']:,} ({short} without an answer)", short == 0)
    found.add("wrong answers", "0", str(run["wrong"]), run["wrong"] == 0)
    times = sorted(kill["ready_again_seconds"] for kill in fallen)
    bar = READY_SECONDS + load_seconds
    measured = f"{times[-1]:.1f} s at most, median {times[len(times) // 2]:.1f} s"
    found.add("replaced and ready", f"<= {bar:.1f} s", measured, times[-1] <= bar)
    found.add("generator's lag, p99", "<= 5 ms", f"{run['lag_p99_ms']} ms", not run["void"])
