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
from ..refusals import Refusal, RefusalCode
from .beside import find_beside
from .graph import Graph, module_stack
from .layers import Layer
from .norms import Norm
from .walk import Walk, walk_back, walk_forward, writers


@dataclass
class Edit:
    """What one call of a layer takes: an affine of its inputs, of its outputs, or of its input beside it; or None.

    With all three the layer becomes x -> after(layer(before(x))) + beside(x); `before` and `beside` exclude each other.
    """

    layer: Layer
    before: Affine | None = None
    after: Affine | None = None
    beside: Affine | None = None

    def agrees_with(self, other: "Edit") -> bool:
        """True when both ask for the same change of the weights."""
        pairs = ((self.before, other.before), (self.after, other.after), (self.beside, other.beside))
        alike = (self.layer.layout, self.layer.groups) == (other.layer.layout, other.layer.groups)
        return alike and all(_equal(one, two) for one, two in pairs)


@dataclass
class Plan:
    """Which norms go where.

    Attributes:
        edits: by layer call.
        folded: for each norm that goes, its layer calls and every node that its affine passes on the way.
        refused: why the others stay.
        beside: those of `folded` that go into a layer beside them; nothing takes their place in the sum.
    """

    edits: dict[Node, Edit] = field(default_factory=dict)
    folded: dict[Norm, tuple[tuple[Layer, ...], tuple[Node, ...]]] = field(default_factory=dict)
    refused: dict[Norm, Refusal] = field(default_factory=dict)
    beside: set[Norm] = field(default_factory=set)


def make_plan(graph: Graph, norms: list[Norm], exact_padding: bool, banned: dict[Norm, Refusal]) -> Plan:
    """Return where each norm goes.

    Norms whose layers are shared in a way that does not allow it are refused and the rest is planned again, because
    other norms may have relied on their going.

    Args:
        graph: the model.
        norms: its norms in order of evaluation.
        exact_padding: allow a norm before a zero-padded convolution, which then needs a correction at the border.
        banned: norms that are known to have to stay, with the reason; grows by those that are found here.
    """
    while True:
        plan = Plan(refused=dict(banned))
        for norm in norms:
            if norm not in banned:
                _place(graph, norm, norms, plan, exact_padding)
        for norm in [one for one in plan.refused if one not in banned]:
            _place_beside(graph, norm, plan)
        conflicts = _conflicts(graph, plan)
        if not conflicts:
            return plan
        banned.update(conflicts)


def _place(graph: Graph, norm: Norm, norms: list[Norm], plan: Plan, exact_padding: bool) -> None:
    """Put one norm into the plan: into its producers, else into its consumers, else among the refused."""
    try:
        walk = walk_back(graph, norm, plan.folded)
        _require_no_hooks(graph, norm, walk)
        edits = _edited(plan, walk, _behind)
    except Refusal as backwards:
        try:
            walk = walk_forward(graph, norm, norms, exact_padding)
            _require_no_hooks(graph, norm, walk)
            edits = _edited(plan, walk, _ahead)
        except Refusal as forwards:
            plan.refused[norm] = _told(backwards, forwards)
            return
    plan.edits.update(edits)
    plan.folded[norm] = (tuple(edit.layer for edit in edits.values()), tuple(walk.passed))


def _place_beside(graph: Graph, norm: Norm, plan: Plan) -> None:
    """Move a norm from the refused into a convolution beside it, when there is one."""
    gone = {one.output: (one, layers[0]) for one, (layers, _) in plan.folded.items() if len(layers) == 1}
    inner = set(norm.nodes) - {norm.output}
    if norm.kind == "input" or any(inner & {*passed} for _, passed in plan.folded.values()) or inner & {*plan.edits}:
        return  # another norm passes this one, or goes into a part of it
    try:
        found = find_beside(graph, norm, gone)
        edit = plan.edits.get(found.layer.node) or Edit(found.layer)
        places = sorted((graph.order[norm.nodes[0]], graph.order[edit.layer.node]))
        if edit.before is not None or any(places[0] < graph.order[node] < places[1] for node in writers(norm)):
            return
        _require_no_hooks(graph, norm, Walk([(edit.layer, norm.affine)], list(found.passed)))
    except Refusal:
        return
    affine = _with_later(plan, norm)
    scale, shift = (found.sign * values for values in (affine.scale, affine.shift))
    if edit.beside is not None:
        scale, shift = edit.beside.scale + scale, edit.beside.shift + shift
    plan.edits[edit.layer.node] = replace(edit, beside=Affine(scale, shift))
    plan.folded[norm] = ((edit.layer,), found.passed)
    plan.beside.add(norm)
    del plan.refused[norm]


