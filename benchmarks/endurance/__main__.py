"""The promises that only time and bad luck can test, measured one after another.

    python -m benchmarks.endurance                                   all of them, some 15 minutes
    python -m benchmarks.endurance kills --kills 20 --seconds 300    one of them
    python -m benchmarks.endurance --quick                           all of them, in small

Each check starts a service of its own on 127.0.0.1 and ends it; only its own processes are killed. Writes
docs/results/endurance.md and .json, where figures of checks that are not measured again stay. Exit code 1 when a
promise was not kept.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.endurance import clients, crowded, hostile, identity, kills, memory, starved
from benchmarks.endurance.report import machine, write
from benchmarks.endurance.setup import Found


@dataclass(frozen=True)
class Check:
    """One promise: its name on the command line, what it is about, the flags that it reads, and how it is measured."""

    title: str
    flags: tuple[str, ...]
    measure: Callable[[argparse.Namespace], Found]


CHECKS = {
    "kills": Check(
        "workers are killed under load",
        ("kills", "seconds"),
        lambda given: kills.measure(given.models, given.kills, given.seconds),
    ),
    "leaving": Check(
        "clients close while they wait",
        ("load_seconds",),
        lambda given: clients.measure_leaving(given.models, given.load_seconds),
    ),
    "reading": Check(
        "clients that hardly read",
        ("load_seconds",),
        lambda given: clients.measure_slow_readers(given.models, given.load_seconds),
    ),
    "memory": Check(
        "memory over a million requests",
        ("requests", "malformed"),
        lambda given: memory.measure(given.requests, given.malformed),
    ),
    "identity": Check(
        "random sizes at random times, and company",
        ("questions",),
        lambda given: identity.measure(given.models, given.questions),
    ),
    "hostile": Check(
        "bodies made to fill a memory",
        ("times",),
        lambda given: hostile.measure(given.times),
    ),
    "starved": Check(
        "less of a core than the load needs",
        ("load_seconds",),
        lambda given: starved.measure(given.models, given.load_seconds),
    ),
    "crowded": Check(
        "a core that others want as well",
        ("load_seconds",),
        lambda given: crowded.measure(given.models, given.load_seconds),
    ),
}
FULL = {
    "kills": 20, "seconds": 300.0, "load_seconds": 20.0, "requests": 1_000_000, "malformed": 100_000,
    "questions": 100_000, "times": 100,
}  # fmt: skip
QUICK = {
    "kills": 3, "seconds": 15.0, "load_seconds": 4.0, "requests": 50_000, "malformed": 4_000,
    "questions": 5_000, "times": 10,
}  # fmt: skip


def main() -> int:
    """Read the arguments, measure, write."""
    given = arguments()
    is_kept = True
    for name in given.checks or CHECKS:
        check, on, started = CHECKS[name], machine(), time.perf_counter()
        print(f"{name}: {check.title}", file=sys.stderr)
        found = check.measure(given)
        words = " ".join(f"--{flag.replace('_', '-')} {getattr(given, flag):g}" for flag in check.flags)
        about = {"title": check.title, "command": f"python -m benchmarks.endurance {name} {words}", "machine": on}
        write(given.out, {name: {**about, "seconds": time.perf_counter() - started, **found.as_dict()}})
        for figure in found.figures:
            is_kept = is_kept and figure.is_met
            print(f"  {'met ' if figure.is_met else 'MISSED'} {figure.what}: {figure.measured}", file=sys.stderr)
    return 0 if is_kept else 1


def arguments() -> argparse.Namespace:
    """Return what was asked for; what was not said is as in a full run, or as in a quick one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checks", nargs="*", metavar="CHECK", help=f"some of {', '.join(CHECKS)}; all where none is named"
    )
    parser.add_argument("--quick", action="store_true", help="all in small, to see that it works")
    parser.add_argument("--kills", type=int, help="of workers")
    parser.add_argument("--seconds", type=float, help="over which the kills are spread")
    parser.add_argument("--load-seconds", type=float, help="of each load of the other checks")
    parser.add_argument("--requests", type=int, help="good ones, to see whether memory grows")
    parser.add_argument("--malformed", type=int, help="bad ones, likewise")
    parser.add_argument("--questions", type=int, help="of random sizes, for a model that gives them back")
    parser.add_argument("--times", type=int, help="each kind of hostile body")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "endurance.md")
    given = parser.parse_args()
    if unknown := [name for name in given.checks if name not in CHECKS]:
        parser.error(f"there is no check {unknown[0]!r}, expected some of {', '.join(CHECKS)}")
    for name, value in (QUICK if given.quick else FULL).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


if __name__ == "__main__":
    sys.exit(main())
