"""R31: in mid-run the service gets less of a core than its load needs; it sheds more, keeps its word, and stays alive.

A control group with a quota where one can be made, as a container's limit is; elsewhere pauses by signals, half of
each tenth of a second. The generator is not limited: who measures has to be on time.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.endurance.load import beside
from benchmarks.endurance.setup import Found, Service, serving
from benchmarks.serving.open_loop import CONNECTIONS, Load, requests_for
from benchmarks.serving.overload import DEADLINE_MS
from benchmarks.serving.slowed_service import ROWS_PER_SECOND
from foldserve.service.metrics import REASONS

PROMISED_CORES = 0.5
HARSH_CORES = 0.1
PERIOD_SECONDS = 0.1
BACK_SHARE = 0.9
CGROUP = Path("/sys/fs/cgroup")


def measure(models: Path, seconds: float, level: float = 1.0, changes: str = "slowed") -> Found:
    """Load for four spans: as it is, on half a core, on a tenth of one, and as it is again.

    Args:
        models: folder of models.
        seconds: of each span.
        level: of capacity, in all of them.
        changes: to the service, see `service.py`.
    """
    rate, spans = level * ROWS_PER_SECOND, {}
    with serving(models, "--buckets 1,2,4,8,16,32,64", changes) as service, beside() as begin:
        requests = requests_for("/predict", service.bodies, DEADLINE_MS)
        load = (service.port, requests, service.alone, DEADLINE_MS / 1e3, CONNECTIONS)

        def span(name: str, cores: float | None) -> str:
            with starved(service.workers(), cores) as way:
                before = refusals(service)
                spans[name] = begin(Load, load, rate, seconds).result()
                spans[name]["refusals"] = {why: count - before[why] for why, count in refusals(service).items()}
            return way

        span("before", None)
        way = span("half", PROMISED_CORES)
        span("tenth", HARSH_CORES)
        span("after", None)
        is_alive = service.running.process.poll() is None
        errors = [event for event in service.events() if event["level"] in ("error", "critical")]
    recipe = (
        f"open loop at {level:g} of capacity ({rate:,.0f} requests/s, engine slowed), deadline {DEADLINE_MS} ms; "
        f"{seconds:g} s as it is, on {PROMISED_CORES:g} of a core ({way}), on {HARSH_CORES:g} (harsher than promised), "
        "and as it is again"
    )
    found = Found("R31", recipe, details={**spans, "errors": errors})
    judge(found, spans, is_alive and not errors)
    return found


def judge(found: Found, spans: dict[str, Any], is_whole: bool) -> None:
    """Note what was promised beside what came."""
    before, half, tenth, after = (spans[name] for name in ("before", "half", "tenth", "after"))
    usual = before["accepted_ms"]["p99"]
    p99 = half["accepted_ms"]["p99"]
    late = usual is None or usual > DEADLINE_MS  # already before: three times that would be no promise
    bar = float(DEADLINE_MS) if late else max(3 * usual, float(DEADLINE_MS))
    is_kept = p99 is not None and p99 <= bar
    found.add(
        f"accepted p99, {PROMISED_CORES:g} core",
        f"<= {bar:.0f} ms (3 x {usual or math.nan:.0f}, deadline)",
        _ms(p99),
        is_kept,
    )
    for name, run in ((f"{PROMISED_CORES:g} core", half), (f"{HARSH_CORES:g} core", tenth)):
        share = run["goodput"] / max(before["goodput"], 1.0)
        refused = sum(count for status, count in run["statuses"].items() if status != "200")
        measured = f"{run['goodput']:,.0f}/s ({share:.2f}); {refused:,} refused; p99 {_ms(run['accepted_ms']['p99'])}"
        found.add(f"goodput, {name}", f"told (before: {before['goodput']:,.0f}/s)", measured, True)
    share = after["goodput"] / max(before["goodput"], 1.0)
    found.add("goodput afterwards", f">= {BACK_SHARE:g} of before", f"{share:.2f}", share >= BACK_SHARE)
    counts = [sum(run[name] for run in spans.values()) for name in ("wrong", "resets", "unanswered")]
    found.add("wrong / reset / unanswered", "0 / 0 / 0", " / ".join(map(str, counts)), not any(counts))
    found.add("ended by a watchdog", "no", "no" if is_whole else "yes", is_whole)


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:,.0f} ms"


def refusals(service: Service) -> dict[str, float]:
    """What the service counted as refused so far, by reason."""
    return {reason: service.total("foldserve_refused_total", reason=reason) for reason in REASONS}


@contextmanager
def starved(pids: list[int], cores: float | None) -> Iterator[str]:
    """Give processes so much of a core until the block is left, None all they want; yields the way that was found."""
    if cores is None:
        yield "nothing"
        return
    folder = make_group(cores)
    if folder is None:
        with paused(pids, cores):
            yield "pauses by signals"
        return
    try:
        for pid in pids:
            (folder / "cgroup.procs").write_text(str(pid))
        yield "quota of a control group"
    finally:
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended
                (folder.parent / "cgroup.procs").write_text(str(pid))
        time.sleep(0.1)
        folder.rmdir()


def make_group(cores: float) -> Path | None:
    """Make a control group with a quota, of the first or second kind; None where that cannot be done."""
    period = round(PERIOD_SECONDS * 1e6)
    quota = round(cores * period)
    first, second = CGROUP / "cpu", CGROUP
    for parent, files in (
        (first, {"cpu.cfs_period_us": f"{period}", "cpu.cfs_quota_us": f"{quota}"}),
        (second, {"cpu.max": f"{quota} {period}"}),
    ):
        folder = parent / f"foldserve-bench-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            for name, text in files.items():
                if not (folder / name).exists():
                    raise FileNotFoundError(name)
                (folder / name).write_text(text)
        except OSError:
            folder.rmdir()
            continue
        return folder
    return None


@contextmanager
def paused(pids: list[int], cores: float) -> Iterator[None]:
    """Stop processes for a part of each period."""
    is_over = threading.Event()

    def pause() -> None:
        while not is_over.is_set():
            send(signal.SIGSTOP, pids)
            is_over.wait((1 - cores) * PERIOD_SECONDS)
            send(signal.SIGCONT, pids)
            is_over.wait(cores * PERIOD_SECONDS)

    thread = threading.Thread(target=pause)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        send(signal.SIGCONT, pids)


def send(number: signal.Signals, pids: list[int]) -> None:
    """Signal those that still live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
