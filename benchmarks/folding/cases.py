"""The cases of the scoreboard and the tools that run them: by name, and one case judged.

Between the lists in `tests/support`, which the tests hold our own fold to, and the runs.
"""

import warnings
from typing import Any

from benchmarks import ROOT
from benchmarks.folding.tools import ONNX_TOOLS, TORCH_TOOLS, judge_onnx, judge_torch
from tests.support import onnx_cases
from tests.support.fold_cases import CASES

RESULTS = ROOT / "docs" / "results" / "folding.md"
LISTS = ("onnx", "torch")


def case_list(name: str) -> list[Any]:
    """The cases of "torch" or "onnx"."""
    if name == "onnx":
        return onnx_cases.cases()
    beyond = "scale beyond float32"  # its outputs are infinite in every float32 runtime: nothing to compare
    return [case for case in CASES if case.name != beyond]


def tools(name: str) -> dict[str, str]:
    """Tool -> the package that it comes in."""
    return {tool: package for tool, (package, _) in (ONNX_TOOLS if name == "onnx" else TORCH_TOOLS).items()}


def judge(name: str, tool: str, case: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (judge_onnx if name == "onnx" else judge_torch)(tool, case).as_dict()
