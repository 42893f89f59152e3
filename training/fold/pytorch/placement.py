"""Decide for every norm of a graph which layers take it, or why none can: legality before arithmetic.

After `norms`; changes nothing. A norm goes back into the layers that produce its input, or else forward into those
that read its output. Two rules hold everywhere: a value that changes has no other reader, and a weight that several
calls share gets the same change from each of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from torch.fx import Node

from ..core import Affine
from ..failures import during
from ..refusals import Refusal, RefusalCode
from .graph import TorchGraph, module_stack
from .layers import Layer
from .norms import Norm
from .parallel_branch import find_parallel_layer
from .walk import Walk, walk_back, walk_forward, writers


@dataclass
class LayerAffines:
    """What one call of a layer takes: an affine of its inputs, of its outputs, or of a parallel branch; or None.

    With all three the layer becomes x -> after(layer(before(x))) + parallel(x); `before` and `parallel` exclude each
    other.
    """

    layer: Layer
    before: Affine | None = None
    after: Affine | None = None
    parallel: Affine | None = None

    def agrees_with(self, other: "LayerAffines", *, tolerance: float = 0.0) -> bool:
        """True when both need the same change of the weights; with a tolerance, up to rounding of the one by itself."""
        pairs = ((self.before, other.before), (self.after, other.after), (self.parallel, other.parallel))
        same_kind = (self.layer.layout, self.layer.groups) == (other.layer.layout, other.layer.groups)
        return same_kind and all(_equal(one, two, tolerance) for one, two in pairs)

    def with_input(self, affine: Affine) -> "LayerAffines":
        """Return these with one more affine before all that the layer's inputs take already."""
        if self.parallel is not None:
            raise Refusal(RefusalCode.MULTI_USE, f"'{self.layer.node.name}' has taken the identity branch beside it")
        return replace(self, before=affine if self.before is None else affine.then(self.before))

    def with_output(self, affine: Affine) -> "LayerAffines":
        """Return these with one more affine after all that the layer's outputs take already."""
        parallel = self.parallel and self.parallel.then(affine.without_shift())
        return replace(self, after=affine if self.after is None else self.after.then(affine), parallel=parallel)

    def with_parallel(self, affine: Affine, sign: float) -> "LayerAffines":
        """Return these with one more affine of a parallel branch, added or, for sign -1, subtracted."""
        scale, shift = sign * affine.scale, sign * affine.shift
        if self.parallel is not None:
            scale, shift = self.parallel.scale + scale, self.parallel.shift + shift
        return replace(self, parallel=Affine(scale, shift))


@dataclass
class Placement:
    """Which norms go where.

    Attributes:
        affines: what each layer call takes.
        folded: for each norm that goes, its layer calls and every node that its affine passes on the way.
        refused: why the others stay.
        parallel: those of `folded` that go into a layer on a parallel branch; nothing takes their place in the sum.
    """

    affines: dict[Node, LayerAffines] = field(default_factory=dict)
    folded: dict[Norm, tuple[tuple[Layer, ...], tuple[Node, ...]]] = field(default_factory=dict)
    refused: dict[Norm, Refusal] = field(default_factory=dict)
    parallel: set[Norm] = field(default_factory=set)


def place_norms(graph: TorchGraph, norms: list[Norm], exact_padding: bool, banned: dict[Norm, Refusal]) -> Placement:
    """Return where each norm goes.

    Norms whose layers are shared in a way that does not allow it are refused and the rest is planned again, because
    other norms may have relied on their going.

    Args:
        graph: the model.
        norms: its norms in order of evaluation.
        exact_padding: allow a norm before a zero-padded convolution, which then needs a correction at the border.
        banned: norms that are known to have to stay, with the reason; grows by those that turn out to have to.
    """
    while True:
        placement = Placement(refused=dict(banned))
        for norm in norms:
            if norm not in banned:
                with during(f"placing the norm '{norm.path}'"):
                    _place(graph, norm, norms, placement, exact_padding)
        for norm in [one for one in placement.refused if one not in banned]:
            with during(f"placing the norm '{norm.path}'"):
                _place_parallel(graph, norm, placement)
        conflicts = _conflicts(graph, placement)
        if not conflicts:
            return placement
        banned.update(conflicts)


