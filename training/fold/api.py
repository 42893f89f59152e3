"""Fold a PyTorch model: the public functions.

`fold_plan` reads and decides, `result` writes and proves; each step is a module of its own. The argument is never
modified, and nothing is returned that was not proved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..errors import FoldError
from .core import Array
from .failures import alone, during
from .pytorch.agreement import agree_everywhere
from .pytorch.entrances import other_entrances, traced_way
from .pytorch.float64 import Inputs
from .pytorch.fold_plan import FoldPlan, make_fold_plan
from .pytorch.guards import guarded
from .pytorch.input_normalisation import CastInput, InputNormalisation, Numbers
from .pytorch.model_proof import Runnable
from .pytorch.process_state import undisturbed
from .pytorch.requirements import foldable, require_arguments, require_choice, require_eval, require_values
from .pytorch.result import by_identity, carry_out, still_rounded
from .pytorch.size_guard import opened
from .pytorch.sizes import declared_axes
from .pytorch.wrappers import unwrapped
from .pytorch.writing import apart
from .report import Proof, Report

ENTRANCES = ("traced", "any")


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


@alone()
@undisturbed()
@during("folding the model")
def fold(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    strict: bool = False,
    dynamic: Any = True,
    padding: str = "refuse",
    entrances: str = "traced",
    duplicate: str = "refuse",
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
            dynamic_shapes. With False the result raises FoldError for other shapes than the example's.
        padding: "refuse" leaves a norm before a zero-padded convolution alone; "exact" folds it and adds the
            correction at the border that this takes.
        entrances: "traced" lets the result raise FoldError where it would give other numbers without a word: in
            training mode, for other flags of its forward or tensors of other ranks than in `example_inputs`, and in
            other methods, its own or of modules in it, that read a changed weight. "any" leaves these ways open. The
            report names them.
        duplicate: "allow" computes a layer twice where a norm and something else read its output: exact, at a cost
            that the report states. "refuse" leaves such a norm alone.
        input_scale: with mean and std, fold (x * scale - mean) / std of the first input too: the result takes raw
            values. Each is a number, or one for each channel. `example_inputs` stay what `model` itself takes.
        input_mean: see `input_scale`.
        input_std: see `input_scale`.

    Raises:
        FoldError: the model is in training mode, lazy, on meta or quantised, cannot be read, or the proof failed; with
            `strict` also when a norm had to stay; always when the input's normalisation had to.
    """
    require_choice("entrances", entrances, ENTRANCES)
    wanted = (input_scale, input_mean, input_std)
    normalisation = None if all(value is None for value in wanted) else _normalisation(*wanted)
    module, notes = unwrapped(model)
    module = foldable(module, example_inputs)
    plan = make_fold_plan(module, example_inputs, dynamic, padding, normalisation, duplicate=duplicate)
    folded = _folded(module, example_inputs, plan, notes, entrances, dynamic)
    if strict:
        folded.report.require_all_folded()
    return folded


def explain(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    dynamic: Any = True,
    padding: str = "refuse",
    duplicate: str = "refuse",
) -> Report:
    """Return the report that `fold` returns, proofs included, and keep no model."""
    return fold(model, example_inputs, dynamic=dynamic, padding=padding, duplicate=duplicate).report


@alone()
@undisturbed()
@during("comparing the models")
def verify(original: nn.Module, folded: nn.Module | Folded, inputs: Inputs) -> Proof:
    """Return how well two models agree on `inputs`; raise FoldError when they are not the same function.

    What they return is compared whole: numbers, dtypes, containers, keys and their order. So it is at other sizes and
    batches, as far as a model accepts them and up to eight times as large, on larger and tiny values and zeros, at rows
    of embeddings that no input names, in every circumstance that a forward may ask about, such as grad or autocast, and
    in later calls; and so are the inputs after the call. What no input shows that was tried, nothing can tell.

    The command `foldserve verify DIR` is another thing: it proves a published version folder once more.

    Args:
        original: in eval mode.
        folded: in eval mode; a `Folded` is compared with its float64 parameters as well, to 1e-11.
        inputs: positional arguments for both, or a mapping of keyword arguments.

    Returns:
        The proof for `inputs`; its `sizes` are those of all inputs on which they agree.

    Raises:
        FoldError: they differ, or only one of them runs; a folded network or an exported one may refuse other sizes.
        CannotJudge: the inputs say nothing, since the outputs are random, empty, not finite, all equal or no numbers.
    """
    require_arguments(inputs, "inputs")
    is_exact = isinstance(folded, Folded)
    models = {"original": unwrapped(original)[0], "folded model": unwrapped(folded.model if is_exact else folded)[0]}
    for name, model in models.items():
        require_eval(model, name)
        require_values(model, inputs)
    before, after = (Runnable(name, apart(model, inputs)) for name, model in models.items())
    if isinstance(folded, Folded):
        after = replace(after, exact=by_identity(after.module, folded.exact))
    return agree_everywhere(before, after, inputs, is_exact=is_exact)


@alone()
@undisturbed()
@during("folding the input's normalisation")
def fold_input(
    model: nn.Module | Folded,
    scale: Numbers,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    *,
    example_inputs: Inputs | None = None,
    dynamic: Any = True,
    padding: str = "refuse",
    entrances: str = "traced",
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
        entrances: as in `fold`.
        uint8: wrap the result so that it takes integers, cast to the parameters' dtype before everything else.

    Raises:
        FoldError: the normalisation cannot be folded exactly, `example_inputs` are needed, or the proof failed.
    """
    require_choice("entrances", entrances, ENTRANCES)
    module, notes = unwrapped(model.model if isinstance(model, Folded) else model)
    known = _ORIGINS.get(module)
    inputs = example_inputs if example_inputs is not None else (known.example_inputs if known else None)
    if inputs is None:
        raise FoldError("fold_input needs example_inputs for a model that is no result of fold; pass a tuple")
    exact = still_rounded(module, known.exact if known else {})
    module = foldable(module, inputs)
    plan = make_fold_plan(module, inputs, dynamic, padding, _normalisation(scale, mean, std), exact, input_only=True)
    folded = _folded(module, inputs, plan, notes, entrances, dynamic).model
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


def _folded(
    model: nn.Module,
    example_inputs: Inputs,
    plan: FoldPlan,
    notes: tuple[str, ...],
    entrances: str,
    dynamic: Any,
) -> Folded:
    folded, report, exact = carry_out(plan, model, example_inputs)
    if exact:
        removed = tuple(site.path for site in report.folded)
        declared = declared_axes(dynamic, example_inputs)
        fixed = {axis: sizes for axis, sizes in plan.reading.sizes.fixed.items() if axis not in declared}
        trains = plan.reading.sizes.trains_with_gradients
        way = traced_way(model, example_inputs, tuple(exact), removed, dynamic is False, fixed, trains)
        report = replace(report, entrances=other_entrances(folded, way))
        folded = guarded(folded, way) if entrances == "traced" else opened(folded)
    _ORIGINS[folded] = _Origin(example_inputs, exact)
    return Folded(folded, replace(report, notes=(*notes, *report.notes)), exact)
