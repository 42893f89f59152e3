"""Writes the scoreboard page from the verdicts of `benchmarks/folding.py`; it runs and judges nothing itself."""

from collections import Counter
from typing import Any

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

REPRODUCERS = """\
Two of the silent errors above, as short programs.

onnxruntime at its default level, after an ordinary export (the rule `MatMul_BatchNormalization_Fusion` does not look
at the transposition):

    import numpy as np, onnxruntime as ort, torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(5, 6))
            self.bn = torch.nn.BatchNorm1d(6)
        def forward(self, x):
            return self.bn((x @ self.w).t())
    torch.manual_seed(0)
    net = Net().eval()
    net.bn.running_mean.normal_(), net.bn.running_var.uniform_(0.1, 2), torch.nn.init.normal_(net.bn.weight)
    x = torch.randn(6, 5)
    data = torch.onnx.export(net, (x,), verbose=False).model_proto.SerializeToString()
    off = ort.SessionOptions()
    off.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = lambda options: ort.InferenceSession(data, options).run(None, {"x": x.numpy()})[0]
    print(np.abs(run(ort.SessionOptions()) - run(off)).max())    # expected about 1e-7

Inductor with freezing (the pass does not look at whether a convolution is transposed):

    import torch
    import torch._inductor.config as config
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.ConvTranspose2d(4, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    net[1].running_mean.normal_(), net[1].running_var.uniform_(0.1, 2), torch.nn.init.normal_(net[1].weight)
    x = torch.randn(2, 4, 8, 8)
    config.freezing = True
    with torch.no_grad():
        print((torch.compile(net)(x) - net(x)).abs().max())      # expected about 1e-7
"""


def page(boards: dict[str, Board], versions: dict[str, str], missing: list[str], costs: str) -> str:
    """Return the whole page as Markdown."""
    names = {"torch": _case_names("torch"), "onnx": _case_names("onnx")}
    parts = [_head(versions, missing)]
    for name, board in boards.items():
        parts += [f"## {TITLES[name]}: {len(names[name])} cases\n", _counts(board), _matrix(names[name], board)]
    parts += ["## Silent errors\n", _errors(names, boards), REPRODUCERS, costs]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _case_names(name: str) -> list[tuple[str, str]]:
    """Case and the verdict that is right for it."""
    from benchmarks.folding import case_list

    if name == "onnx":
        return [(case.name, case.verdict) for case in case_list(name)]
    wanted = [(case.name, [*(["fold"] if case.folded else []), *case.refused]) for case in case_list(name)]
    return [(case, ", ".join(dict.fromkeys(verdicts)) or "-") for case, verdicts in wanted]


def _head(versions: dict[str, str], missing: list[str]) -> str:
    lines = [f"| {name} | {version} |" for name, version in versions.items()]
    absent = f"\nNot installed, and so without a column: {', '.join(missing)}.\n" if missing else ""
    return f"""# Folding scoreboard

What each tool makes of the same small models: **folded** (fewer norm operations, and the numbers are right), **left**
(right, nothing folded), **WRONG** (the outputs differ from a float64 evaluation of the untouched model), **INVALID**
(the result does not pass `onnx.checker` or does not load), **raised** (an exception instead of a result). The second
column is what exact algebra gives: `fold`, or the reason for which the norm has to stay. Where it has to, *left* is the
right answer, and foldserve's report says why.

Written by `python -m benchmarks.folding`; one case again: `python -m benchmarks.folding --show TOOL CASE`.
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
