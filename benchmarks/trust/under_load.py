"""R1 to R6, R9, R12, R15, R28, R31 and R33: what holds while many ask.

The load is that of `benchmarks.endurance`: an open loop in a process of its own, every answer compared.
"""

import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.endurance import clients, kills, memory, starved
from benchmarks.endurance.load import LeavingLoad, beside
from benchmarks.endurance.setup import Found, Service
from benchmarks.serving.open_loop import Load, requests_for
from benchmarks.serving.slowed_service import ROWS_PER_SECOND
from benchmarks.trust.asking import ask, post
from benchmarks.trust.row import Bench, Measured, Row
from foldserve.service.keys import new_key
from tests.support import artifacts

BUCKETS = "--buckets 1,2,4,8,16,32,64"
CONNECTIONS = 1_000


def load(service: Service, rate: float, seconds: float, deadline_ms: int | None = None) -> dict[str, Any]:
    """Send images at a rate, in another process."""
    requests = requests_for("/predict", service.bodies, deadline_ms)
    seconds_left = deadline_ms / 1000 if deadline_ms else None
    with beside() as begin:
        run: dict[str, Any] = begin(
            Load, (service.port, requests, service.alone, seconds_left, CONNECTIONS), rate, seconds
        ).result()
    return run


def harm(run: dict[str, Any]) -> int:
    """Answers that were wrong, cut off or never came."""
    return int(run["wrong"] + run["resets"] + run["unanswered"])


def figures(found: Found) -> Measured:
    """The figures of a check of `benchmarks.endurance` as one."""
    words = [f"{figure.what}: {figure.measured}" for figure in found.figures if not figure.is_met]
    first = f"{found.figures[0].what}: {found.figures[0].measured}"
    return Measured("missed " + "; ".join(words) if words else first, not words)


def overload(bench: Bench) -> Measured:
    """R1: four times as much as it can answer."""
    capacity = ROWS_PER_SECOND * bench.workers
    with bench.serve(BUCKETS, "slowed") as service:
        run = load(service, 4 * capacity, bench.seconds, 250)
    goodput, p99 = run["goodput"] / capacity, run["refused_ms"]["p99"] or 0.0
    is_kept = goodput >= 0.9 and p99 <= 50 and not harm(run) and not run["refused_without_retry_after"]
    return Measured(
        f"goodput {goodput:.2f} C, refusals p99 {p99:.1f} ms, {harm(run)} wrong, cut off or missing; "
        f"lag p99 {run['lag_p99_ms']} ms",
        is_kept,
    )


def deadlines(bench: Bench) -> Measured:
    """R2: a deadline of 50 ms before a slow model, at one and a half times what it can answer."""
    with bench.serve(BUCKETS, "slowed") as service:
        run = load(service, 1.5 * ROWS_PER_SECOND * bench.workers, bench.seconds, 50)
    p99 = max(run["accepted_ms"]["p99"] or 0.0, run["refused_ms"]["p99"] or 0.0)
    return Measured(f"answered or refused after {p99:.1f} ms at the 99th percentile", p99 <= 70 and not harm(run))


def not_mixed(bench: Bench) -> Measured:
    """R3: each answer is that of its own question."""
    with bench.serve() as service:
        run = load(service, 2_500, bench.seconds)
    return Measured(f"{harm(run)} wrong, cut off or missing of {run['sent']:,}", not harm(run) and run["sent"] > 0)


def same_numbers(bench: Bench) -> Measured:
    """R4: an image alone and among fifteen others; no canary, which would stop a noisy service first."""
    with bench.serve("--canary-seconds 0") as service:
        together = probabilities(service, b"".join(service.bodies))
        alone = np.concatenate([probabilities(service, body) for body in service.bodies])
    largest = float(np.abs(together - alone).max())
    return Measured(f"largest difference {largest:.1e}", largest <= 1e-5)


