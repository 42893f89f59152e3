"""Everything of a fold before the result is written: read, recognise, place, compute; and its report.

Between the public functions of `api` and the steps, each of which is a module of its own. Nothing here changes the
model, which `explain` relies on.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ...errors import CannotJudge, FoldError
from ..core import Array
from ..failures import during
from ..refusals import Refusal, RefusalCode
from ..registry import state_registered
from ..report import Report, Site
from .all_sizes import norms_of_one_size
from .circumstances import PLAIN, Circumstance, call_as_before
from .duplicates import Duplicate, duplicate_producers, note_of
from .float64 import Inputs, is_writing, named_tensors, sharing_copy
from .graph import TorchGraph, hooked_modules, module_path, read
from .input_normalisation import InputNormalisation
from .look import look_at_sizes
from .norms import Norm, find_norms
from .parameters import Change, compute_changes
from .placement import Placement, place_norms
from .process_state import quiet
from .recorded_calls import Variant, other_computations
from .requirements import require_choice, require_dynamic, require_running
from .site_proof import prove_sites
from .sizes import Sizes
from .unmatched import norms_in_bodies, unmatched_norms
from .wrappers import require_no_script


@dataclass
class Reading:
    """A model as it was read.

    Attributes:
        graph: for inputs of the example's sizes.
        norms: all that were recognised, in order of evaluation.
        unreadable: refused sites for those that were not.
        sizes: the example's sizes and others that the model accepts; none when they may not vary.
        others: graphs of those sizes and circumstances at which the model computes in another way, each with its norms.
        exact_padding: norms may go into zero-padded convolutions, with a correction at the border.
        normalisation: of the input, to be folded as well; None for none.
        duplicates: what was copied in the graph for norms that could not fold otherwise.
    """

    graph: TorchGraph
    norms: list[Norm]
    unreadable: list[Site]
    sizes: Sizes
    others: "OtherGraphs"
    exact_padding: bool
    normalisation: InputNormalisation | None
    duplicates: list[Duplicate] = field(default_factory=list)


class OtherGraphs:
    """Graphs that are read when they are asked for, each once: where no norm folds, none is.

    Args:
        unread: yields each with its norms.
    """

    def __init__(self, unread: Iterator[tuple[TorchGraph, list[Norm]]]):
        self._unread = unread
        self._read: list[tuple[TorchGraph, list[Norm]]] = []

    def __iter__(self) -> Iterator[tuple[TorchGraph, list[Norm]]]:
        yield from self._read
        for one in self._unread:
            self._read.append(one)
            yield one


@dataclass
class FoldPlan:
    """A model that has been read, its norms placed, computed and proved one by one, and not yet written.

    Attributes:
        reading: of the model.
        banned: norms that have to stay whatever the placement, with the reason.
        placement: which norms go where.
        changes: the new parameters.
        errors: of each folded norm, in float64, relative to what it adds up; see `site_proof`.
    """

    reading: Reading
    banned: dict[Norm, Refusal]
    placement: Placement
    changes: list[Change]
    errors: dict[Norm, float]

    @property
    def graph(self) -> TorchGraph:
        """The graph that was read."""
        return self.reading.graph

    @property
    def concerned_outputs(self) -> set[int]:
        """The numbers of the model's outputs that a folded norm reaches."""
        reached = (self.graph.outputs_of(norm.output) for norm in self.placement.folded)
        return set().union(*reached)


def make_fold_plan(
    model: nn.Module,
    example_inputs: Inputs,
    dynamic: Any,
    padding: str,
    normalisation: InputNormalisation | None = None,
    exact: Mapping[str, Array] | None = None,
    input_only: bool = False,
    duplicate: str = "refuse",
) -> FoldPlan:
    """Return what is to be folded, and into what, for arguments as `api.fold` and `api.fold_input` take them.

    Raises:
        FoldError: the arguments do not fit, the model cannot be read, or the input's normalisation has to stay.
    """
    require_choice("padding", padding, ("refuse", "exact"))
    require_choice("duplicate", duplicate, ("refuse", "allow"))
    require_dynamic(dynamic)
    options = (dynamic, padding == "exact", normalisation, exact or {}, input_only)
    plan = _plan(model, example_inputs, *options, None)
    excluded: set[str] = set()
    while duplicate == "allow":
        copied = _plan(model, example_inputs, *options, excluded)
        stayed = {norm.path for norm in copied.placement.refused} & {one.path for one in copied.reading.duplicates}
        if not stayed:
            return copied if copied.reading.duplicates else plan
        excluded |= stayed
    return plan


