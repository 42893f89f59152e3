"""Fold a PyTorch model: read, recognise, plan, compute, write, prove.

The one module that knows the order of the steps; each step is a module of its own. The argument is never modified, and
nothing is returned that was not proved.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from training.errors import FoldError
from training.fold.core import Array
from training.fold.float64 import named_tensors, sharing_copy
from training.fold.graph import Graph, hooked_modules, module_path, read
from training.fold.inputs import CastInput, InputNormalisation, Numbers
from training.fold.norms import Norm, find_norms
from training.fold.parameters import Replacement, Value, replacements
from training.fold.plan import Plan, make_plan
from training.fold.proof import verify as prove_model
from training.fold.refusals import Refusal, RefusalCode
from training.fold.registry import state_registered
from training.fold.report import Proof, Report, Site
from training.fold.rounding import round_once
from training.fold.site_proof import SiteProof, prove_sites
from training.fold.write_graph import GraphWriter
from training.fold.write_module import CannotExpress, ModuleWriter


@dataclass(frozen=True)
class Folded:
    """A folded model and what was done to it.

    Attributes:
        model: computes what the original computes, without the folded norms.
        report: every norm, folded or refused, and the proof.
        exact: float64 values behind the changed parameters, by qualified name; their rounding is what `model` holds.
    """

    model: nn.Module
    report: Report
    exact: Mapping[str, Array] = field(default_factory=dict, repr=False)


def fold(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
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
        example_inputs: positional arguments of its forward; shapes and ranks are read from them, and the proof runs
            on them.
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
    job = _prepare(model, example_inputs, dynamic, padding, normalisation)
    folded = _finish(model, example_inputs, job)
    if strict:
        folded.report.require_all_folded()
    return folded


def explain(
    model: nn.Module, example_inputs: tuple[Any, ...], *, dynamic: Any = True, padding: str = "refuse"
) -> Report:
    """Return the report that `fold` would return, proof of each site included, without making a model."""
    job = _prepare(model, example_inputs, dynamic, padding)
    proofs = prove_sites(job.graph, job.plan, job.changes)
    return _report(job, proofs)


def verify(original: nn.Module, folded: nn.Module | Folded, inputs: tuple[Any, ...]) -> Proof:
    """Return how well two models agree on `inputs`; raise FoldError when they are not the same function.

    Args:
        original: in eval mode.
        folded: in eval mode; a `Folded` is compared with its float64 parameters as well, to 1e-11.
        inputs: positional arguments for both.
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
    example_inputs: tuple[Any, ...] | None = None,
    dynamic: Any = True,
    padding: str = "refuse",
    uint8: bool = False,
) -> nn.Module:
    """Return `model` with (x * scale - mean) / std of its first input folded in: the result takes raw values.

    Parameters that `fold` rounded are taken back to the float64 values behind them, as long as nobody changed them
    since, so that folding the norms and then the input rounds every parameter once.

    Args:
        model: in eval mode; not modified. A result of `fold` or its model.
        scale: a number, or one for each channel, such as 1/255.
        mean: likewise; None for zero.
        std: likewise; None for one.
        example_inputs: what `model` itself takes; may be left out for a model that came from `fold`.
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
        raise FoldError("fold_input needs example_inputs for a model that does not come from fold; pass a tuple")
    exact = _unchanged(module, known.exact if known else {})
    job = _prepare(module, inputs, dynamic, padding, _normalisation(scale, mean, std), exact, input_only=True)
    folded = _finish(module, inputs, job).model
    return CastInput(folded).eval() if uint8 else folded


@dataclass(frozen=True)
class _Origin:
    """What `fold_input` needs of a model that `fold` returned."""

    example_inputs: tuple[Any, ...]
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


@dataclass
class _Job:
    """A model that has been read, planned and computed, and not yet written."""

    graph: Graph
    norms: list[Norm]
    plan: Plan
    unreadable: list[Site]
    changes: list[Replacement]
    normalisation: InputNormalisation | None


def _prepare(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    dynamic: Any,
    padding: str,
    normalisation: InputNormalisation | None = None,
    exact: Mapping[str, Array] | None = None,
    input_only: bool = False,
) -> _Job:
    if padding not in ("refuse", "exact"):
        raise FoldError(f'padding is {padding!r}; expected "refuse" or "exact"')
    if not isinstance(example_inputs, tuple):
        raise FoldError(f"example_inputs is a {type(example_inputs).__name__}; expected a tuple of arguments")
    require_foldable(model)
    readable = sharing_copy(model)
    stated = state_registered(readable)
    graph = Graph(read(readable, example_inputs, dynamic), {**(exact or {}), **stated}, hooked_modules(model))
    norms, unreadable = ([], []) if input_only else find_norms(graph)
    if normalisation is not None:
        norms = [normalisation.norm(graph), *norms]
    plan, changes = _planned(graph, norms, padding == "exact")
    if normalisation is not None and norms[0] in plan.refused:
        raise plan.refused[norms[0]]
    return _Job(graph, norms, plan, unreadable, changes, normalisation)


def _planned(graph: Graph, norms: list[Norm], exact_padding: bool) -> tuple[Plan, list[Replacement]]:
    """Return a plan whose parameters all fit their dtypes."""
    banned: dict[Norm, Refusal] = {}
    while True:
        plan = make_plan(graph, norms, exact_padding, banned)
        changes, misfits = replacements(graph, plan)
        if not misfits:
            return plan, changes
        banned.update(misfits)


def _finish(model: nn.Module, example_inputs: tuple[Any, ...], job: _Job) -> Folded:
    proofs = prove_sites(job.graph, job.plan, job.changes)
    if not job.plan.folded:
        unchanged = copy.deepcopy(model)
        _ORIGINS[unchanged] = _Origin(example_inputs, {})
        return Folded(unchanged, _report(job, proofs))
    try:
        folded, exact, proof = _written(ModuleWriter(model), model, example_inputs, job)
        form, reason = "module", ""
    except (CannotExpress, FoldError) as why:  # a FoldError: the forward uses what the write-back took away
        folded, exact, proof = _written(GraphWriter(job.graph), model, example_inputs, job)
        form, reason = "graph", str(why)
    report = replace(_report(job, proofs), form=form, form_reason=reason, proof=proof)
    _ORIGINS[folded] = _Origin(example_inputs, exact)
    return Folded(folded, report, exact)


def _written(
    writer: ModuleWriter | GraphWriter, model: nn.Module, example_inputs: tuple[Any, ...], job: _Job
) -> tuple[nn.Module, dict[str, Array], Proof]:
    """Return the model that the writer makes of the job, the float64 values behind its parameters, and its proof."""
    writer.write(job.graph, job.plan, job.changes)
    exact = {**_unchanged(writer.model, job.graph.exact), **_checked(writer.model, writer.exact())}
    return writer.model, exact, _prove(model, writer.model, example_inputs, job, exact)


def _prove(
    model: nn.Module, folded: nn.Module, example_inputs: tuple[Any, ...], job: _Job, exact: Mapping[str, Array]
) -> Proof:
    normalisation, known = job.normalisation, _unchanged(model, job.graph.exact)
    return prove_model(
        model,
        folded,
        example_inputs if normalisation is None else normalisation.invert(example_inputs),
        exact=_by_identity(folded, exact),
        original_exact=_by_identity(model, known),
        before=None if normalisation is None else normalisation.apply,
    )


def require_foldable(model: nn.Module) -> None:
    """Raise FoldError for a model in a state that no fold can start from."""
    if model.training:
        raise Refusal(RefusalCode.TRAINING, "the model is in training mode; expected model.eval()")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise Refusal(RefusalCode.LAZY, f"the module '{name}' has no shapes yet; run one batch through the model")
        if ".quantized." in f"{type(module).__module__}." or ".ao.quantization." in f"{type(module).__module__}.":
            raise Refusal(
                RefusalCode.QUANTISED, f"the module '{name}' is {type(module).__name__}; fold before quantising"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise FoldError(f"the tensor '{name}' is on the meta device, without values; load the weights first")


def _checked(model: nn.Module, exact: Mapping[str, Value]) -> dict[str, Array]:
    """Return the float64 values; raise FoldError unless each stored one is its value rounded once, bit for bit."""
    for name, value in exact.items():
        stored = _tensor(model, name).detach().cpu()
        if not torch.equal(stored, torch.from_numpy(value.stored).reshape(stored.shape).to(stored.dtype)):
            raise FoldError(f"the stored parameter '{name}' is not the folded value rounded once; please report this")
    return {name: value.exact.reshape(tuple(_tensor(model, name).shape)) for name, value in exact.items()}


def _by_identity(model: nn.Module, exact: Mapping[str, Array]) -> dict[int, Tensor]:
    """Return the float64 tensors by the id of the parameter that they stand behind."""
    known = {name: _tensor(model, name) for name in exact}
    return {id(t): torch.from_numpy(exact[name]).to(t.device) for name, t in known.items()}


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), attribute)
    assert isinstance(tensor, Tensor)
    return tensor


def _report(job: _Job, proofs: Mapping[Norm, SiteProof]) -> Report:
    by_node = {layer.node: change for change in job.changes for layer in change.layers}
    folded = tuple(_site(norm, job, by_node, proofs[norm]) for norm in job.plan.folded)
    refused = [(norm, refusal) for norm, refusal in job.plan.refused.items()]
    stayed = [Site.refused(n.path, n.output.name, n.kind, r, channels=n.affine.channels) for n, r in refused]
    order = {node.name: position for node, position in job.graph.order.items()}
    stayed = sorted([*stayed, *job.unreadable], key=lambda site: order.get(site.node, len(order)))
    return Report(folded, tuple(stayed))


def _site(norm: Norm, job: _Job, by_node: Mapping[Any, Replacement], proof: SiteProof) -> Site:
    layers = job.plan.folded[norm][0]
    changes = [by_node[layer.node] for layer in layers]
    scale = norm.affine.scale
    return Site(
        path=norm.path,
        node=norm.output.name,
        kind=norm.kind,
        reason="taken into the weights",
        into=tuple(module_path(layer.node) or layer.node.name for layer in layers),
        channels=norm.affine.channels,
        scale_range=(float(scale.min()), float(scale.max())),
        dead_channels=int((scale == 0).sum()),
        max_ulp=max((change.max_ulp for change in changes), default=0.0),
        cancellation=max((change.cancellation for change in changes), default=1.0),
        proof_error=proof.algebra,
    )
