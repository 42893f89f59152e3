"""The page and the figures of `endurance.py`: what was wanted, what was measured, whether it is met, and on what.

Figures lie in a JSON file under the check's name, so that one check can be measured again and the others stay; each
keeps the machine and the moment that it was measured on.
"""

import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("onnxruntime", "uvicorn", "uvloop", "numpy")
LEAD = """\
The promises of the service that only time and bad luck can test, each against a service of its own on 127.0.0.1. The
load is an open loop in a process of its own: latency counts from the planned moment, and every answer is compared,
byte for byte, with the one that the same image got alone. Where an engine is slowed, to {rows:,} rows/s a worker, it is
so that capacity is known and the generator keeps up on the same machine; everything else is the service as it is.
"""


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "kernel": platform.release().split("-")[0],
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def write(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Put the new figures beside those that are there already, and write both files.

    Args:
        out: the page; the figures lie beside it, with the ending .json.
        found: by check.

    Returns:
        All figures, old and new.
    """
    figures = out.with_suffix(".json")
    everything = json.loads(figures.read_text()) if figures.exists() else {}
    everything |= found
    for path, text in ((figures, json.dumps(everything, indent=1) + "\n"), (out, page(everything))):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f".{path.name}.new")
        whole.write_text(text)
        whole.replace(path)
    return everything


def page(everything: dict[str, Any]) -> str:
    """Return the page."""
    from benchmarks.serving.slowed_service import ROWS_PER_SECOND

    missed = [
        f"{check['promise']} {figure['what']}"
        for check in everything.values()
        for figure in check["figures"]
        if not figure["is_met"]
    ]
    lines = ["# Endurance", "", "`make bench-endurance`, or one check: `python -m benchmarks.endurance NAME`.", ""]
    lines += [LEAD.format(rows=ROWS_PER_SECOND)]
    lines += [f"Not met: {'; '.join(missed)}." if missed else "All of them are met."]
    for check in everything.values():
        lines += ["", f"## {check['promise']}: {check['title']}", "", f"`{check['command']}`", ""]
        lines += [f"{check['recipe']}.", "", "| what | wanted | measured | met |", "|---|---|---|---|"]
        for figure in check["figures"]:
            is_met = "yes" if figure["is_met"] else "**no**"
            lines.append(f"| {figure['what']} | {figure['wanted']} | {figure['measured']} | {is_met} |")
        lines += ["", describe(check["machine"], check["seconds"])]
    return "\n".join(lines) + "\n"


def describe(on: dict[str, Any], seconds: float) -> str:
    """Return the machine as a sentence."""
    packages = ", ".join(f"{name} {version}" for name, version in on["packages"].items())
    return (
        f"{seconds:.0f} s, {on['at']}, {on['cores']} cores of {on['processor']}, load average {on['load_before']} "
        f"before, Linux {on['kernel']}, Python {on['python']}, {packages}."
    )