def _plan(
    model: nn.Module,
    example_inputs: Inputs,
    dynamic: Any,
    exact_padding: bool,
    normalisation: InputNormalisation | None,
    exact: Mapping[str, Array],
    input_only: bool,
    excluded: Collection[str] | None,
) -> FoldPlan:
    """Return the plan; layers are copied where that helps, unless `excluded` is None, not for the norms in it."""
    graph = _graph(model, example_inputs, dynamic, exact)
    norms, unreadable = ([], []) if input_only else _norms(model, graph)
    wanted = bool(norms or normalisation)
    sizes = look_at_sizes(model, example_inputs, may_vary=dynamic is not False) if wanted else Sizes([])
    if sizes.is_otherwise_traced:
        graph = _graph(model, example_inputs, dynamic, exact, hides_tracing=True)
        norms, unreadable = ([], []) if input_only else _norms(model, graph)
    duplicates: list[Duplicate] = []
    if excluded is not None:
        graph, duplicates = _with_copies(graph, norms, excluded)
        norms, unreadable = _norms(model, graph)
    if normalisation is not None:
        norms = [normalisation.norm(graph), *norms]

    def read_otherwise() -> Iterator[tuple[TorchGraph, list[Norm]]]:
        for variant in other_computations(sizes.variants):
            inputs = variant.inputs(example_inputs, has_values=False)
            other = _graph(model, inputs, False, exact, variant.circumstance, example_inputs)
            if excluded is not None:
                other = _with_copies(other, find_norms(other)[0], excluded)[0]
            its_norms = [] if input_only else find_norms(other)[0]
            yield other, its_norms if normalisation is None else [normalisation.norm(other), *its_norms]

    others = OtherGraphs(read_otherwise())
    reading = Reading(graph, norms, unreadable, sizes, others, exact_padding, normalisation, duplicates)
    as_a_whole = _quantised(model) or _hooked_everywhere() or _unjudged(sizes)
    return _placed(reading, dict.fromkeys(norms, as_a_whole) if as_a_whole else {})


def without(plan: FoldPlan, doubt: CannotJudge) -> FoldPlan:
    """Return the plan without the norms that reach an output which cannot be judged; they are refused.

    Raises:
        Refusal: the normalisation of the input is one of them.
    """
    outputs, folded = set(doubt.outputs), list(plan.placement.folded)
    reaching = [norm for norm in folded if plan.graph.outputs_of(norm.output) & outputs] or folded
    refusal = Refusal(RefusalCode.UNJUDGED, str(doubt))
    return _placed(plan.reading, {**plan.banned, **dict.fromkeys(reaching, refusal)})


def _with_copies(graph: TorchGraph, norms: list[Norm], excluded: Collection[str]) -> tuple[TorchGraph, list[Duplicate]]:
    """Return the graph with copied layers, and what was copied."""
    with during("copying layers for norms"):
        duplicates = duplicate_producers(graph, norms, excluded)
        return TorchGraph(graph.program, graph.exact, graph.hooked, graph.noted, graph.circumstance), duplicates


def _graph(
    model: nn.Module,
    inputs: Inputs,
    dynamic: Any,
    exact: Mapping[str, Array],
    circumstance: Circumstance | None = None,
    example: Inputs = (),
    *,
    hides_tracing: bool = False,
) -> TorchGraph:
    """Return the graph of a model, in another circumstance too; `example` has the values for its earlier calls."""
    with during("copying the model"):
        readable = sharing_copy(model)
    there, noted = circumstance or PLAIN, frozenset[str]()
    if there.calls:
        with during(f"calling the model for what it does {there.words}"), torch.no_grad(), quiet():
            call_as_before(readable, there, lambda shapes: Variant(shapes, ()).inputs(example))
        noted = _noted(model, readable)
    hides_tracing = hides_tracing or (circumstance is not None and not there.is_traced)
    stated = state_registered(readable)
    program = _read(model, readable, inputs, dynamic, there, hides_tracing)
    return TorchGraph(program, {**exact, **stated}, hooked_modules(model), noted, there.words)


def _noted(model: nn.Module, called: nn.Module) -> frozenset[str]:
    """Return the names of the tensors that a called copy of the model holds, and the model does not."""
    own = dict(named_tensors(model))
    return frozenset(
        name
        for name, tensor in named_tensors(called)
        if name not in own or own[name].shape != tensor.shape or not torch.equal(own[name], tensor)
    )


