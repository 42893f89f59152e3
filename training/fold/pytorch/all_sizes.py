"""A placement that holds at every size: what is folded in one graph is folded in the graphs of other sizes as well.

After `placement`, with the graphs of those sizes at which the model computes in another way; see `look`. A norm is
refused where a layer that takes it would take something else at another size, or where the norm would stay there.
"""

from collections.abc import Mapping

from ..refusals import Refusal, RefusalCode
from .graph import TorchGraph, module_path, module_stack, operation, shape
from .layers import Layer
from .norms import Norm
from .placement import LayerAffines, Placement

_ROUNDING = 1e-12  # of an affine that was composed in float64 in two ways


def norms_of_one_size(
    graph: TorchGraph, placement: Placement, other: TorchGraph, there: Placement
) -> dict[Norm, Refusal]:
    """Return the norms whose place in `graph` is not their place in the graph of the other size, with the reason."""
    mine, its = _by_layer(graph, placement), _by_layer(other, there)
    used = {other.target(node) for node in other.nodes if node.users} - {None}
    used |= {name for name in mine if used & set(name.split())}
    differing = {
        name
        for name, affines in mine.items()
        if name in used and not (name in its and all(_agree(one, its[name][0]) for one in [*affines, *its[name]]))
    }
    staying = {norm.path: refusal for norm, refusal in there.refused.items()}
    elsewhere = {  # in layers that take nothing in `graph`
        norm.path
        for norm, (layers, _) in there.folded.items()
        if any(_name(other, layer) not in mine for layer in layers)
    }
    return {
        norm: _refusal(other, norm, staying)
        for norm, (layers, _) in placement.folded.items()
        if norm.path in staying
        or norm.path in elsewhere
        or any(_name(graph, layer) in differing for layer in layers)
        or _module_does_more(graph, norm, other, there)
    }


def _agree(one: LayerAffines, other: LayerAffines) -> bool:
    """True when both are one affine: a norm may be written in two ways, each with its own rounding."""
    return one.agrees_with(other, tolerance=_ROUNDING)


def _module_does_more(graph: TorchGraph, norm: Norm, other: TorchGraph, there: Placement) -> bool:
    """True when a module that is a norm and nothing else, and goes with it, computes more in the other graph."""
    here, inside = (
        {node for node in one.nodes if node.op == "call_function" and norm.path in module_stack(node)}
        - {node for node in one.nodes if one.is_constant(node)}
        for one in (graph, other)
    )
    its = {node for one in [*there.folded, *there.refused] if one.path == norm.path for node in one.nodes}
    return here <= set(norm.nodes) and not inside <= its


def _by_layer(graph: TorchGraph, placement: Placement) -> dict[str, list[LayerAffines]]:
    """Return what the layers take, by the name of the parameter that takes it."""
    by_layer: dict[str, list[LayerAffines]] = {}
    for affines in placement.affines.values():
        by_layer.setdefault(_name(graph, affines.layer), []).append(affines)
    return by_layer


def _name(graph: TorchGraph, layer: Layer) -> str:
    """Return the names of its tensors: layers may share a weight, and each have a bias of its own."""
    targets = [None if tensor is None else graph.target(tensor) for tensor in (layer.weight, layer.bias)]
    return " ".join(filter(None, targets)) or f"{module_path(layer.node)} {operation(layer.node)}"


def _refusal(other: TorchGraph, norm: Norm, staying: Mapping[str, Refusal]) -> Refusal:
    sizes = ", ".join(str(tuple(shape(node))) for node in other.user_inputs)
    where = f"for inputs of {sizes} {other.circumstance}".rstrip()
    there = staying.get(norm.path)
    if there is not None:
        return Refusal(there.code, f"{where}: {there.reason}", there.remedy)
    return Refusal(
        RefusalCode.SPATIAL,
        f"{where} the model computes in another way, and the layers would have to take something else",
        "make the computation independent of the size, or pass dynamic=False and keep to the size of the example",
    )
