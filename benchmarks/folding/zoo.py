"""The zoo: public definitions and real files through our fold, each in a process of its own.

    python -m benchmarks.folding.zoo --python .venv-zoo/bin/python              run what is missing, write the page
    python -m benchmarks.folding.zoo --python .venv-zoo/bin/python --only "timm resnet18"      one model again

`make bench-folding-zoo` makes the environment first. A run that was broken off goes on where it was: what is known
stands in `--raw`, a JSON line for each model, with the versions that it was found with. A model that takes longer than
`--limit` seconds or more than 16 GB of address space is listed as such, and costs the others nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.folding.random_graphs import RESULTS
from benchmarks.folding.random_graphs import section as random_section
from benchmarks.folding.runs import machine
from benchmarks.folding.zoo_before import BEFORE

PACKAGES = ("torch", "onnx", "onnxruntime", "timm", "torchvision", "segmentation_models_pytorch", "pytorchcv")
PACKAGES += ("ultralytics", "monai", "speechbrain", "rapidocr", "rapidocr-onnxruntime")
LIMIT_IN_FLOAT64, LIMIT_IN_FLOAT32 = 1e-8, 1e-3
RAW = ROOT / "docs" / "results" / "folding-zoo.jsonl"
Row = dict[str, Any]
NO_REVISION: Row = {"revision": "none", "models": {}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter that has the packages")
    parser.add_argument("--jobs", type=int, default=1, help="how many models at once (default 1, for honest seconds)")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one model (default 300)")
    parser.add_argument("--minutes", type=float, default=120.0, help="start no further model after these (default 120)")
    parser.add_argument("--only", action="append", help="run these again")
    parser.add_argument("--raw", type=Path, default=RAW, help="one JSON line for each model, from which a run goes on")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the page to write")
    args = parser.parse_args()
    python, end = str(args.python.absolute()), time.monotonic() + 60 * args.minutes
    found = asked(python, "import json, benchmarks.folding.zoo as z; print(json.dumps(z.described()))")
    rows = known(args.raw)
    wanted = [name for name in found["names"] if (name in args.only if args.only else name not in rows)]

    def run(name: str) -> None:
        if time.monotonic() < end:
            rows[name] = {**judged(python, name, args.limit), "versions": found["versions"], "jobs": args.jobs}
            with args.raw.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[name]) + "\n")
            print(row_of(rows[name]), flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, wanted))
    listed = [rows[name] for name in found["names"] if name in rows]
    args.raw.write_text("".join(json.dumps(row) + "\n" for row in listed), encoding="utf-8")
    args.out.write_text(page(listed, len(found["names"])) + random_section(), encoding="utf-8")
    return 1 if any(verdict(row) in ("WRONG", "raised", "false alarm") for row in listed) else 0


def described() -> dict[str, Any]:
    """Return the names of the zoo and the versions of its packages, as this interpreter sees them."""
    from importlib import metadata

    from benchmarks.folding.zoo_models import entries

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["foldserve"] = revision()
    return {"names": [entry.name for entry in entries()], "versions": versions}


def revision() -> str:
    """Return the commit that the zoo is run with, as short as git says it; "unknown" without git."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def asked(python: str, code: str) -> dict[str, Any]:
    """Return the JSON that a program prints last."""
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{python} cannot run the zoo: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def known(raw: Path) -> dict[str, Row]:
    """Return what earlier runs found, by name; the last line of a name counts."""
    lines = raw.read_text(encoding="utf-8").splitlines() if raw.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def judged(python: str, name: str, limit: float) -> Row:
    """Return what a process of its own finds of one model."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "YOLO_VERBOSE": "False"}
    command = [python, "-m", "benchmarks.folding.zoo_worker", name]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"name": name, "failed": f"no answer within {limit:.0f} s"}
    if done.returncode:
        return {"name": name, "failed": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def verdict(row: Row) -> str:
    """Return one word on a model: right, miss, WRONG, raised, false alarm, refused as a whole, or not run."""
    if "failed" in row:
        if "refusals.Refusal" in row["failed"]:
            return "refused"
        return "raised" if "FoldError" in row["failed"] else "not run"
    limit = LIMIT_IN_FLOAT32 if row["form"] == "onnx" else LIMIT_IN_FLOAT64
    if any(isinstance(error, str) and error.startswith("raised") for error in row["errors"]):
        return "raised"
    if any(isinstance(error, float) and not error <= limit for error in row["errors"]) or not row["agrees"]:
        return "WRONG"
    if row["alarms"]:
        return "false alarm"
    return "miss" if "unjudged" in row["codes"] else "right"


def row_of(row: Row) -> str:
    """One line of the table."""
    if "failed" in row:
        return f"| {row['name']} | {verdict(row)} | | | {row['failed'][:160].replace('|', '/')} | | | | |"
    codes = ", ".join(f"{code} {count}" for code, count in sorted(row["codes"].items()))
    errors = [error if isinstance(error, str) else f"{error:.0e}" for error in row["errors"]]
    growth = f"{row['peak']:.0f} MB, {row['peak'] / row['parameters']:.1f} x" if row["parameters"] else ""
    left = row["norms"] - row["folded"]
    return (
        f"| {row['name']} | {verdict(row)} | {row['norms']} | {left} | {codes} | {row['form']} | {' / '.join(errors)} "
        f"| {row['seconds']:.1f} | {growth} |"
    )


def page(rows: list[Row], count: int) -> str:
    """The page, without the section on random graphs."""
    words = Counter(verdict(row) for row in rows)
    norms = sum(row.get("norms", 0) for row in rows)
    left = norms - sum(row.get("folded", 0) for row in rows)
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, version in row["versions"].items():
            found.setdefault(name, set()).add(version)
    versions = ", ".join(f"{name} {' and '.join(sorted(several))}" for name, several in found.items())
    jobs = sorted({row.get("jobs", 1) for row in rows})
    at_once = f"{' or '.join(map(str, jobs))} models at a time on a machine of {os.cpu_count()} processors"
    total = ", ".join(f"{number} {word}" for word, number in words.most_common())
    return f"""# The zoo