def _place(graph: TorchGraph, norm: Norm, norms: list[Norm], placement: Placement, exact_padding: bool) -> None:
    """Put one norm into the placement: into its producers, else into its consumers, else among the refused."""
    try:
        walk = walk_back(graph, norm, placement.folded)
        _require_no_hooks(graph, norm, walk)
        affines = _with_identities(_affines_of(placement, walk, LayerAffines.with_output), walk)
    except Refusal as backwards:
        try:
            walk = walk_forward(graph, norm, norms, exact_padding)
            _require_no_hooks(graph, norm, walk)
            affines = _affines_of(placement, walk, LayerAffines.with_input)
        except Refusal as forwards:
            placement.refused[norm] = _joined(backwards, forwards)
            return
    placement.affines.update(affines)
    placement.folded[norm] = (tuple(one.layer for one in affines.values()), tuple(walk.passed))


def _place_parallel(graph: TorchGraph, norm: Norm, placement: Placement) -> None:
    """Move a norm from the refused into a convolution on a parallel branch, when there is one."""
    single = {one.output: (one, layers[0]) for one, (layers, _) in placement.folded.items() if len(layers) == 1}
    inner = set(norm.nodes) - {norm.output}
    used = {node for _, passed in placement.folded.values() for node in passed} | set(placement.affines)
    if norm.kind == "input" or inner & used:
        return  # another norm passes this one, or goes into a part of it
    try:
        target = find_parallel_layer(graph, norm, single)
        affines = placement.affines.get(target.layer.node) or LayerAffines(target.layer)
        first, last = sorted((graph.order[norm.nodes[0]], graph.order[target.layer.node]))
        if affines.before is not None or any(first < graph.order[node] < last for node in writers(norm)):
            return
        _require_no_hooks(graph, norm, Walk([(target.layer, norm.affine)], list(target.passed)))
    except Refusal:
        return
    placement.affines[target.layer.node] = affines.with_parallel(_with_later(placement, norm), target.sign)
    placement.folded[norm] = ((target.layer,), target.passed)
    placement.parallel.add(norm)
    del placement.refused[norm]


def _with_later(placement: Placement, norm: Norm) -> Affine:
    """Return the norm's affine and that of the norms which went into it as a layer; it is none any more."""
    later = placement.affines.pop(norm.output, None)
    for other, (layers, passed) in placement.folded.items():
        placement.folded[other] = (tuple(layer for layer in layers if layer.node is not norm.output), passed)
    return norm.affine if later is None or later.after is None else norm.affine.then(later.after)


def _affines_of(
    placement: Placement, walk: Walk, add: Callable[[LayerAffines, Affine], LayerAffines]
) -> dict[Node, LayerAffines]:
    """Return what the walk's layers take; a layer whose parts were split takes one affine for each part."""
    affines: dict[Node, LayerAffines] = {}
    for layer, affine in walk.takes:
        so_far = affines.get(layer.node) or placement.affines.get(layer.node) or LayerAffines(layer)
        affines[layer.node] = add(so_far, affine)
    return affines


def _with_identities(affines: dict[Node, LayerAffines], walk: Walk) -> dict[Node, LayerAffines]:
    """Return the affines with what makes up for the identity branches, which stay: s x + t - x."""
    for layer, affine in walk.identities:
        taken = affines[layer.node]
        assert taken.after is not None
        if taken.before is not None:
            raise Refusal(RefusalCode.MULTI_USE, f"'{layer.node.name}' has taken a norm before it")
        wanted = affine.spread(taken.after.channels)
        affines[layer.node] = taken.with_parallel(Affine(wanted.scale - 1, wanted.shift), 1.0)
    return affines


