"""The ONNX front end: `fold_onnx` takes the norms out of a model, proves the result, and reports every one of them.

Last in the ONNX flow: `functions` writes out local functions, `scopes` folds the graph and the bodies in it,
and proves the result (`model_proof`). It reads and writes no files; `cli` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from ...errors import FoldError
from ..core import Array
from ..failures import during
from ..refusals import Refusal
from ..report import Proof, Report, Site
from .functions import norms_in_functions, own_labels, refused_in_functions, with_norms_inlined
from .model_proof import compare_models
from .order import with_nodes_in_order
from .probe import Shapes
from .protos import check, label, with_free_sizes
from .scopes import fold_graph
from .shapes import with_output_shapes


@dataclass(frozen=True)
class FoldedOnnx:
    """What `fold_onnx` returns.

    Attributes:
        model: the folded model, which passes ONNX's full check; a new object.
        report: every norm, folded or refused, and the proof.
        exact: float64 values behind the changed parameters, by name; their rounding is what `model` holds.
    """

    model: onnx.ModelProto
    report: Report
    exact: Mapping[str, Array] = field(default_factory=dict, repr=False, compare=False)


def fold_onnx(
    model: onnx.ModelProto,
    *,
    strict: bool = False,
    padding: str = "refuse",
    input_shapes: Shapes | None = None,
) -> FoldedOnnx:
    """Return `model` without the norms that its weights can take exactly.

    Folds BatchNormalization (opset 7 and later) and the elementwise form of hand-written norms into the Conv,
    ConvTranspose, Gemm or MatMul before them, or into all that read them; in the bodies of If, Loop and Scan as well.
    Local functions are written out where a norm in them folds. The algebra is float64 with one rounding to each
    parameter's dtype; eps is the attribute's float32 value.

    Args:
        model: weights in memory; left as it is.
        strict: raise when any norm had to stay.
        padding: "refuse" leaves a norm before a zero-padded Conv alone; "exact" folds it and adds the correction at
            the border that this takes.
        input_shapes: input -> its whole shape in the proof, such as {"audio": (1, 1, 16000)}; free sizes of the others
            are chosen, from 12 to 64,000.

    Returns:
        The folded model and the report. There is always a proof: see `model_proof`.

    Raises:
        FoldError: the model is no valid ONNX, strict and a norm stays, or the proof failed.
        ConfigError: `input_shapes` does not fit what the model declares.
    """
    if padding not in ("refuse", "exact"):
        raise FoldError(f'padding is {padding!r}; expected "refuse" or "exact"')
    _require_models(model=model)
    with during("reading the model"):
        model = with_output_shapes(with_free_sizes(with_nodes_in_order(model)))
        check(model, "the model", full=False)
    with during("folding the model"):
        folded = _fold_with_functions(model, padding == "exact", input_shapes)
    if strict:
        folded.report.require_all_folded()
    return folded


def explain_onnx(model: onnx.ModelProto, *, padding: str = "refuse", input_shapes: Shapes | None = None) -> Report:
    """Return the report that `fold_onnx` would give, with its proof; `model` is left as it is."""
    return fold_onnx(model, padding=padding, input_shapes=input_shapes).report


def verify_onnx(
    original: onnx.ModelProto, folded: onnx.ModelProto | FoldedOnnx, *, input_shapes: Shapes | None = None
) -> Proof:
    """Return how well two models agree on random inputs, the same draws.

    Where sizes are free, at two of them, and at those at which a model decides by its sizes. A branch of an If that no
    run takes is taken by force, in both.

    The command `foldserve verify DIR` is another thing: it proves a published version folder once more.

    Args:
        original: weights in memory.
        folded: another model with the same inputs and outputs, made by whatever tool; a `FoldedOnnx` is compared with
            its float64 parameters as well, to 1e-11.
        input_shapes: as in `fold_onnx`.

    Raises:
        FoldError: they are not the same function, or only one of them runs.
        CannotJudge: an output says nothing, such as one that is random, empty, not finite or all equal, or a
            decision that always came out alike; see its `node`.
    """
    compared = folded.model if isinstance(folded, FoldedOnnx) else folded
    _require_models(original=original, folded=compared)
    with during("comparing the models"):
        if isinstance(folded, FoldedOnnx):
            return compare_models(original, folded.model, folded.exact, input_shapes)
        return compare_models(original, folded, None, input_shapes)


def _require_models(**models: object) -> None:
    """Raise FoldError where an argument is no model in memory, with the call that makes one of it."""
    for name, model in models.items():
        if isinstance(model, onnx.ModelProto):
            continue
        cures = {str: "onnx.load(path)", Path: "onnx.load(path)", bytes: "onnx.load_from_string(data)"}
        cure = next((call for kind, call in cures.items() if isinstance(model, kind)), None)
        cure = f"such as {cure} returns" if cure else "such as onnx.load(path) returns; fold takes PyTorch's modules"
        raise FoldError(f"{name} is a {type(model).__name__}; expected an onnx.ModelProto, {cure}")


def _fold_with_functions(model: onnx.ModelProto, exact_padding: bool, shapes: Shapes | None) -> FoldedOnnx:
    """Fold the model with its functions written out, or as it is when no norm in them can be folded."""
    try:
        inlined = with_norms_inlined(model)
    except Refusal as refusal:
        return _fold_graphs(model, norms_in_functions(model, refusal), exact_padding, shapes)
    folded = _fold_graphs(inlined, [], exact_padding, shapes)
    own = own_labels(model)
    if inlined is model or any(site.node not in own for site in folded.report.folded):
        return folded
    return _fold_graphs(model, refused_in_functions(folded.report.refused, own), exact_padding, shapes)


def _fold_graphs(
    model: onnx.ModelProto, in_functions: list[Site], exact_padding: bool, shapes: Shapes | None
) -> FoldedOnnx:
    result = fold_graph(model, exact_padding=exact_padding, shapes=shapes)
    order = {label(node): i for i, node in enumerate(model.graph.node) if node.output}
    folded = tuple(sorted(result.folded, key=lambda site: order.get(site.node, len(order))))
    report = Report(folded, (*result.refused, *in_functions), form="onnx", proof=result.proof)
    return FoldedOnnx(result.model, report, result.graph.exact if folded else {})
