"""Runs the tools of the folding scoreboard, each in a process of its own, several at once, with a limit for each case.

A crash or a hang costs one case: the next worker goes on behind it. Verdicts are kept in a file after each tool,
together with what they were made of.
"""

import hashlib
import json
import os
import platform
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from benchmarks import ROOT
from benchmarks.folding.cases import LISTS, case_list, tools

LIMIT_S = 180.0
SLOW = ("inductor freezing", "torch.onnx.export", "torchao")  # first, so that no worker is left alone at the end
PACKAGES = (
    "torch",
    "torchao",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxoptimizer",
    "onnxsim",
    "onnxslim",
)
Verdicts = list[dict[str, Any]]


def found_here() -> dict[str, Any]:
    """Return versions, the machine, the case names and the installed tools, as this interpreter sees them."""
    packages = {tool: package for name in LISTS for tool, package in tools(name).items()}
    return {
        "versions": versions(),
        "missing": [tool for tool, package in packages.items() if find_spec(package.split(".")[0]) is None],
        "cases": {name: [case.name for case in case_list(name)] for name in LISTS},
        "tools": {name: list(tools(name)) for name in LISTS},
    }


def describe(python: str) -> dict[str, Any]:
    """Return what `found_here` finds in the environment of the interpreter `python`."""
    command = [python, "-m", "benchmarks.folding", "--describe"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=one_thread())
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise SystemExit(f"{python} cannot run the scoreboard: {last}; see benchmarks/folding/requirements.txt")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_boards(
    python: str, here: dict[str, Any], jobs: int, raw: Path | None, again: list[str]
) -> dict[str, dict[str, Verdicts]]:
    """Return list -> tool -> one verdict for each case, in the order of the tables.

    Args:
        python: interpreter that has the tools.
        here: what `describe` says of it.
        jobs: how many tools run at once.
        raw: file from which a run goes on, and to which each tool's verdicts are added.
        again: tools to run although their verdicts are known.
    """
    kept = _Kept(raw, _fingerprint(here))
    wanted = [(name, tool) for name, known in here["tools"].items() for tool in known if tool not in here["missing"]]
    open_ = [one for one in wanted if one[1] in again or not kept.has(*one)]
    open_.sort(key=lambda one: SLOW.index(one[1]) if one[1] in SLOW else len(SLOW))

    def run(one: tuple[str, str]) -> None:
        name, tool = one
        verdicts = run_tool(python, name, tool, len(here["cases"][name]))
        print(name, tool, dict(Counter(verdict["kind"] for verdict in verdicts)), flush=True)
        kept.add(name, tool, verdicts)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, open_))
    boards: dict[str, dict[str, Verdicts]] = {name: {} for name in here["tools"]}
    for name, tool in wanted:
        boards[name][tool] = kept.verdicts(name, tool)
    return boards


class _Kept:
    """Verdicts in memory and, when there is a file, on disk after each tool."""

    def __init__(self, path: Path | None, fingerprint: str):
        self._path, self._lock = path, threading.Lock()
        self._known: dict[str, Any] = {"of": fingerprint}
        if path is not None and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.get("of") == fingerprint:
                self._known = found

    def has(self, name: str, tool: str) -> bool:
        return tool in self._known.get(name, {})

    def add(self, name: str, tool: str, verdicts: Verdicts) -> None:
        with self._lock:
            self._known.setdefault(name, {})[tool] = verdicts
            if self._path is not None:
                self._path.write_text(json.dumps(self._known), encoding="utf-8")

    def verdicts(self, name: str, tool: str) -> Verdicts:
        found: Verdicts = self._known[name][tool]
        return found


def _fingerprint(here: dict[str, Any]) -> str:
    """Return a digest of what the verdicts depend on: versions, cases, and the code that is judged and that judges."""
    sources = [*sorted((ROOT / "training").rglob("*.py")), *sorted((ROOT / "benchmarks" / "folding").glob("*.py"))]
    support = ROOT / "tests" / "support"
    sources += [support / "fold_cases.py", *sorted((support / "onnx_cases").glob("*.py"))]
    digest = hashlib.sha256(json.dumps([here["versions"], here["cases"]], sort_keys=True).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def run_tool(python: str, name: str, tool: str, count: int) -> Verdicts:
    """Return the verdict of each case; a worker that hangs, or crashes on its first case, is replaced behind that case.

    One that crashes later is replaced at the case: earlier ones may have left something behind in the process.
    """
    verdicts: Verdicts = []
    while len(verdicts) < count:
        begun = len(verdicts)
        kind = collect(python, name, tool, verdicts, count)
        if len(verdicts) < count and (kind != "crashed" or len(verdicts) == begun):
            verdicts.append({"kind": kind, "error": 0.0, "detail": ""})
    return verdicts


def collect(python: str, name: str, tool: str, verdicts: Verdicts, count: int) -> str:
    """Append verdicts of one worker until it is through, crashes or takes too long; return which of the last two."""
    command = [python, "-m", "benchmarks.folding", "--worker", name, tool, str(len(verdicts))]
    worker = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=one_thread()
    )
    lines: Queue[str | None] = Queue()
    assert worker.stdout is not None
    reader = threading.Thread(target=_feed, args=(worker.stdout, lines), daemon=True)
    reader.start()
    kind = "crashed"
    while len(verdicts) < count:
        try:
            line = lines.get(timeout=LIMIT_S)
        except Empty:
            kind = "timed out"
            break
        if line is None:
            break
        if line.startswith('{"case": '):
            verdicts.append(json.loads(line))
    worker.kill()
    worker.wait()
    return kind


def one_thread() -> dict[str, str]:
    """Return the environment of a worker: as many of them run at once as there are cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _feed(stream: Any, lines: "Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def versions() -> dict[str, str]:
    """Python, machine and the version of every package that has a part in the results."""
    found = {"python": platform.python_version(), "machine": machine()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> str:
    """Return the processor's name, its number of logical CPUs and the system."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names) or '?'} logical CPUs, {platform.system()}"