def _norms(model: nn.Module, graph: TorchGraph) -> tuple[list[Norm], list[Site]]:
    """Return the norms of the graph, and refused sites for those that it shows as something else or not at all."""
    norms, refused = find_norms(graph)
    refused += norms_in_bodies(graph)
    by_name = {node.name: node for node in graph.nodes}
    unreadable = [by_name[site.node] for site in refused if site.node in by_name]
    matched = [*unreadable, *(node for norm in norms for node in norm.nodes)]
    return norms, refused + unmatched_norms(model, graph, matched, refused)


def _read(
    model: nn.Module,
    readable: nn.Module,
    example_inputs: Inputs,
    dynamic: Any,
    circumstance: Circumstance,
    hides_tracing: bool,
) -> ExportedProgram:
    try:
        return read(readable, example_inputs, dynamic, circumstance, hides_tracing=hides_tracing)
    except FoldError as err:
        quantised = _quantised(model)
        if quantised is not None:
            raise quantised from err
        if circumstance is PLAIN:
            require_running(model, example_inputs)
        if is_writing(model):
            raise FoldError(
                "the forward writes into parameters of the model, which torch.export cannot read; do that once, before "
                f"the fold, and leave it out of the forward ({err})"
            ) from err
        require_no_script(model)
        raise


def _quantised(model: nn.Module) -> Refusal | None:
    """Return why nothing is folded in a model that is quantised, or prepared for it; None for any other."""
    for name, module in model.named_modules():
        if any(part in f"{type(module).__module__}." for part in (".quantized.", ".ao.quantization.")):
            kind = type(module).__name__
            return Refusal(
                RefusalCode.QUANTISED, f"the module '{name}' is {kind}: scales were, or will be, chosen with it"
            )
    return None


def _unjudged(sizes: Sizes) -> Refusal | None:
    remedy = "choose by the inputs alone, or draw outside of the forward"
    return Refusal(RefusalCode.UNJUDGED, sizes.unjudged, remedy) if sizes.unjudged else None


def _hooked_everywhere() -> Refusal | None:
    """Return why nothing is folded while the process has forward hooks for all modules; None when it has none."""
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return Refusal(
            RefusalCode.HOOK,
            "a forward hook for all modules sees, and may change, the values between (register_module_forward_hook)",
            "remove the hook for the fold",
        )
    return None


def _placed(reading: Reading, banned: dict[Norm, Refusal]) -> FoldPlan:
    """Return a plan that holds at all sizes, and whose parameters fit and sites are proved, without banned norms."""
    while True:
        placement = place_norms(reading.graph, reading.norms, reading.exact_padding, banned)
        changes, unfit = compute_changes(reading.graph, placement)
        errors: dict[Norm, float] = {}
        unfit = unfit or _of_one_size(reading, placement, banned)
        if not unfit:
            errors, unfit = prove_sites(reading.graph, placement, changes)
        if not unfit:
            break
        banned.update(unfit)
    if reading.normalisation is not None and reading.norms[0] in placement.refused:
        raise placement.refused[reading.norms[0]]
    return FoldPlan(reading, banned, placement, changes, errors)


def _of_one_size(reading: Reading, placement: Placement, banned: Mapping[Norm, Refusal]) -> dict[Norm, Refusal]:
    """Return the norms whose place is another one at another size of the inputs."""
    paths = {norm.path: refusal for norm, refusal in banned.items()}
    for other, norms in reading.others if placement.folded else ():
        known = {norm: paths[norm.path] for norm in norms if norm.path in paths}
        there = place_norms(other, norms, reading.exact_padding, known)
        moved = norms_of_one_size(reading.graph, placement, other, there)
        if moved:
            return moved
    return {}


def report_of(plan: FoldPlan) -> Report:
    """Return every norm of the plan, folded or refused, in the order of evaluation."""
    by_node = {layer.node: change for change in plan.changes for layer in change.layers}
    folded = tuple(_site(norm, plan, by_node) for norm in plan.placement.folded)
    refused = [(norm, refusal) for norm, refusal in plan.placement.refused.items()]
    stayed = [Site.refused(n.path, n.output.name, n.kind, r, channels=n.affine.channels) for n, r in refused]
    order = {node.name: position for node, position in plan.graph.order.items()}
    stayed = sorted([*stayed, *plan.reading.unreadable], key=lambda site: order.get(site.node, len(order)))
    return Report(folded, tuple(stayed), notes=(*note_of(plan.reading.duplicates), *plan.reading.sizes.notes))


def _site(norm: Norm, plan: FoldPlan, by_node: Mapping[Any, Change]) -> Site:
    layers = plan.placement.folded[norm][0]
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
        proof_error=plan.errors[norm],
    )
