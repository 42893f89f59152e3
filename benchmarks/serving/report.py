"""The figures of a run -> docs/results/serving.md and serving.png; nothing is measured or rounded away here.

python -m benchmarks.serving.report docs/results/serving.json
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.serving.overload import tables

Rounds = list[dict[str, Any]]

# what, form, connections, against which server, how many times its requests/s
TARGETS = (
    ("binary, against mosec with bytes", "binary", ("32", "128"), "mosec (bytes)", "at least 2.5"),
    ("binary, against plain FastAPI, as many workers", "binary", ("32", "128"), "plain FastAPI", "at least 5"),
    ("binary, against Triton", "binary", ("32", "128"), "Triton", "at least 1.6"),
    ("binary, against the bare ASGI echo, as many workers", "binary", ("32", "128"), "bare ASGI echo", "at least 0.9"),
    ("JSON, against mosec", "json", ("32", "128"), "mosec (JSON)", "at least 3"),
    ("JSON, against plain FastAPI, as many workers", "json", ("32", "128"), "plain FastAPI", "at least 4"),
    ("JSON, against Triton", "json", ("32", "128"), "Triton", "at least 1.5"),
    ("`/predict` against the infer route of V2, binary", "binary", ("32", "128"), "foldserve V2", "at most 1.1"),
    ("the same, JSON", "json", ("32", "128"), "foldserve V2", "at most 1.1"),
)
SAME_WORKERS = ("plain FastAPI", "bare ASGI echo", "foldserve V2")


def write_report(document: dict[str, Any], folder: Path) -> None:
    """Write the page and its picture."""
    best = choose_workers(document["rounds"])
    parts = [_head(document), _closed(document, best), _ratios(document, best), _rest(document, best)]
    if "open_loop" in document:
        parts.append("\n".join(["## Open loop", "", *tables(document["open_loop"])]))
    else:
        parts.append(
            "Latency against load, and far too much of it: [overload.md](overload.md), `make bench-overload`.\n"
        )
    parts.append(_left_out(document))
    (folder / "serving.md").write_text("\n".join(part.rstrip() + "\n" for part in parts if part))
    draw(document, best, folder / "serving.png")


def choose_workers(rounds: dict[str, Rounds]) -> dict[str, str]:
    """Return for each server the key of the better number of workers: more requests/s at 32 and 128 connections."""
    best: dict[str, tuple[float, str]] = {}
    for key, measured in rounds.items():
        name = key.partition("|")[0]
        forms = measured[0]["forms"]
        total = sum(_median(measured, form, connections) for form in forms for connections in ("32", "128"))
        best[name] = max(best.get(name, (0.0, "")), (total, key))
    return {name: key for name, (_, key) in best.items()}


def _values(rounds: Rounds, form: str, connections: str, what: str = "per_second") -> list[float]:
    return [measured["forms"][form][connections][what] for measured in rounds]


def _median(rounds: Rounds, form: str, connections: str, what: str = "per_second") -> float:
    return statistics.median(_values(rounds, form, connections, what))


def _milliseconds(rounds: Rounds, form: str, connections: str, quantiles: tuple[str, ...]) -> str:
    return ", ".join(f"{_median(rounds, form, connections, f'{name}_us') / 1e3:.2f}" for name in quantiles) + " ms"


def _head(document: dict[str, Any]) -> str:
    environment = document["environment"]
    packages = {**environment["packages"], **environment["peers"]}
    low, middle, high = (round(speed) for speed in environment["machine"])
    rounds = max(len(measured) for measured in document["rounds"].values())
    return f"""# Serving, measured