def probabilities(service: Service, body: bytes) -> np.ndarray:
    """What `/predict` says of some images."""
    answer = post(service.port, body)
    return np.array([row["probabilities"] for row in json.loads(answer.body)["predictions"]])


def poison(bench: Bench) -> Measured:
    """R5: seven good requests and a bad one at once, again and again."""
    bad, rounds = bytes(783), 100
    with bench.serve() as service, ThreadPoolExecutor(8) as pool:
        good = service.bodies[:7]
        answers = [
            [one.status for one in pool.map(lambda body: post(service.port, body), [*good, bad])] for _ in range(rounds)
        ]
    harmed = sum(status != 200 for row in answers for status in row[:7])
    refused = sum(row[7] in (400, 413) for row in answers)
    return Measured(f"{7 * rounds - harmed} x 200, {refused} x 4xx", not harmed and refused == rounds)


def killed(bench: Bench) -> Measured:
    """R6: workers are killed under load."""
    changes = ",".join(name for name in ("slowed", bench.change) if name)
    return figures(kills.measure(bench.models, 3, max(12.0, bench.seconds), changes))


def swaps(bench: Bench) -> Measured:
    """R9: `latest` goes back and forth under load, and each answer is that of the version that it names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for version in (1, 2):
            artifacts.publish_classifier(folder / "models", version=version, seed=version)
        key, line = new_key("trust", ["admin"])
        (folder / "keys").write_text(f"{line}\n")
        flags = f"--keys-file {folder}/keys --state-dir {folder}/state --closed-scopes read --poll-seconds 0.2"
        pixels = artifacts.images(1, seed=3)
        right = {
            seed: artifacts.classify(pixels, artifacts.classifier_weights(seed))["probabilities"] for seed in (1, 2)
        }
        with bench.serve(flags, models=folder / "models", lives=False) as service:
            ended = threading.Event()
            seen: list[tuple[int, int, Any]] = []
            asker = threading.Thread(target=ask_until, args=(service, pixels.tobytes(), ended, seen))
            asker.start()
            moves = [move(service, key, 1 + number % 2) for number in range(int(5 * bench.seconds))]
            ended.set()
            asker.join()
    wrong = sum(not np.allclose(given, right[version], atol=1e-5) for status, version, given in seen if status == 200)
    failed = sum(status != 200 for status, *_ in seen) + sum(status != 200 for status in moves)
    versions = {version for _, version, _ in seen}
    is_kept = not wrong and not failed and versions == {1, 2}
    return Measured(
        f"{len(moves)} swaps, {len(seen):,} answers of versions {versions}: {failed} failed, {wrong} wrong", is_kept
    )


def move(service: Service, key: str, version: int) -> int:
    """Promote a version."""
    body = json.dumps({"version": version}).encode()
    path = "/v2/repository/models/fashion/promote"
    return ask(service.port, "POST", path, body, {"Authorization": f"Bearer {key}"}).status


def ask_until(service: Service, body: bytes, ended: threading.Event, seen: list[tuple[int, int, Any]]) -> None:
    """Ask again and again, and note what came."""
    while not ended.is_set():
        answer = post(service.port, body)
        version = int(answer.headers.get("x-model-version", 0))
        given = [row["probabilities"] for row in json.loads(answer.body)["predictions"]] if answer.status == 200 else []
        seen.append((answer.status, version, given))


def leaving(bench: Bench) -> Measured:
    """R12: half of the clients close while they wait."""
    return figures(clients.measure_leaving(bench.models, bench.seconds, f"slowed,noting,{bench.change}"))


def slow_readers(bench: Bench) -> Measured:
    """R14: clients that read a byte a second."""
    return figures(clients.measure_slow_readers(bench.models, bench.seconds, bench.flags))


def memory_slope(bench: Bench) -> Measured:
    """R15: memory over good and malformed requests; `leaking` is the control that the check has itself."""
    requests = int(50_000 * bench.seconds)
    found = memory.measure(requests, requests // 20)
    if bench.change:  # the last figure is that of the service which leaks
        leak = found.figures[-1]
        return Measured(leak.measured, not leak.is_met)
    return figures(found)


def counters(bench: Bench) -> Measured:
    """R28: what clients counted and what `/metrics` says are the same."""
    with bench.serve() as service:
        before = service.total("foldserve_requests_total", route="/predict")
        run = load(service, 1_000, bench.seconds)
        counted = service.total("foldserve_requests_total", route="/predict") - before
    sent = sum(run["statuses"].values())
    return Measured(f"{counted:.0f} counted, {sent} received", counted == sent)


def little_cpu(bench: Bench) -> Measured:
    """R31: half a core, and a tenth of one, in mid-run, where half as much again is asked as can be answered."""
    changes = ",".join(name for name in ("slowed", bench.change) if name)
    return figures(starved.measure(bench.models, bench.seconds, level=1.5, changes=changes))


def soak(bench: Bench) -> Measured:
    """R33: a mix, with clients that crash."""
    with bench.serve(BUCKETS) as service, beside() as begin:
        requests = requests_for("/predict", service.bodies, None)
        crashing = (0.05, True, service.port, requests, service.alone, None, 50)
        rude = begin(LeavingLoad, crashing, 200, 5 * bench.seconds)
        run = load(service, 1_000, 5 * bench.seconds)
        rude.result()
        tracebacks = service.tracebacks()
    words = f"{run['sent']:,} asked beside clients that crash: {harm(run)} wrong, cut off or missing"
    words = f"{words}; {tracebacks} tracebacks"
    return Measured(words, not harm(run) and not tracebacks)


ONE, TWO = (1,), (2,)
ROWS = [
    Row(
        "R1",
        "overload does not collapse",
        "at 4 C: goodput >= 0.9 C, refusals p99 <= 50 ms, 0 wrong or reset, Retry-After",
        overload,
        change="no-admission",
        part=1,
    ),
    Row(
        "R2",
        "deadlines are kept",
        "99 % answered within the deadline + 20 ms",
        deadlines,
        change="no-admission",
        part=1,
    ),
    Row("R3", "batching never mixes answers", "0 wrong", not_mixed, change="lying-once-ready", part=1, is_quick=True),
    Row("R4", "batching does not change numbers", "<= 1e-5", same_numbers, change="noisy", part=1),
    Row(
        "R5",
        "a poison item harms only itself",
        "7 of 8 are 200, the 8th is 4xx, 100 rounds",
        poison,
        change="contagious",
        part=1,
    ),
    Row(
        "R6",
        "a killed worker costs what it was answering",
        "one retry gives 100 %; replaced in 3 s and the load",
        killed,
        change="sluggish",
        workers=TWO,
        part=2,
    ),
    Row(
        "R9",
        "swaps under load",
        "0 failed; each answer is of the version that it names",
        swaps,
        change="mislabelled",
        part=2,
    ),
    Row(
        "R12",
        "who has gone is not answered",
        ">= 95 % of them never run; descriptors back in 2 s; no tracebacks",
        leaving,
        change="unheeding",
        workers=ONE,
        part=2,
    ),
    Row(
        "R14",
        "slow readers",
        "memory <= 100 MiB, each closed by the write deadline, others unharmed",
        slow_readers,
        flags="--write-seconds 60",
        workers=ONE,
        part=2,
    ),
    Row("R15", "memory is bounded", "<= 10 MiB for 10^6 requests", memory_slope, change="leaking", workers=ONE, part=3),
    Row("R28", "counters are true", "equal to the client's", counters, change="uncounted", part=1),
    Row(
        "R31",
        "a starved processor",
        "sheds more, accepted p99 <= 3x, no watchdog",
        little_cpu,
        change="no-admission",
        workers=ONE,
        part=3,
    ),
    Row("R33", "soak", "all of it, with clients that crash", soak, change="lying-once-ready", part=3),
]
