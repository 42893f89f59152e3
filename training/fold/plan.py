"""Decide for every norm of a graph which layers take it, or why none can: legality before arithmetic.

After `norms`; changes nothing. A norm goes back into the layers that produce its input, or else forward into those
that read its output. Two rules hold everywhere: a value that changes has no other reader, and a weight that several
calls share gets the same change from each of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from torch.fx import Node

from training.fold.beside import find_beside
from training.fold.core import Affine, in_channels, out_channels
from training.fold.graph import Graph, is_in_place, module_stack, operation
from training.fold.layers import Layer, read_layer, read_vector, require_axis
from training.fold.norms import Norm
from training.fold.refusals import Refusal, RefusalCode
from training.fold.through import Flow, backward, forward


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


@dataclass
class _Walk:
    """One norm's way to its layers: the ends, with the affine each takes, and the nodes in between."""

    takes: list[tuple[Layer, Affine]] = field(default_factory=list)
    passed: list[Node] = field(default_factory=list)


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
        walk = _walk_back(graph, norm, plan)
        _require_no_hooks(graph, norm, walk)
        edits = _edited(plan, walk, _behind)
    except Refusal as backwards:
        try:
            walk = _walk_forward(graph, norm, norms, exact_padding)
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
        if edit.before is not None or any(places[0] < graph.order[node] < places[1] for node in _writers(norm)):
            return
        _require_no_hooks(graph, norm, _Walk([(edit.layer, norm.affine)], list(found.passed)))
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


def _edited(plan: Plan, walk: _Walk, add: Callable[[Edit, Affine], Edit]) -> dict[Node, Edit]:
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


def _walk_back(graph: Graph, norm: Norm, plan: Plan) -> _Walk:
    if norm.kind == "input":
        raise Refusal(RefusalCode.NO_PRODUCER, "nothing stands before the model's input")
    gone = {folded.output: folded for folded in plan.folded}
    walk = _Walk()
    pending = [(Flow(norm.source, norm.axis, norm.affine), norm.nodes[0])]
    while pending:
        flow, reader = pending.pop()
        graph.require_single_reader(flow.value, reader)
        if flow.value in gone:
            inner = gone[flow.value]
            walk.passed.extend(inner.nodes)
            pending.append((Flow(inner.source, flow.axis, flow.affine), inner.nodes[0]))
            continue
        layer = read_layer(graph, flow.value)
        if layer is not None:
            walk.takes.append((layer, _taken(layer, flow, "output")))
            continue
        vector = read_vector(graph, flow.value, flow.axis, flow.affine.channels)
        if vector is not None:
            walk.takes.append((vector, flow.affine))
            pending.append((Flow(vector.source, flow.axis, flow.affine.without_shift()), vector.node))
            continue
        for source in backward(graph, flow.value, flow.axis, flow.affine):
            reader = _reader_of(source.value, flow.value)
            pending.append((source, reader))
            if reader is not flow.value:
                walk.passed.extend([reader, *(part for part in reader.users if part is not flow.value)])
        walk.passed.append(flow.value)
    return walk


def _reader_of(source: Node, node: Node) -> Node:
    """Return which node reads `source` on the way to `node`: itself, or the split whose part it is."""
    return node if source in node.all_input_nodes else node.all_input_nodes[0]


def _walk_forward(graph: Graph, norm: Norm, norms: list[Norm], exact_padding: bool) -> _Walk:
    _require_unwritten(graph, norm)
    kept = {other.nodes[0]: other for other in norms if other.nodes and other is not norm}
    walk = _Walk()
    pending = [Flow(norm.output, norm.axis, norm.affine)]
    while pending:
        flow = pending.pop()
        if flow.value in graph.outputs:
            raise Refusal(RefusalCode.GRAPH_OUTPUT, f"the value '{flow.value.name}' that would change is an output")
        readers = graph.readers(flow.value)
        if not readers:
            raise Refusal(RefusalCode.NO_PRODUCER, f"nothing reads '{flow.value.name}'")
        for reader in readers:
            if is_in_place(reader):
                raise Refusal(RefusalCode.MULTI_USE, f"'{reader.name}' writes into the normalised value")
            if reader in kept:
                pending.append(_through_norm(kept[reader], flow))
                walk.passed.extend(kept[reader].nodes)
                continue
            layer = read_layer(graph, reader)
            if layer is not None and layer.source is flow.value and not _is_norm_layer(layer):
                walk.takes.append((layer, _taken(layer, flow, "input")))
                _require_no_border(layer, walk.takes[-1][1], exact_padding)
                continue
            pending.append(_forward(graph, reader, flow))
            walk.passed.append(reader)
    _require_once(walk)
    return walk