`make bench-serving` ({environment["date"]}) on {environment["cores"]} cores of {environment["cpu"]}, wrk on the same
cores, Python {environment["python"]}; {", ".join(f"{name} {version}" for name, version in packages.items())}.
{rounds} interleaved rounds of {document["seconds"]:g} s for each figure, a second of warm-up before each left out. One
28x28 image a request. Before each figure the machine itself was measured (`Session.run`, one image, one thread):
{low:,} to {high:,} images/s, median {middle:,}. Absolute figures move with that; ratios within a round are what counts.
"""


def _closed(document: dict[str, Any], best: dict[str, str]) -> str:
    lines = [
        "## Requests a second",
        "",
        "Median over the rounds; each server at the better of one and two workers (in brackets). `us` is the CPU time",
        "that the server's processes took for one request.",
        "",
        "| server | form | 1 connection (p50) | 32 (p99, p99.9) | 128 (p99, p99.9) | us at 32 | not 2xx, failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, key in best.items():
        rounds = document["rounds"][key]
        for form in rounds[0]["forms"]:
            cells = [
                f"{_median(rounds, form, connections):,.0f} ({_milliseconds(rounds, form, connections, quantiles)})"
                for connections, quantiles in (("1", ("p50",)), ("32", ("p99", "p999")), ("128", ("p99", "p999")))
            ]
            cpu = _median(rounds, form, "32", "cpu_us_per_request")
            bad = sum(
                load["not_2xx"] + load["failed"] for measured in rounds for load in measured["forms"][form].values()
            )
            lines.append(f"| {name} ({key.partition('|')[2]}) | {form} | {' | '.join(cells)} | {cpu:.0f} | {bad} |")
    return "\n".join(lines) + "\n"


def _ratios(document: dict[str, Any], best: dict[str, str]) -> str:
    lines = [
        "## Against the targets",
        "",
        "Median over the rounds of the ratio within each round (lowest to highest).",
        "",
        "| what | connections | wanted | measured |",
        "|---|---|---|---|",
    ]
    for what, form, connections, other, target in TARGETS:
        for count in connections:
            ratios = ratios_of(document["rounds"], best, form, count, other)
            if ratios:
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                lines.append(f"| {what} | {count} | {target} | {spread} |")
    lines += _large(document, best) + _lone(document, best)
    return "\n".join(lines) + "\n"


def ratios_of(rounds: dict[str, Rounds], best: dict[str, str], form: str, connections: str, other: str) -> list[float]:
    """Return requests/s of the service over those of another server, for each round that both were in."""
    if other not in best or "foldserve" not in best:
        return []
    ours, theirs = best["foldserve"], best[other]
    if other in SAME_WORKERS:
        theirs = f"{other}|{ours.partition('|')[2]}"
    if theirs not in rounds:
        return []
    pairs = zip(rounds[ours], rounds[theirs], strict=False)
    return [
        mine["forms"][form][connections]["per_second"] / yours["forms"][form][connections]["per_second"]
        for mine, yours in pairs
    ]


def _large(document: dict[str, Any], best: dict[str, str]) -> list[str]:
    """One request of 256 images against the same request to plain FastAPI."""
    if not {"foldserve", "plain FastAPI"} <= set(best):
        return []
    mine, theirs = (document["rounds"][best[name]] for name in ("foldserve", "plain FastAPI"))
    ratios = [
        a["batches"]["256"]["per_second"] / b["batches"]["256"]["per_second"]
        for a, b in zip(mine, theirs, strict=False)
    ]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [f"| 256 images in one request, against plain FastAPI | 1 | at least 2 | {spread} |"]


def _lone(document: dict[str, Any], best: dict[str, str]) -> list[str]:
    """The lone request against the echo's and one run more."""
    rounds = document["rounds"]
    if not {"foldserve|1", "bare ASGI echo|1"} <= set(rounds):
        return []
    extra = [
        mine["forms"]["binary"]["1"]["p50_us"]
        - echo["forms"]["binary"]["1"]["p50_us"]
        - 1e6 / mine["forms"]["binary"]["1"]["machine"]
        for mine, echo in zip(rounds["foldserve|1"], rounds["bare ASGI echo|1"], strict=False)
    ]
    spread = f"{statistics.median(extra):.0f} us ({min(extra):.0f} to {max(extra):.0f})"
    return [f"| lone request: p50 less the echo's and one `Session.run`, one worker | 1 | at most 40 us | {spread} |"]


def _rest(document: dict[str, Any], best: dict[str, str]) -> str:
    lines = [
        "## Start, memory, idle CPU",
        "",
        "Idle CPU over the two seconds after the first answer, with whatever a server puts off until then.",
        "",
        "| server | ready after | memory (PSS) | idle CPU |",
        "|---|---|---|---|",
    ]
    for name, key in best.items():
        rounds = document["rounds"][key]
        ready, memory, idle = (
            statistics.median(measured[what] for measured in rounds)
            for what in ("ready_seconds", "memory_mib", "idle_cpu")
        )
        lines.append(f"| {name} ({key.partition('|')[2]}) | {ready:.2f} s | {memory:.0f} MiB | {idle:.1%} |")
    batches = {name: document["rounds"][key] for name, key in best.items() if "batches" in document["rounds"][key][0]}
    if batches:
        sizes = list(next(iter(batches.values()))[0]["batches"])
        lines += [
            "",
            "## Images in one request",
            "",
            "Binary, one connection, images a second.",
            "",
            f"| server | {' | '.join(sizes)} |",
            "|---" * (len(sizes) + 1) + "|",
        ]
        for name, rounds in batches.items():
            cells = [
                f"{statistics.median(m['batches'][size]['per_second'] for m in rounds) * int(size):,.0f}"
                for size in sizes
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _left_out(document: dict[str, Any]) -> str:
    if not document["left_out"]:
        return ""
    lines = ["## Left out", ""]
    for key, reason in document["left_out"].items():
        name, _, workers = key.partition("|")
        lines.append(f"- {name}, {workers} workers: {' '.join(reason.split())[:300]}")
    return "\n".join(lines) + "\n"


def draw(document: dict[str, Any], best: dict[str, str], path: Path) -> None:
    """Draw requests a second by server and form."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    bars = [
        (f"{name} ({form})", form, [_median(document["rounds"][key], form, c) for c in ("32", "128")])
        for name, key in best.items()
        for form in document["rounds"][key][0]["forms"]
    ]
    bars.sort(key=lambda bar: (bar[1], bar[2][0]))
    figure, axes = pyplot.subplots(figsize=(9, 0.45 * len(bars) + 1.2), layout="constrained")
    for offset, connections, place in ((0.2, "32 connections", 0), (-0.2, "128 connections", 1)):
        heights = [at + offset for at in range(len(bars))]
        drawn = axes.barh(heights, [bar[2][place] for bar in bars], height=0.38, label=connections)
        axes.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=7)
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars], fontsize=8)
    axes.set_xlabel("requests/s, one 28x28 image each")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write_report(json.loads(source.read_text()), source.parent)