def _joined(backwards: Refusal, forwards: Refusal) -> Refusal:
    """Return the refusal of the direction in which less is missing, with both reasons."""
    nothing = {RefusalCode.NO_PRODUCER, RefusalCode.ACTIVATION_BETWEEN}
    forwards_is_nearer = backwards.code is RefusalCode.NO_PRODUCER and forwards.code not in nothing
    less = forwards if forwards.code in {RefusalCode.PAD, RefusalCode.HOOK} or forwards_is_nearer else backwards
    if backwards.code is RefusalCode.HOOK:
        less = backwards
    return Refusal(less.code, f"into the layer before: {backwards.reason}; into the layer after: {forwards.reason}")


def _require_no_hooks(graph: TorchGraph, norm: Norm, walk: Walk) -> None:
    """Refuse when a user's hook sees a value that changes: it is on a module that holds only a part of the site."""
    changed = [*norm.nodes, *walk.passed, *(layer.node for layer, _ in walk.takes)]
    stacks = [module_stack(node) for node in changed]
    for path in graph.hooked:
        if any(path in stack for stack in stacks) and not all(path in stack for stack in stacks):
            raise Refusal(RefusalCode.HOOK, f"the module '{path}' has a forward hook, which sees a value that changes")


def _conflicts(graph: TorchGraph, placement: Placement) -> dict[Norm, Refusal]:
    """Return the norms that must stay because a weight they would change has other users, with the reason."""
    conflicts: dict[Norm, Refusal] = {}
    removed = {node for norm in placement.folded for node in norm.nodes}
    for affines in placement.affines.values():
        refusal = next(_objections(graph, affines, placement, removed), None)
        if refusal is not None:
            for norm, (layers, _) in placement.folded.items():
                if any(layer.node is affines.layer.node for layer in layers):
                    conflicts.setdefault(norm, refusal)
    return conflicts


def _objections(
    graph: TorchGraph, affines: LayerAffines, placement: Placement, removed: set[Node]
) -> Iterator[Refusal]:
    for name, tensor in (("weight", affines.layer.weight), ("bias", affines.layer.bias)):
        if tensor is None or tensor.op != "placeholder":
            continue  # what a layer computes, such as a slice of a parameter, is written anew for each call
        for reader in _other_readers(graph, tensor, affines.layer.node, removed):
            other = placement.affines.get(reader)
            shared = None if other is None else getattr(other.layer, name)
            if other is not None and tensor not in (other.layer.weight, other.layer.bias):
                continue  # it computes its own from this one, and gets that anew
            same = shared is not None and graph.roots(shared) == graph.roots(tensor)
            if other is None or not same or not other.agrees_with(affines):
                reason = f"the {name} of '{affines.layer.node.name}' also serves '{reader.name}'"
                yield Refusal(RefusalCode.SHARED, f"{reason}, which would need another one")


def _other_readers(graph: TorchGraph, tensor: Node, layer: Node, removed: set[Node]) -> list[Node]:
    """Return the operations on data, other than `layer`, that use the parameters of a constant."""
    readers, pending = [], graph.roots(tensor)
    visited: set[Node] = set()
    while pending:
        for user in pending.pop().users:
            if user in visited or user is layer or user in removed:
                continue
            visited.add(user)
            if user.op != "output" and graph.is_constant(user):
                if not user.users or set(user.users) <= removed:
                    continue
                pending.append(user)
            else:
                readers.append(user)
    return readers


def _equal(one: Affine | None, two: Affine | None, tolerance: float) -> bool:
    if one is None or two is None:
        return one is two
    largest = float(np.abs(one.shift).max(initial=0.0))
    has_scale = np.allclose(one.scale, two.scale, rtol=tolerance, atol=0.0)
    return has_scale and np.allclose(one.shift, two.shift, rtol=tolerance, atol=tolerance * largest)
