"""What another revision of the fold left of the zoo's models that keep norms: none may keep more than it did.

    git worktree add ../before 5e4c84d
    .venv-zoo/bin/python -m benchmarks.folding.zoo_before ../before       writes docs/results/folding-zoo-before.json

`zoo` writes the differences into its page. A model without any norm left can be no loss, so it is not run. Each is
folded in a process of its own that sees the other checkout only, apart from the definitions of the zoo.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import ROOT
from benchmarks.folding.zoo_models import entries, without_extensions
from benchmarks.folding.zoo_worker import given_statistics, with_statistics

RAW = ROOT / "docs" / "results" / "folding-zoo.jsonl"
BEFORE = ROOT / "docs" / "results" / "folding-zoo-before.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of the other revision")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one model (default 300)")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(left_by(args.checkout, args.worker)))
        return 0
    found = json.loads(BEFORE.read_text(encoding="utf-8")) if BEFORE.exists() else {}
    revision = subprocess.check_output(["git", "-C", str(args.checkout), "rev-parse", "--short", "HEAD"], text=True)
    models = found.get("models", {}) if found.get("revision") == revision.strip() else {}
    for name in with_norms_left():
        if name not in models:
            models[name] = in_a_process(args.checkout, name, args.limit)
            print(name, models[name], flush=True)
            text = json.dumps({"revision": revision.strip(), "models": models}, indent=1)
            BEFORE.write_text(text + "\n", encoding="utf-8")
    return 0


def with_norms_left() -> Iterator[str]:
    """Yield the models of the last run of the zoo that keep a norm or were not folded."""
    for line in RAW.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "failed" in row or row["norms"] > row["folded"]:
            yield row["name"]


def in_a_process(checkout: Path, name: str, limit: float) -> dict[str, Any]:
    """Return what a process of its own finds: norms and how many are left, or why it failed."""
    command = [sys.executable, "-m", "benchmarks.folding.zoo_before", str(checkout), "--worker", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {limit:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def left_by(checkout: Path, name: str) -> dict[str, Any]:
    """Return the norms of one model and how many the fold of the other checkout leaves."""
    without_extensions()
    import torch

    before = fold_of(checkout)
    entry = next(entry for entry in entries() if entry.name == name)
    made = entry.make()
    if isinstance(made, Path):
        import onnx

        model = onnx.load(made)
        given_statistics(model)
        report: Any = before.fold_onnx(model).report
    else:
        assert entry.shapes is not None
        torch.set_num_threads(1)
        inputs = torch.randn(entry.shapes[0], generator=torch.Generator().manual_seed(0))
        module = with_statistics(made.eval())
        with torch.no_grad():
            module(inputs)
        report = before.fold(module, (inputs,)).report
    return {"norms": len(report.folded) + len(report.refused), "left": len(report.refused)}


def fold_of(checkout: Path) -> ModuleType:
    """Return the package `training.fold` of another checkout; our own is foldserve.training.fold."""
    root = checkout.absolute() / "training"
    spec = importlib.util.spec_from_file_location(
        "training", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules["training"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return importlib.import_module("training.fold")


if __name__ == "__main__":
    sys.exit(main())