Public definitions and real ONNX files through our fold: `make bench-folding-zoo`, which is `python -m
benchmarks.folding.zoo` in an environment of its own. Weights are the initial ones, with statistics and affine
parameters drawn at random. `errors` are those of the folded model at the example's size and batch and at another size
and batch: the largest difference over the largest output, in PyTorch's float64 with the exact parameters (limit
{LIMIT_IN_FLOAT64:g}), for files in onnxruntime's float32 (limit {LIMIT_IN_FLOAT32:g}); `not run` where the original
does not take that size, `other size` where the result is a graph that says which sizes it was read for. `codes` are
those of the norms that are left. Seconds and memory (the peak above the loaded model, and that over its parameters)
are those of one fold on one thread, proofs included, {at_once}; weights
that a file computes count as what the folded file holds of them.
`refused` is a model that cannot be read, with a reason and a remedy.

For files the largest output counts as 1e-3 at least: those of PP-OCRv4_det are 1e-5 and less for random inputs,
where float32's rounding (1e-7, with the norms and without) is up to 4 % of them; that scale called the fold WRONG.

A `miss` is a model that keeps a norm because it was not judged.
`explain` gave the same report as `fold` for every model that is called right and folds within 20 s.

{len(rows)} of {count} models tried: {total}; {norms} norms, {left} left.
{words["WRONG"]} wrong, {words["raised"]} raised, {words["false alarm"]} false alarms.

{versions}; {machine()}.

| model | verdict | norms | left | codes | form | errors | seconds | memory |
|---|---|---|---|---|---|---|---|---|
""" + "\n".join([*map(row_of, rows), "", "", *differences(rows), ""])


def differences(rows: list[Row]) -> list[str]:
    """The section on what an earlier revision left, one line for each model where that differs; see `zoo_before`."""
    before: dict[str, Any] = json.loads(BEFORE.read_text(encoding="utf-8")) if BEFORE.exists() else NO_REVISION
    now = {row["name"]: "failed" if "failed" in row else row["norms"] - row["folded"] for row in rows}
    then = {name: one.get("left", "failed") for name, one in before["models"].items() if name in now}
    other = {name: left for name, left in then.items() if left != now[name]}
    lost = [name for name, left in other.items() if left != "failed" and (now[name] == "failed" or now[name] > left)]
    return [
        f"## Against revision {before['revision']}\n",
        f"`python -m benchmarks.folding.zoo_before CHECKOUT`: of the {len(then)} models that keep a norm, or did at an "
        f"earlier revision, {len(then) - len(other)} keep as many as there; {len(lost)} keep more. A model that "
        "keeps none cannot have kept fewer, and is not run again.\n",
        "| model | left there | left now |",
        "|---|---|---|",
        *(f"| {name} | {left} | {now[name]} |" for name, left in other.items()),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
