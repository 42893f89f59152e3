"""The norms that are not in the graph itself: each must be in the report all the same.

After `norms`. A norm in the body of control flow, one that no input reaches, or one whose arithmetic is not recognised
would otherwise stay in the model without a word; here it becomes a refused site.
"""

from collections.abc import Iterable

from torch import nn
from torch.fx import GraphModule, Node

from ..refusals import Refusal, RefusalCode
from ..registry import is_registered
from ..report import Site
from .graph import TorchGraph, arguments, is_tensor, module_path, module_stack, operation
from .norms import READERS

_STATISTICS = ("running_mean", "moving_mean")


def is_norm(module: nn.Module) -> bool:
    """True for PyTorch's batch and instance norms, registered classes, and modules that keep a running mean."""
    known = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm)
    return known or is_registered(module) or any(hasattr(module, name) for name in _STATISTICS)


def norms_in_bodies(graph: TorchGraph) -> list[Site]:
    """Return refused sites for the norms in the bodies of control flow and autocast, which are graphs of their own."""
    sites = []
    for call in graph.nodes:
        for body, operands in _bodies(graph.program.graph_module, call):
            outside = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=False))
            for node in (n for part in body.modules() if isinstance(part, GraphModule) for n in part.graph.nodes):
                if operation(node) in READERS:
                    path = module_path(node) or _owner(graph, node, outside) or node.name
                    refusal = Refusal(RefusalCode.SUBGRAPH, f"the norm is in a body of '{operation(call)}'")
                    sites.append(Site.refused(path, node.name, operation(node).removeprefix("aten::"), refusal))
    return sites


def _bodies(owner: GraphModule, call: Node) -> list[tuple[GraphModule, list[Node]]]:
    """Return the bodies that an operation runs, each with the values that it hands them."""
    given = call.all_input_nodes if call.op == "call_function" else []
    parts = {n: getattr(owner, str(n.target), None) for n in given if n.op == "get_attr"}
    bodies = [part for part in parts.values() if isinstance(part, GraphModule)]
    counts = [len(body.graph.find_nodes(op="placeholder")) for body in bodies]
    return [(body, given[len(given) - count :]) for body, count in zip(bodies, counts, strict=True)]


def _owner(graph: TorchGraph, norm: Node, outside: dict[Node, Node]) -> str:
    """Return the path of the module whose statistics a norm in a body reads, "" when it does not tell."""
    mean = outside.get(arguments(norm)["running_mean"])
    return ((graph.target(mean) if mean is not None else None) or "").rpartition(".")[0]


def unmatched_norms(model: nn.Module, graph: TorchGraph, matched: Iterable[Node], sites: Iterable[Site]) -> list[Site]:
    """Return a refused site for each norm in the tree of `model` that has no part in what was recognised.

    Args:
        model: the user's.
        graph: read from it.
        matched: the operations of the norms that were recognised, and of those that cannot be read.
        sites: refused already.
    """
    reported = {site.path for site in sites}
    for node in matched:
        owners = (graph.target(root) or "" for source in node.all_input_nodes for root in _parameters(graph, source))
        reported |= {module_path(node), *(name.rpartition(".")[0] for name in owners)}
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if is_norm(module):
            paths.setdefault(module, []).append(path)
    return [_site(graph, module, names) for module, names in paths.items() if reported.isdisjoint(names)]


def _parameters(graph: TorchGraph, source: Node) -> list[Node]:
    return graph.roots(source) if graph.is_constant(source) else []


def _site(graph: TorchGraph, module: nn.Module, paths: list[str]) -> Site:
    kind = type(module).__name__
    operations = _operations(graph, set(paths))
    if operations is None:
        refusal = Refusal(
            RefusalCode.CONTROL_FLOW,
            "no output depends on this module for these inputs",
            "pass inputs that reach it, or take it out of the model when none does",
        )
    else:
        refusal = Refusal(
            RefusalCode.UNKNOWN_OP,
            f"what it computes ({', '.join(operations) or 'a constant'}) is not recognised as a fixed scale and shift",
            f"say how a {kind} is read with register_norm, or write it with batch_norm or as gamma * (x - mean) / std",
        )
    return Site.refused(paths[0] or kind, paths[0], kind, refusal)


def _operations(graph: TorchGraph, paths: set[str]) -> list[str] | None:
    """Return the first operations on data inside the modules at `paths`, None when nothing is called there."""
    bodies = [m for m in graph.program.graph_module.modules() if isinstance(m, GraphModule)]
    nodes = [n for body in bodies for n in body.graph.nodes if not paths.isdisjoint(module_stack(n))]
    moving = [n for n in nodes if n.op == "call_function" and is_tensor(n) and not graph.is_constant(n)]
    return list(dict.fromkeys(operation(n).removeprefix("aten::") for n in moving))[:3] if nodes else None
