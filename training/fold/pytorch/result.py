"""The last steps of a fold: write what the plan says, prove it, and take back what cannot be judged.

Between `fold_plan` and the public functions of `api`. Nothing is returned that was not proved.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import CannotJudge, FoldError
from ..core import Array
from ..failures import during
from ..report import Proof, Report
from ..rounding import round_once
from .float64 import Inputs, full_copy, named_tensors, tensor_named
from .fold_plan import FoldPlan, report_of, without
from .model_proof import Runnable, prove_in, prove_model, proved_sizes, shapes_of
from .parameters import Value
from .site_proof import prove_stored
from .sizes import second_sizes
from .write_graph import GraphWriter
from .write_module import ModuleWriter


def carry_out(plan: FoldPlan, model: nn.Module, example_inputs: Inputs) -> tuple[nn.Module, Report, dict[str, Array]]:
    """Return the folded model, its report, and the float64 values of its changed parameters.

    Raises:
        FoldError: the result is not what the original computes, or the input's normalisation cannot be judged.
    """
    while plan.placement.folded:
        try:
            return _written_and_proved(plan, model, example_inputs)
        except CannotJudge as doubt:
            plan = without(plan, doubt)
    return full_copy(model), report_of(plan), {}


def _written_and_proved(
    plan: FoldPlan, model: nn.Module, example_inputs: Inputs
) -> tuple[nn.Module, Report, dict[str, Array]]:
    try:
        written = _written(lambda: ModuleWriter(model), model, example_inputs, plan)
        form, reason = "module", ""
    except FoldError as why:  # the tree has no place for a change, or the forward uses what the write-back took away
        conditions = [question.expression for question in plan.reading.sizes.matters]
        trains = plan.reading.sizes.trains_with_gradients
        written = _written(lambda: GraphWriter(plan.graph, conditions, trains), model, example_inputs, plan)
        form, reason = "graph", str(why)
    folded, exact, proof = written
    return folded, replace(report_of(plan), form=form, form_reason=reason, proof=proof), exact


def _written(
    make_writer: Callable[[], ModuleWriter | GraphWriter], model: nn.Module, example_inputs: Inputs, plan: FoldPlan
) -> tuple[nn.Module, dict[str, Array], Proof]:
    """Return what the writer makes of the plan, its float64 parameters, and its proof, at a second size too."""
    with during("writing the folded parameters"):
        writer = make_writer()
        writer.write(plan.graph, plan.placement, plan.changes)
    exact = {**still_rounded(writer.model, plan.graph.exact), **checked(writer.model, writer.exact())}
    normalisation = plan.reading.normalisation
    before = Runnable("original", model, by_identity(model, still_rounded(model, plan.graph.exact)))
    after = Runnable("folded model", writer.model, by_identity(writer.model, exact))
    before = before if normalisation is None else replace(before, prepare=normalisation.apply)

    def raw(inputs: Inputs) -> Inputs:
        return inputs if normalisation is None else normalisation.invert(inputs)

    proof = prove_model(
        before,
        after,
        raw(example_inputs),
        concerned=plan.concerned_outputs or None,  # none: what is folded goes nowhere, and all has to stay as it was
        at_sites=lambda: prove_stored(plan.graph, plan.placement, plan.changes),
    )
    sizes_seen = plan.reading.sizes
    for circumstance in sizes_seen.circumstances:
        prove_in(circumstance, before, after, raw(example_inputs), proof.amplification)
    variants = sizes_seen.variants if sizes_seen.may_vary else []
    others = (raw(inputs) for inputs in second_sizes(variants, example_inputs))
    second = next(filter(None, (proved_sizes(before, after, inputs, proof.amplification) for inputs in others)), "")
    sizes = (shapes_of(example_inputs), second)
    return writer.model, exact, replace(proof, sizes=tuple(filter(None, sizes)))


def checked(model: nn.Module, exact: Mapping[str, Value]) -> dict[str, Array]:
    """Return the float64 values; raise FoldError unless each stored one is its value rounded once, bit for bit."""
    for name, value in exact.items():
        stored = tensor_named(model, name).detach().cpu()
        if not torch.equal(stored, torch.from_numpy(value.stored).reshape(stored.shape).to(stored.dtype)):
            raise FoldError(f"the stored parameter '{name}' is not the folded value rounded once; please report this")
    return {name: value.exact.reshape(tuple(tensor_named(model, name).shape)) for name, value in exact.items()}


def by_identity(model: nn.Module, exact: Mapping[str, Array]) -> dict[int, Tensor]:
    """Return the float64 tensors by the id of the parameter that is their rounding."""
    known = {name: tensor_named(model, name) for name in exact}
    return {id(t): torch.from_numpy(exact[name]).to(t.device) for name, t in known.items()}


def still_rounded(model: nn.Module, exact: Mapping[str, Array]) -> dict[str, Array]:
    """Return those float64 values whose rounding the model still holds."""
    kept, tensors = {}, dict(named_tensors(model))
    for name, values in exact.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != values.shape:
            continue
        stored = round_once(values, str(tensor.dtype).removeprefix("torch."))
        if torch.equal(tensor.detach().cpu(), torch.from_numpy(stored).reshape(tensor.shape).to(tensor.dtype)):
            kept[name] = values.reshape(tuple(tensor.shape))
    return kept
