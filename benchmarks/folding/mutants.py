"""By how much every wrong fold is caught, at each door: the proof of a site, `verify`, `fold`, and the same for files.

    python -m benchmarks.folding.mutants                 print the table, write its section of folding-mutants.md

A mutant is a fold with one mistake in it (`tests/support/fold_mutants.py`), of a grouped convolution and its norm, with
a Sigmoid and a convolution behind them. Each cell is what was measured over the limit there: above 1 is caught. In
"whole" the proof of the sites is switched off, so that the outputs of the network have to tell; in "stored" the float64
values of the parameters are not handed over either, as for two files from elsewhere.
"""

import argparse
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from benchmarks import ROOT
from benchmarks.folding.runs import machine
from foldserve.training.errors import FoldError
from foldserve.training.fold import Folded, Proof, Report, fold, fold_onnx, verify, verify_onnx
from foldserve.training.fold.onnx import parameters as onnx_parameters
from foldserve.training.fold.onnx.api import FoldedOnnx
from foldserve.training.fold.pytorch import fold_plan, parameters
from foldserve.training.fold.rounding import round_once
from foldserve.training.fold.verdict import ALGEBRA_LIMIT
from tests.support.fold_cases import randomise
from tests.support.fold_mutants import MUTANTS, Given, Mutant

RESULTS = ROOT / "docs" / "results" / "folding-mutants.md"
INPUTS = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),)
NOT_SEEN = {  # what a door cannot see, and why
    ("eps_in_float32", "verify"): "2e-12 of an output",
    ("eps_in_float32", "whole"): "2e-12 of an output",
    ("eps_in_float32", "stored"): "below the rounding of the parameters",
    ("rounded_to_float32", "stored"): "it is the rounding of the parameters",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the page to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: {door: measure(mutant) for door, measure in DOORS.items()} for name, mutant in MUTANTS.items()}
    rows = {"(the right fold)": {door: measure(Given.folded) for door, measure in DOORS.items()}, **rows}
    text = page(rows)
    print(text)
    args.out.write_text(text, encoding="utf-8")
    return 1 if missed(rows) else 0


def missed(rows: dict[str, dict[str, float]]) -> list[str]:
    """Return the cells where a mutant passes that should not, or the right fold does not."""
    (_, right), *mutants = rows.items()
    wrong = [f"the right fold at {door}" for door, margin in right.items() if margin > 1]
    known = {(name, door) for name, door in NOT_SEEN}
    return wrong + [
        f"{name} at {door}"
        for name, margins in mutants
        for door, margin in margins.items()
        if margin <= 1 and (name, door.split(", ")[-1]) not in known
    ]