def _with_later(plan: Plan, norm: Norm) -> Affine:
    """Return the norm's affine and that of the norms which went into it as a layer; it is none any more."""
    later = plan.edits.pop(norm.output, None)
    for other, (layers, passed) in plan.folded.items():
        plan.folded[other] = (tuple(layer for layer in layers if layer.node is not norm.output), passed)
    return norm.affine if later is None or later.after is None else norm.affine.then(later.after)


def _edited(plan: Plan, walk: Walk, add: Callable[[Edit, Affine], Edit]) -> dict[Node, Edit]:
    """Return the edits of the walk's layers; a layer whose parts were split takes one affine for each part."""
    edits: dict[Node, Edit] = {}
    for layer, affine in walk.takes:
        so_far = edits.get(layer.node) or plan.edits.get(layer.node) or Edit(layer)
        edits[layer.node] = add(so_far, affine)
    return edits


def _behind(edit: Edit, affine: Affine) -> Edit:
    """Return the edit with one more affine behind all that the layer's outputs take already."""
    return replace(edit, after=affine if edit.after is None else edit.after.then(affine))


def _ahead(edit: Edit, affine: Affine) -> Edit:
    """Return the edit with one more affine ahead of all that the layer's inputs take already."""
    return replace(edit, before=affine if edit.before is None else affine.then(edit.before))


def _told(backwards: Refusal, forwards: Refusal) -> Refusal:
    """Return the refusal of the direction in which less is missing, with both reasons."""
    nothing = {RefusalCode.NO_PRODUCER, RefusalCode.ACTIVATION_BETWEEN}
    forwards_is_nearer = backwards.code is RefusalCode.NO_PRODUCER and forwards.code not in nothing
    less = forwards if forwards.code in {RefusalCode.PAD, RefusalCode.HOOK} or forwards_is_nearer else backwards
    if backwards.code is RefusalCode.HOOK:
        less = backwards
    return Refusal(less.code, f"into the layer before: {backwards.reason}; into the one behind: {forwards.reason}")


def _require_no_hooks(graph: Graph, norm: Norm, walk: Walk) -> None:
    """Refuse when a user's hook sees a value that changes: it is on a module that holds only a part of the site."""
    changed = [*norm.nodes, *walk.passed, *(layer.node for layer, _ in walk.takes)]
    stacks = [module_stack(node) for node in changed]
    for path in graph.hooked:
        if any(path in stack for stack in stacks) and not all(path in stack for stack in stacks):
            raise Refusal(RefusalCode.HOOK, f"the module '{path}' has a forward hook, which sees a value that changes")


def _conflicts(graph: Graph, plan: Plan) -> dict[Norm, Refusal]:
    """Return the norms that must stay because a weight they would change has other users, with the reason."""
    conflicts: dict[Norm, Refusal] = {}
    removed = {node for norm in plan.folded for node in norm.nodes}
    for edit in plan.edits.values():
        refusal = next(_objections(graph, edit, plan, removed), None)
        if refusal is not None:
            for norm, (layers, _) in plan.folded.items():
                if any(layer.node is edit.layer.node for layer in layers):
                    conflicts.setdefault(norm, refusal)
    return conflicts


def _objections(graph: Graph, edit: Edit, plan: Plan, removed: set[Node]) -> Iterator[Refusal]:
    for name, tensor in (("weight", edit.layer.weight), ("bias", edit.layer.bias)):
        if tensor is None:
            continue
        for reader in _other_readers(graph, tensor, edit.layer.node, removed):
            other = plan.edits.get(reader)
            twin = None if other is None else getattr(other.layer, name)
            if other is None or twin is None or graph.roots(twin) != graph.roots(tensor) or not other.agrees_with(edit):
                yield Refusal(
                    RefusalCode.SHARED,
                    f"the {name} of '{edit.layer.node.name}' also serves '{reader.name}', which would need another one",
                )


def _other_readers(graph: Graph, tensor: Node, layer: Node, removed: set[Node]) -> list[Node]:
    """Return the operations on data, other than `layer`, that use the parameters behind a constant."""
    found, pending = [], graph.roots(tensor)
    seen: set[Node] = set()
    while pending:
        for user in pending.pop().users:
            if user in seen or user is layer or user in removed:
                continue
            seen.add(user)
            if user.op != "output" and graph.is_constant(user):
                if not user.users or set(user.users) <= removed:
                    continue
                pending.append(user)
            else:
                found.append(user)
    return found


def _equal(one: Affine | None, two: Affine | None) -> bool:
    if one is None or two is None:
        return one is two
    return np.array_equal(one.scale, two.scale) and np.array_equal(one.shift, two.shift)