def _through_norm(norm: Norm, flow: Flow) -> Flow:
    """Return what the output of another norm carries: a(x) becomes b(a(x)) = c(b(x)) with the c returned here."""
    if norm.axis != flow.axis and norm.axis is not None and flow.axis is not None:
        raise Refusal(RefusalCode.AXIS, f"the norm '{norm.output.name}' behind it runs over another axis")
    channels = max(norm.affine.channels, flow.affine.channels)
    own, carried = norm.affine.spread(channels), flow.affine.spread(channels)
    shift = own.scale * carried.shift + own.shift - carried.scale * own.shift
    return Flow(norm.output, flow.axis if norm.axis is None else norm.axis, Affine(carried.scale, shift))


def _require_no_hooks(graph: Graph, norm: Norm, walk: _Walk) -> None:
    """Refuse when a user's hook sees a value that changes: it is on a module that holds only a part of the site."""
    changed = [*norm.nodes, *walk.passed, *(layer.node for layer, _ in walk.takes)]
    stacks = [module_stack(node) for node in changed]
    for path in graph.hooked:
        if any(path in stack for stack in stacks) and not all(path in stack for stack in stacks):
            raise Refusal(RefusalCode.HOOK, f"the module '{path}' has a forward hook, which sees a value that changes")


def _forward(graph: Graph, reader: Node, flow: Flow) -> Flow:
    if operation(reader) == "getitem":
        raise Refusal(RefusalCode.UNKNOWN_OP, f"'{reader.name}' takes a part of the normalised value")
    return forward(graph, reader, flow.value, flow.axis, flow.affine)


def _is_norm_layer(layer: Layer) -> bool:
    return operation(layer.node).endswith("_norm")


def _require_once(walk: _Walk) -> None:
    """Refuse a norm whose output reaches one operation on two ways."""
    nodes = [layer.node for layer, _ in walk.takes] + walk.passed
    if len(set(nodes)) != len(nodes):
        raise Refusal(RefusalCode.MULTI_USE, "the normalised value reaches one operation on two ways")


def _taken(layer: Layer, flow: Flow, side: str) -> Affine:
    """Return the flow's affine for the channels of one side of the layer; refuse another axis or another number."""
    require_axis(layer, flow.axis, layer.out_axis if side == "output" else layer.in_axis, side)
    weight = layer.weight
    if weight is None:
        return flow.affine
    count = out_channels if side == "output" else in_channels
    expected = count(weight.meta["val"], layer.layout, layer.groups)
    if flow.affine.channels not in (1, expected):
        raise Refusal(RefusalCode.AXIS, f"the norm has {flow.affine.channels} channels, '{layer.node.name}' {expected}")
    return flow.affine.spread(expected)


def _require_no_border(layer: Layer, affine: Affine, exact_padding: bool) -> None:
    if not layer.borders or not np.any(affine.shift):
        return
    if operation(layer.node).startswith("aten::conv_transpose"):
        raise Refusal(
            RefusalCode.PAD,
            f"'{layer.node.name}' is a transposed convolution: its outputs do not all see the same number of inputs",
            "put the norm behind it",
        )
    if not exact_padding:
        raise Refusal(RefusalCode.PAD, f"'{layer.node.name}' pads with zeros, and the norm would have moved them")


def _require_unwritten(graph: Graph, norm: Norm) -> None:
    """Refuse when the value that takes the norm's place is written in place, by anyone, once the norm has read it."""
    first = graph.order[norm.nodes[0]] if norm.nodes else -1
    for writer in _writers(norm):
        if graph.order[writer] >= first:
            raise Refusal(RefusalCode.MULTI_USE, f"'{writer.name}' writes into what the norm reads")


def _writers(norm: Norm) -> Iterator[Node]:
    """Yield the operations that write into the value that the norm reads, or into what shares its memory."""
    aliases, seen = [norm.source, *norm.nodes], set()
    while aliases:
        value = aliases.pop()
        if value in seen:
            continue
        seen.add(value)
        for user in value.users:
            if user.op == "call_function" and is_in_place(user) and user.args[0] is value:
                yield user
            if user.op == "call_function" and _may_alias(user):
                aliases.append(user)
        if value.op == "call_function" and _may_alias(value):
            aliases.extend(value.all_input_nodes[:1])


def _may_alias(node: Node) -> bool:
    """True when the operation returns a view of its input, or the input itself."""
    schema = getattr(node.target, "_schema", None)
    views = schema is not None and any(r.alias_info is not None for r in schema.returns)
    return views or operation(node) in {"aten::reshape", "aten::contiguous", "aten::dropout", "aten::to", "getitem"}


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