def network() -> nn.Module:
    """A grouped convolution and its norm, behind which a sigmoid and another convolution hide what is wrong."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, eps=1e-3), nn.Sigmoid(), nn.Conv2d(6, 2, 3)]
    return randomise(nn.Sequential(*layers))


def given(model: Any) -> Given:
    """What the mutants of the network are made from."""
    conv, norm = model[0], model[1]
    tensors = (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return Given(*(t.detach().double().numpy() for t in tensors), norm.eps, conv.groups)


def file() -> onnx.ModelProto:
    """The same network as a file, whose eps is in float32."""
    state = {name: tensor.numpy() for name, tensor in network().state_dict().items() if tensor.ndim}
    norm = ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["c"], group=2),
        helper.make_node("BatchNormalization", ["c", *norm], ["n"], epsilon=1e-3),
        helper.make_node("Sigmoid", ["n"], ["s"]),
        helper.make_node("Conv", ["s", "3.weight", "3.bias"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (2, 4, 8, 8)), ("y", None))]
    tensors = [numpy_helper.from_array(value, name) for name, value in state.items()]
    graph = helper.make_graph(nodes, "mutant", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def given_of_file(mutant: Mutant) -> Given:
    """What the mutants of the file are made from: its eps is a float32, so that one is none of it."""
    one = given(network())
    eps = (
        2 * one.eps - float(np.float32(one.eps)) if mutant is MUTANTS["eps_in_float32"] else float(np.float32(one.eps))
    )
    return Given(*(getattr(one, name) for name in ("weight", "bias", "gamma", "beta", "mean", "var")), eps, one.groups)


def at_the_site(mutant: Mutant) -> float:
    """`fold` with wrong arithmetic, judged by the proof of the site."""
    return _folded_wrongly(mutant, is_blind=False)


def at_the_whole(mutant: Mutant) -> float:
    """The same, the proof of the site seeing nothing."""
    return _folded_wrongly(mutant, is_blind=True)


def at_verify(mutant: Mutant) -> float:
    """`verify` of a result whose parameters are wrong."""
    model = network()
    result = fold(model, INPUTS)
    exact = dict(zip(("0.weight", "0.bias"), mutant(given(model)), strict=True))
    _store(result.model, exact)
    return margin(lambda: verify(model, Folded(result.model, result.report, exact), INPUTS))


def at_verify_stored(mutant: Mutant) -> float:
    """`verify` of two modules, of which nothing else is known."""
    model = network()
    result = fold(model, INPUTS)
    _store(result.model, dict(zip(("0.weight", "0.bias"), mutant(given(model)), strict=True)))
    return margin(lambda: verify(model, result.model, INPUTS))


def at_fold_onnx(mutant: Mutant) -> float:
    """`fold_onnx` with wrong arithmetic."""
    wrong = mutant(given_of_file(mutant))
    with patch.object(onnx_parameters, "fold_producer", lambda *_: wrong):
        return margin_of_report(lambda: fold_onnx(file()).report)


def at_verify_onnx(mutant: Mutant) -> float:
    """`verify_onnx` of a result whose parameters are wrong."""
    result = _file_with(mutant)
    return margin(lambda: verify_onnx(file(), result))


def at_verify_onnx_stored(mutant: Mutant) -> float:
    """`verify_onnx` of two files, of which nothing else is known."""
    result = _file_with(mutant)
    return margin(lambda: verify_onnx(file(), result.model))


DOORS: dict[str, Callable[[Mutant], float]] = {
    "fold": at_the_site,
    "fold, whole": at_the_whole,
    "verify": at_verify,
    "verify, stored": at_verify_stored,
    "fold_onnx": at_fold_onnx,
    "verify_onnx, verify": at_verify_onnx,
    "verify_onnx, stored": at_verify_onnx_stored,
}


def _folded_wrongly(mutant: Mutant, *, is_blind: bool) -> float:
    model = network()
    wrong = mutant(given(model))
    with ExitStack() as stack:
        stack.enter_context(patch.object(parameters, "fold_producer", lambda *_: wrong))
        if not is_blind:
            return margin_of_report(lambda: fold(model, INPUTS, dynamic=False).report)
        seen = patch.object(fold_plan, "prove_sites", lambda _, at, __: (dict.fromkeys(at.folded, 0.0), {}))
        stack.enter_context(seen)
        return margin(lambda: _proof(fold(model, INPUTS, dynamic=False).report))


def _store(model: nn.Module, exact: dict[str, Any]) -> None:
    for name, value in exact.items():
        model.get_parameter(name).data = torch.from_numpy(round_once(value, "float32"))


def _file_with(mutant: Mutant) -> FoldedOnnx:
    result = fold_onnx(file())
    values = mutant(given_of_file(mutant))
    exact = {name: values[result.exact[name].ndim == 1] for name in result.exact}
    for tensor in result.model.graph.initializer:
        if tensor.name in exact:
            tensor.CopyFrom(numpy_helper.from_array(round_once(exact[tensor.name], "float32"), tensor.name))
    return FoldedOnnx(result.model, result.report, exact)


def _proof(report: Report) -> Proof:
    assert report.proof is not None
    return report.proof


def margin(compare: Callable[[], Proof]) -> float:
    """Return how far two models are apart, over the limit that this passes or breaks."""
    try:
        proof = compare()
    except FoldError as err:
        found = re.search(r"differs by (\S+) of .*(?:expected at most|the limit is) ([-+.\de]+)", str(err))
        if found is None:
            raise
        return float(found.group(1)) / float(found.group(2))
    return max(proof.algebra_error / proof.algebra_limit, proof.deployed_error / proof.deployed_limit)


def margin_of_report(make: Callable[[], Report]) -> float:
    """Return how far a site is from its float64 value, over the limit of its proof."""
    report = make()
    if report.folded:
        return (report.folded[0].proof_error or 0.0) / ALGEBRA_LIMIT
    found = re.search(r"off by (\S+)", report.refused[0].reason)
    assert found is not None, report.table()
    return float(found.group(1)) / ALGEBRA_LIMIT


def page(rows: dict[str, dict[str, float]]) -> str:
    """The table as Markdown."""
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    unseen = [f"- `{name}` at {door}: {why}." for (name, door), why in NOT_SEEN.items()]
    lines = [
        "# Wrong folds, and by how much they are caught\n",
        f"`python -m benchmarks.folding.mutants`, {machine()}, torch {torch.__version__}, onnx {onnx.__version__}.\n",
        f"{about} Eps of a file is a float32; there that mutant is off as far in the other direction.\n",
        "What a door cannot see, since it is less than what that door can tell apart:\n",
        *unseen,
        "\n| mutant | " + " | ".join(DOORS) + " |",
        "|---" * (len(DOORS) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(f"{one:.1e}" for one in margins.values()) + " |"
            for name, margins in rows.items()
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
