"""The walk from one norm to the layers that can take it: back to its producers, or forward to its consumers.

Between `passing`, which knows single operations, and `placement`, which joins the walks of all norms. A walk that does
not end at layers on every branch raises `Refusal`; nothing is changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch.fx import Node

from ..core import Affine, Layout, in_channels, out_channels
from ..refusals import Refusal, RefusalCode
from .graph import TorchGraph, is_in_place, operation
from .layers import Layer, read_layer, read_map, read_vector, require_axis
from .norms import Norm
from .parallel_branch import covers
from .passing import Flow, backward, forward, forward_to_parts, is_plain_sum
from .selections import changes, picks_of_unchanged


@dataclass
class Walk:
    """One norm's walk to its layers: the ends, with the affine each takes, and the nodes in between.

    Attributes:
        takes: the layers.
        passed: the nodes.
        identities: layers of which the input is added to the output as well, with the affine of that sum; the input
            stays as it is, and the layer makes up for it.
    """

    takes: list[tuple[Layer, Affine]] = field(default_factory=list)
    passed: list[Node] = field(default_factory=list)
    identities: list[tuple[Layer, Affine]] = field(default_factory=list)


def walk_back(graph: TorchGraph, norm: Norm, folded: Mapping[Norm, object], *, is_shared: bool = False) -> Walk:
    """Return the walk to the producers of the norm, past norms that are `folded` already.

    With `is_shared` it passes values that others read as well; see `duplicates`.

    Raises:
        Refusal: a value on the walk has another reader, or no layer stands at the end of it.
    """
    if norm.kind == "input":
        raise Refusal(RefusalCode.NO_PRODUCER, "nothing stands before the model's input")
    folded_at = {norm.output: norm for norm in folded}
    walk = Walk()
    pending = [(Flow(norm.source, norm.axis, norm.affine), norm.nodes[0])]
    while pending:
        flow, reader = pending.pop()
        if not is_shared:
            layer = _layer_beside(graph, flow, reader, folded_at)
            if layer is not None:
                walk.identities.append((layer, flow.affine))
                continue
            walk.passed.extend(_other_picks(graph, flow, reader))
        if flow.value in folded_at:
            inner = folded_at[flow.value]
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
        added = read_map(graph, flow.value, flow.axis)
        if added is not None:
            walk.takes.append((added, flow.affine.without_shift()))
            pending.append((Flow(added.source, flow.axis, flow.affine), added.node))
            continue
        for source in backward(graph, flow.value, flow.axis, flow.affine):
            pending.append((source, (*source.through, flow.value)[0]))
            walk.passed.extend(source.through)
            if operation(flow.value) == "getitem":  # the other parts of the split
                walk.passed.extend(part for part in source.through[0].users if part is not flow.value)
        walk.passed.append(flow.value)
    if not {layer.node for layer, _ in walk.identities} <= {layer.node for layer, _ in walk.takes}:
        raise Refusal(RefusalCode.MULTI_USE, "an identity branch is added beside a layer that does not take the norm")
    return walk


def _layer_beside(graph: TorchGraph, flow: Flow, total: Node, folded_at: Mapping[Node, Norm]) -> Layer | None:
    """Return the layer that takes the identity branch of a sum: y = layer(x) + x, of which `flow.value` is the x.

    s (layer(x) + x) + t is x plus a layer of s layer(x) + (s - 1) x + t, which is one layer; x stays as it is.
    """
    if not _adds(graph, total):
        return None
    while (outer := _reader_that_adds(graph, total)) is not None:
        total = outer
    pending = [total]
    while pending:
        value = pending.pop()
        if _adds(graph, value):
            pending.extend(part for part in value.all_input_nodes if part is not flow.value)
            continue
        if len(graph.readers(value)) != 1 or value in graph.outputs:
            continue
        layer = read_layer(graph, folded_at[value].source if value in folded_at else value)
        if layer is not None and layer.source is flow.value and covers(layer, flow.axis):
            return layer
    return None


def _adds(graph: TorchGraph, node: Node) -> bool:
    return is_plain_sum(graph, node) and not operation(node).startswith("aten::sub")


def _reader_that_adds(graph: TorchGraph, value: Node) -> Node | None:
    readers = graph.readers(value)
    alone = len(readers) == 1 and value not in graph.outputs
    return readers[0] if alone and _adds(graph, readers[0]) else None


def walk_forward(graph: TorchGraph, norm: Norm, norms: Sequence[Norm], exact_padding: bool) -> Walk:
    """Return the walk to the consumers of the norm, past others of `norms`.

    Raises:
        Refusal: a reader of the value, or of what becomes of it, cannot take the norm.
    """
    _require_unwritten(graph, norm)
    kept = {other.nodes[0]: other for other in norms if other.nodes and other is not norm}
    walk = Walk()
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
                pending.append(_past_norm(kept[reader], flow))
                walk.passed.extend(kept[reader].nodes)
                continue
            layer = read_layer(graph, reader)
            if layer is not None and layer.source is flow.value and not _is_norm_layer(layer):
                walk.takes.append((layer, _taken(layer, flow, "input")))
                _require_no_border(layer, walk.takes[-1][1], exact_padding)
                continue
            flows = _forward(graph, reader, flow)
            pending.extend(flows)
            passed = [node for one in flows for node in (*one.through, one.value)]
            unread = (user for user in reader.users if operation(user) == "getitem" and not user.users)
            walk.passed.extend(dict.fromkeys((*passed, *unread, reader)))
    _require_once(walk)
    return walk


def _past_norm(norm: Norm, flow: Flow) -> Flow:
    """Return what the output of another norm carries: a(x) becomes b(a(x)) = c(b(x)) with the c returned here."""
    if norm.axis != flow.axis and norm.axis is not None and flow.axis is not None:
        raise Refusal(RefusalCode.AXIS, f"the next norm '{norm.output.name}' runs over another axis")
    channels = max(norm.affine.channels, flow.affine.channels)
    affine = flow.affine.spread(channels).past(norm.affine.spread(channels))
    return Flow(norm.output, flow.axis if norm.axis is None else norm.axis, affine)


def _forward(graph: TorchGraph, reader: Node, flow: Flow) -> list[Flow]:
    if operation(reader) == "getitem":
        raise Refusal(RefusalCode.UNKNOWN_OP, f"'{reader.name}' takes a part of the normalised value")
    parts = forward_to_parts(reader, flow.axis, flow.affine)
    return [forward(graph, reader, flow.value, flow.axis, flow.affine)] if parts is None else parts


def _is_norm_layer(layer: Layer) -> bool:
    return operation(layer.node).endswith("_norm")


def _require_once(walk: Walk) -> None:
    """Refuse a norm whose output reaches one channel of a layer twice; by a concatenation it may reach others too."""
    changed: dict[Node, npt.NDArray[np.int64]] = {}
    for layer, affine in walk.takes:
        counts = changed.get(layer.node, 0) + changes(affine).astype(np.int64)
        if counts.max(initial=0) > 1:
            raise Refusal(RefusalCode.MULTI_USE, f"the normalised value reaches '{layer.node.name}' twice")
        changed[layer.node] = counts


def _other_picks(graph: TorchGraph, flow: Flow, reader: Node) -> list[Node]:
    """Return what else reads the value: picks of channels that stay as they are. Refuse anything else."""
    others = [one for one in graph.readers(flow.value) if one is not reader]
    picks = [picks_of_unchanged(graph, one, flow.axis, flow.affine) for one in others]
    if flow.value in graph.outputs or not all(picks):
        graph.require_single_reader(flow.value, reader)
    return [node for found in picks for node in found]


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
    if not layer.borders or not np.any(affine.shift) or exact_padding:
        return
    if layer.layout is Layout.CONV_TRANSPOSE:
        raise Refusal(
            RefusalCode.PAD,
            f"'{layer.node.name}' is a transposed convolution: its outputs do not all see the same number of inputs",
            'pass padding="exact", or put the norm after it',
        )
    raise Refusal(RefusalCode.PAD, f"'{layer.node.name}' pads with zeros, and the norm would have moved them")


def _require_unwritten(graph: TorchGraph, norm: Norm) -> None:
    """Refuse when the value that takes the norm's place is written in place, by anyone, once the norm has read it."""
    first = graph.order[norm.nodes[0]] if norm.nodes else -1
    for writer in writers(norm):
        if graph.order[writer] >= first:
            raise Refusal(RefusalCode.MULTI_USE, f"'{writer.name}' writes into what the norm reads")


def writers(norm: Norm) -> Iterator[Node]:
    """Yield the operations that write into the value that the norm reads, or into what shares its memory."""
    aliases, visited = [norm.source, *norm.nodes], set()
    while aliases:
        value = aliases.pop()
        if value in visited:
            continue
        visited.add(value)
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
