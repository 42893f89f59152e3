"""Fold a PyTorch model: the public functions, and the last steps of a fold, writing and proving.

`fold_plan` has the steps before those; each step is a module of its own. The argument is never modified, and
nothing is returned that was not proved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import FoldError
from .core import Array
from .pytorch.float64 import Inputs, full_copy, named_tensors, tensor_named
from .pytorch.fold_plan import FoldPlan, make_fold_plan, report_of
from .pytorch.input_normalisation import CastInput, InputNormalisation, Numbers
from .pytorch.model_proof import prove_model
from .pytorch.parameters import Value
from .pytorch.write_graph import GraphWriter
from .pytorch.write_module import CannotExpress, ModuleWriter
from .report import Proof, Report
from .rounding import round_once


@dataclass(frozen=True)
class Folded:
    """A folded model and what was done to it.

    Attributes:
        model: computes what the original computes, without the folded norms.
        report: every norm, folded or refused, and the proof.
        exact: float64 values of the changed parameters, by qualified name; their rounding is what `model` holds.
    """

    model: nn.Module
    report: Report
    exact: Mapping[str, Array] = field(default_factory=dict, repr=False)


def fold(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    strict: bool = False,
    dynamic: Any = True,
    padding: str = "refuse",
    input_scale: Numbers | None = None,
    input_mean: Numbers | None = None,
    input_std: Numbers | None = None,
) -> Folded:
    """Return `model` without the norms that can be folded exactly into neighbouring weights.

    Args:
        model: in eval mode; not modified.
        example_inputs: positional arguments of its forward, or a mapping of keyword arguments; shapes and ranks are
            read from them, and the proof runs on them. A data class among the outputs is a dict of its fields in a
            result of the form "graph".
        strict: raise when any norm had to stay.
        dynamic: True when the first axis of every tensor may vary, False when none may, else `torch.export`'s
            dynamic_shapes.
        padding: "refuse" leaves a norm before a zero-padded convolution alone; "exact" folds it and adds the
            correction at the border that this takes.
        input_scale: with mean and std, fold (x * scale - mean) / std of the first input too: the result takes raw
            values. Each is a number, or one for each channel. `example_inputs` stay what `model` itself takes.
        input_mean: see `input_scale`.
        input_std: see `input_scale`.

    Raises:
        FoldError: the model is in training mode, lazy, on meta or quantised, cannot be read, or the proof failed; with
            `strict` also when a norm had to stay; always when the input's normalisation had to.
    """
    wanted = (input_scale, input_mean, input_std)
    normalisation = None if all(value is None for value in wanted) else _normalisation(*wanted)
    plan = make_fold_plan(model, example_inputs, dynamic, padding, normalisation)
    folded = _finish(model, example_inputs, plan)
    if strict:
        folded.report.require_all_folded()
    return folded


def explain(model: nn.Module, example_inputs: Inputs, *, dynamic: Any = True, padding: str = "refuse") -> Report:
    """Return the report that `fold` would return, proof of each site included, without making a model."""
    return report_of(make_fold_plan(model, example_inputs, dynamic, padding))


def verify(original: nn.Module, folded: nn.Module | Folded, inputs: Inputs) -> Proof:
    """Return how well two models agree on `inputs`; raise FoldError when they are not the same function.

    The command `foldserve verify DIR` is another thing: it proves a published version folder once more.

    Args:
        original: in eval mode.
        folded: in eval mode; a `Folded` is compared with its float64 parameters as well, to 1e-11.
        inputs: positional arguments for both, or a mapping of keyword arguments.
    """
    if isinstance(folded, Folded):
        return prove_model(original, folded.model, inputs, exact=_by_identity(folded.model, folded.exact))
    return prove_model(original, folded, inputs)


def fold_input(
    model: nn.Module | Folded,
    scale: Numbers,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    *,
    example_inputs: Inputs | None = None,
    dynamic: Any = True,
    padding: str = "refuse",
    uint8: bool = False,
) -> nn.Module:
    """Return `model` with (x * scale - mean) / std of its first input folded in: the result takes raw values.

    Parameters that `fold` rounded are taken back to their float64 values, as long as they have not
    changed since, so that folding the norms and then the input rounds every parameter once.

    Args:
        model: in eval mode; not modified. A result of `fold` or its model.
        scale: a number, or one for each channel, such as 1/255.
        mean: likewise; None for zero.
        std: likewise; None for one.
        example_inputs: what `model` itself takes; may be left out for a result of `fold`.
        dynamic: as in `fold`.
        padding: as in `fold`; with a mean, a zero-padded first convolution needs "exact".
        uint8: wrap the result so that it takes integers, cast to the parameters' dtype before everything else.

    Raises:
        FoldError: the normalisation cannot be folded exactly, `example_inputs` are needed, or the proof failed.
    """
    module = model.model if isinstance(model, Folded) else model
    known = _ORIGINS.get(module)
    inputs = example_inputs if example_inputs is not None else (known.example_inputs if known else None)
    if inputs is None:
        raise FoldError("fold_input needs example_inputs for a model that is no result of fold; pass a tuple")
    exact = _unchanged(module, known.exact if known else {})
    plan = make_fold_plan(module, inputs, dynamic, padding, _normalisation(scale, mean, std), exact, input_only=True)
    folded = _finish(module, inputs, plan).model
    return CastInput(folded).eval() if uint8 else folded


@dataclass(frozen=True)
class _Origin:
    """What `fold_input` needs of a model that `fold` returned."""

    example_inputs: Inputs
    exact: Mapping[str, Array]


_ORIGINS: "WeakKeyDictionary[nn.Module, _Origin]" = WeakKeyDictionary()


def _normalisation(scale: Numbers | None, mean: Numbers | None, std: Numbers | None) -> InputNormalisation:
    given = {"scale": scale, "mean": mean, "std": std}
    return InputNormalisation(**{name: value for name, value in given.items() if value is not None})


def _unchanged(model: nn.Module, exact: Mapping[str, Array]) -> dict[str, Array]:
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


def _finish(model: nn.Module, example_inputs: Inputs, plan: FoldPlan) -> Folded:
    if not plan.placement.folded:
        unchanged = full_copy(model)
        _ORIGINS[unchanged] = _Origin(example_inputs, {})
        return Folded(unchanged, report_of(plan))
    try:
        folded, exact, proof = _written(ModuleWriter(model), model, example_inputs, plan)
        form, reason = "module", ""
    except (CannotExpress, FoldError) as why:  # a FoldError: the forward uses what the write-back took away
        folded, exact, proof = _written(GraphWriter(plan.graph), model, example_inputs, plan)
        form, reason = "graph", str(why)
    report = replace(report_of(plan), form=form, form_reason=reason, proof=proof)
    _ORIGINS[folded] = _Origin(example_inputs, exact)
    return Folded(folded, report, exact)


def _written(
    writer: ModuleWriter | GraphWriter, model: nn.Module, example_inputs: Inputs, plan: FoldPlan
) -> tuple[nn.Module, dict[str, Array], Proof]:
    """Return the model that the writer makes of the plan, the float64 values of its parameters, and its proof."""
    writer.write(plan.graph, plan.placement, plan.changes)
    exact = {**_unchanged(writer.model, plan.graph.exact), **_checked(writer.model, writer.exact())}
    return writer.model, exact, _prove(model, writer.model, example_inputs, plan, exact)


def _prove(
    model: nn.Module, folded: nn.Module, example_inputs: Inputs, plan: FoldPlan, exact: Mapping[str, Array]
) -> Proof:
    normalisation, known = plan.normalisation, _unchanged(model, plan.graph.exact)
    return prove_model(
        model,
        folded,
        example_inputs if normalisation is None else normalisation.invert(example_inputs),
        exact=_by_identity(folded, exact),
        original_exact=_by_identity(model, known),
        before=None if normalisation is None else normalisation.apply,
    )


def _checked(model: nn.Module, exact: Mapping[str, Value]) -> dict[str, Array]:
    """Return the float64 values; raise FoldError unless each stored one is its value rounded once, bit for bit."""
    for name, value in exact.items():
        stored = tensor_named(model, name).detach().cpu()
        if not torch.equal(stored, torch.from_numpy(value.stored).reshape(stored.shape).to(stored.dtype)):
            raise FoldError(f"the stored parameter '{name}' is not the folded value rounded once; please report this")
    return {name: value.exact.reshape(tuple(tensor_named(model, name).shape)) for name, value in exact.items()}


def _by_identity(model: nn.Module, exact: Mapping[str, Array]) -> dict[int, Tensor]:
    """Return the float64 tensors by the id of the parameter that is their rounding."""
    known = {name: tensor_named(model, name) for name in exact}
    return {id(t): torch.from_numpy(exact[name]).to(t.device) for name, t in known.items()}
