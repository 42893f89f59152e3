"""Writes local functions that hold a norm out at the places where they are called, so that the norm meets its layer.

First in the ONNX flow, before the graph is read; functions without a norm stay as they are. A function knows its
parameters only by the name of its inputs: what they are, and who else reads them, shows at each call.
"""

from collections.abc import Iterable

import onnx
from onnx import NodeProto, inliner

from ..refusals import Refusal, RefusalCode
from ..report import Site
from .protos import label, operation, subgraphs

_AT_THE_EDGE = {RefusalCode.NO_PRODUCER, RefusalCode.GRAPH_OUTPUT}  # the layer may stand right outside


def with_norms_inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with the calls of functions that hold a norm written out; `model` itself when there are none.

    Raises:
        Refusal: subgraph when ONNX cannot write them out.
    """
    chosen = _functions_with_norms(model)
    if not chosen:
        return model
    try:
        return inliner.inline_selected_functions(model, sorted(chosen))
    except Exception as err:  # the inliner is C++, its errors share no base
        reason = f"the local function around it cannot be written out: {str(err).splitlines()[0]}"
        raise Refusal(RefusalCode.SUBGRAPH, reason) from err


def refused_in_functions(sites: Iterable[Site], own: set[str]) -> list[Site]:
    """Return those of `sites`, found after inlining, that are no nodes of the model itself (`own`), as refusals."""
    return [refused_within("a local function", site) for site in sites if site.node not in own]


def refused_within(where: str, site: Site) -> Site:
    """Return the refusal of a norm that stands in `where`: the code says so, reason and remedy are as found there."""
    if site.code is RefusalCode.SUBGRAPH or site.code is None:
        return site
    remedy = None if site.code in _AT_THE_EDGE else site.remedy
    refusal = Refusal(RefusalCode.SUBGRAPH, f"in {where}, {site.code}: {site.reason}", remedy)
    return Site.refused(site.path, site.node, site.kind, refusal, site.channels)


def norms_in_functions(model: onnx.ModelProto, refusal: Refusal) -> list[Site]:
    """Return `refusal` for each BatchNormalization that stands in a local function."""
    nodes = (node for function in model.functions for node in function.node if _is_norm(node))
    return [Site.refused(label(node), label(node), "batch_norm", refusal) for node in nodes]


def own_labels(model: onnx.ModelProto) -> set[str]:
    """Return what the report calls the nodes of `model` and of the bodies in it, without calls that are written out.

    What is written out makes the values that its call made, and may be called after them.
    """
    return _labels(model.graph, _functions_with_norms(model))


def _labels(graph: onnx.GraphProto, written_out: set[tuple[str, str]]) -> set[str]:
    nodes = [node for node in graph.node if node.output and (node.domain, node.op_type) not in written_out]
    inside = {name for node in nodes for body in subgraphs(node) for name in _labels(body, written_out)}
    return {label(node) for node in nodes} | inside


def _functions_with_norms(model: onnx.ModelProto) -> set[tuple[str, str]]:
    """Return (domain, name) of each function with a norm in it, or with a call of such a function."""
    chosen: set[tuple[str, str]] = set()
    while True:
        more = {(f.domain, f.name) for f in model.functions if any(_holds_norm(node, chosen) for node in f.node)}
        if more == chosen:
            return chosen
        chosen = more


def _holds_norm(node: NodeProto, chosen: set[tuple[str, str]]) -> bool:
    within = any(_holds_norm(inner, chosen) for body in subgraphs(node) for inner in body.node)
    return within or _is_norm(node) or (node.domain, node.op_type) in chosen


def _is_norm(node: NodeProto) -> bool:
    return operation(node) == "BatchNormalization"
