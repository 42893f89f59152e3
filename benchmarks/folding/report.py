"""Writes the scoreboard page from the verdicts; it runs and judges nothing itself."""

from collections import Counter
from typing import Any

from benchmarks.folding.cases import case_list
from benchmarks.folding.reproducers import section

Board = dict[str, list[dict[str, Any]]]

WORDS = {
    "right": "folded",
    "alone": "left",
    "WRONG": "**WRONG**",
    "raised": "raised",
    "INVALID": "**INVALID**",
    "crashed": "**crashed**",
    "timed out": "timed out",
    "not run": "not run",
}
TITLES = {"torch": "PyTorch models", "onnx": "ONNX models"}


def page(
    boards: dict[str, Board], versions: dict[str, str], missing: list[str], costs: str, *, minutes: float, jobs: int
) -> str:
    """Return the whole page as Markdown.

    Args:
        boards: list -> tool -> one verdict for each case.
        versions: of everything that has a part in the results.
        missing: tools without a column.
        costs: the section of `folding_cost`, or nothing.
        minutes: how long the run took.
        jobs: how many tools ran at once.
    """
    names = {"torch": _case_names("torch"), "onnx": _case_names("onnx")}
    parts = [_head(versions, missing, minutes, jobs)]
    for name, board in boards.items():
        parts += [f"## {TITLES[name]}: {len(names[name])} cases\n", _counts(board), _matrix(names[name], board)]
    parts += ["## Silent errors\n", _errors(names, boards), section(), costs]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _case_names(name: str) -> list[tuple[str, str]]:
    """Case and the verdict that is right for it."""
    if name == "onnx":
        return [(case.name, case.verdict) for case in case_list(name)]
    wanted = [(case.name, [*(["fold"] if case.folded else []), *case.refused]) for case in case_list(name)]
    return [(case, ", ".join(dict.fromkeys(verdicts)) or "-") for case, verdicts in wanted]


def _head(versions: dict[str, str], missing: list[str], minutes: float, jobs: int) -> str:
    lines = [f"| {name} | {version} |" for name, version in versions.items()]
    absent = f"\nNot installed, and so without a column: {', '.join(missing)}.\n" if missing else ""
    return f"""# Folding scoreboard

What each tool makes of the same small models: **folded** (fewer norm operations, and the numbers are right), **left**
(right, nothing folded), **WRONG** (the outputs differ from a float64 evaluation of the untouched model), **INVALID**
(the result does not pass `onnx.checker` or does not load), **raised** (an exception instead of a result). The second
column is what exact algebra gives: `fold`, or the reason for which the norm has to stay. Where it has to, *left* is the
right answer, and foldserve's report says why.

Written in {minutes:.0f} minutes, {jobs} tools at a time, by

    python -m venv .venv-folding
    .venv-folding/bin/pip install -r benchmarks/folding/requirements.txt      # the other tools
    python -m benchmarks.folding --python .venv-folding/bin/python

One case again: `.venv-folding/bin/python -m benchmarks.folding --show TOOL CASE`; the programs at the end:
`python -m benchmarks.folding --python .venv-folding/bin/python --reproducers`.
`ao.fuse_modules` is given each layer with the norm that follows it in the module list; `inductor freezing` is the graph
after inductor's passes, run by eager kernels; `onnxruntime` is its basic level, which its default level includes.

| | |
|---|---|
{chr(10).join(lines)}
{absent}"""


def _counts(board: Board) -> str:
    kinds = [kind for kind in WORDS if any(v["kind"] == kind for verdicts in board.values() for v in verdicts)]
    rows = ["| tool | " + " | ".join(WORDS[kind].strip("*") for kind in kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for tool, verdicts in board.items():
        counts = Counter(verdict["kind"] for verdict in verdicts)
        rows.append(f"| {tool} | " + " | ".join(str(counts[kind]) for kind in kinds) + " |")
    return "\n".join(rows) + "\n"


def _matrix(names: list[tuple[str, str]], board: Board) -> str:
    rows = ["| case | right verdict | " + " | ".join(board) + " |", "|---" * (len(board) + 2) + "|"]
    for i, (name, verdict) in enumerate(names):
        cells = " | ".join(WORDS[verdicts[i]["kind"]] for verdicts in board.values())
        rows.append(f"| {name} | {verdict} | {cells} |")
    return "\n".join(rows) + "\n"


def _errors(names: dict[str, list[tuple[str, str]]], boards: dict[str, Board]) -> str:
    rows = ["| list | tool | case | what happened |", "|---|---|---|---|"]
    for name, board in boards.items():
        for tool, verdicts in board.items():
            for (case, _), verdict in zip(names[name], verdicts, strict=True):
                if verdict["kind"] in ("WRONG", "INVALID", "crashed"):
                    detail = str(verdict["detail"]).replace("|", "/") or verdict["kind"]
                    rows.append(f"| {name} | {tool} | {case} | {detail} |")
    return "\n".join(rows) + "\n"
