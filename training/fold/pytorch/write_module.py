"""Write folded parameters back into a copy of the user's own module tree, norms becoming `nn.Identity`.

One of the two ways to write a result. It keeps classes, names, devices, dtypes, memory formats and requires_grad, and
it raises `CannotExpress` where the tree has no place for a change; then the graph is written instead.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.fx import Node
from torch.nn.utils import parametrize

from ...errors import FoldError
from .border import takes_border, with_border
from .float64 import full_copy
from .graph import TorchGraph, call_key, computes_weight, is_in_place, is_tensor, module_path
from .layers import Layer
from .norms import Norm
from .parallel_branch import ZeroBranch
from .parameters import Change, Value
from .placement import Placement
from .wrappers import is_exported
from .writer import Writer


class CannotExpress(FoldError):  # noqa: N818 -- it chooses the other form
    """The user's module tree has no place for a change; the message says which."""


class ModuleWriter(Writer):
    """A deep copy of the user's own module tree that takes new parameters."""

    def __init__(self, model: nn.Module):
        super().__init__(full_copy(model))
        self._is_exported = is_exported(model)

    def store(self, name: str, value: Value) -> None:
        """Give a parameter its rounded value; CannotExpress when no registered module holds it."""
        path, _, attribute = name.rpartition(".")
        if not hasattr(self.model.get_submodule(path), attribute):
            raise CannotExpress(f"the tensor '{name}' is of a layer that is no registered submodule")
        if getattr(self.model.get_submodule(path), attribute).numel() != value.exact.size:
            raise CannotExpress(f"the tensor '{name}' would need another shape")
        super().store(name, value)

    def write(self, graph: TorchGraph, placement: Placement, changes: Iterable[Change]) -> None:
        """Apply a whole placement to the copy.

        Raises:
            CannotExpress: see the class; the copy is then of no use.
        """
        if self._is_exported:
            raise CannotExpress("an exported program is a graph already")
        if "forward" in vars(self.model):
            raise CannotExpress("the forward was set on the model itself, where no class can refuse other ways into it")
        for change in changes:
            for layer in {module_path(one.node): one for one in change.layers}.values():
                self._write_layer(graph, layer, change)
        for norm in placement.folded:
            if norm.nodes:
                self._remove(graph, norm, placement)

    def _write_layer(self, graph: TorchGraph, layer: Layer, change: Change) -> None:
        if layer.weight is not None and change.weight is not None:
            self.store(graph.target(layer.weight) or self._materialise(layer), change.weight)
        if change.bias is not None:
            name = None if layer.bias is None else graph.target(layer.bias)
            self.store(name or self._new_bias(layer), change.bias)
        if change.border is not None:
            path = self._owner(layer, border=True)
            with_border(self.model.get_submodule(path), change.border.stored)
            self.remember(self.model.get_buffer(f"{path}.border_kernel"), change.border)

    def _owner(self, layer: Layer, border: bool = False) -> str:
        """Return the path of the module whose own weight this is: a convolution or linear layer of PyTorch's kind."""
        path = module_path(layer.node)
        owner = self.model.get_submodule(path)
        if border and not takes_border(owner):
            raise CannotExpress(f"the class {type(owner).__name__} of '{path}' may not add a correction at the border")
        if not isinstance(owner, nn.modules.conv._ConvNd | nn.Linear):
            raise CannotExpress(f"'{layer.node.name}' is a call in the forward of {type(owner).__name__}")
        return path

    def _materialise(self, layer: Layer) -> str:
        """Turn a computed weight (weight_norm, spectral_norm, a parametrization) into a plain parameter."""
        path = module_path(layer.node)
        owner = self.model.get_submodule(path)
        if parametrize.is_parametrized(owner, "weight"):
            _remove_parametrization(owner, path)
        elif not _remove_weight_hooks(owner):
            raise CannotExpress(f"the forward of {type(owner).__name__} '{path}' computes its weight")
        return f"{path}.weight"

    def _new_bias(self, layer: Layer) -> str:
        path = self._owner(layer)
        owner = self.model.get_submodule(path)
        if getattr(owner, "bias", None) is not None:
            raise CannotExpress(f"'{layer.node.name}' does not use the bias of its module '{path}'")
        weight = owner.weight
        size = owner.out_features if isinstance(owner, nn.Linear) else owner.out_channels
        bias = torch.zeros(int(size), dtype=weight.dtype, device=weight.device)  # type: ignore[arg-type]
        owner.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)  # type: ignore[arg-type]
        return f"{path}.bias"

    def _remove(self, graph: TorchGraph, norm: Norm, placement: Placement) -> None:
        """Put an Identity in place of the module that computes this norm and nothing else."""
        path = module_path(norm.output)
        calls = _calls(graph, path)
        removed = {node for other in placement.folded for node in other.nodes}
        if not path:
            raise CannotExpress(f"the norm '{norm.output.name}' is written out in the model's own forward")
        owner = self.model.get_submodule(path)
        rest = [node for nodes in calls.values() for node in nodes if node not in removed]
        if any(module_path(node) == path for node in rest):
            raise CannotExpress(f"the module '{path}' does more than its norm ('{rest[0].name}')")
        # A norm with an activation inside keeps its children, which run one after the other.
        if norm in placement.parallel and rest:
            raise CannotExpress(f"the module '{path}' does more than its norm ('{rest[0].name}')")
        if len({other in placement.parallel for other in placement.folded if module_path(other.output) == path}) > 1:
            raise CannotExpress(f"the module '{path}' is called on a branch parallel to a convolution and elsewhere")
        written = any(is_in_place(node) for node in placement.folded[norm][1])
        alone = ZeroBranch(written) if norm in placement.parallel else nn.Identity()
        left = nn.Sequential(OrderedDict(owner.named_children())) if rest else alone
        _replace_module(self.model, path, left.train(self.model.training))


def _calls(graph: TorchGraph, path: str) -> Mapping[tuple[str, ...], set[Node]]:
    """Return the operations on data in each call of the module at `path`."""
    calls: dict[tuple[str, ...], set[Node]] = {}
    for node in graph.nodes:
        stack = [str(entry[0]).split("@")[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
        if node.op == "call_function" and path in stack and _is_data(graph, node):
            calls.setdefault(call_key(node)[: stack.index(path) + 1], set()).add(node)
    return calls


def _is_data(graph: TorchGraph, node: Node) -> bool:
    return is_tensor(node) and not graph.is_constant(node) and graph.unexpanded(node) is None


def _replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` wherever the module at `path` stands, under all its names."""
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def _remove_parametrization(owner: nn.Module, path: str) -> None:
    """Turn a parametrized weight into a plain one; torch's own removal would also change the user's module.

    A parametrized module has a class made for it alone, which its copies share; torch takes the property off that.
    """
    if len(owner.parametrizations) > 1:  # type: ignore[arg-type]
        raise CannotExpress(f"'{path}' has more parametrized tensors than its weight")
    with torch.no_grad():
        weight = nn.Parameter(owner.weight.detach().clone())  # type: ignore[operator]
    weight.requires_grad_(any(p.requires_grad for p in owner.parametrizations.parameters()))  # type: ignore[union-attr]
    owner.__class__ = type(owner).__bases__[0]
    del owner._modules["parametrizations"]
    owner.register_parameter("weight", weight)


def _remove_weight_hooks(owner: nn.Module) -> bool:
    """Remove the hook of the old weight_norm or spectral_norm, or of pruning; a plain weight stays. False for none."""
    for key, hook in list(owner._forward_pre_hooks.items()):
        if computes_weight(hook) and "weight" in {getattr(hook, name, "") for name in ("name", "_tensor_name")}:
            with torch.no_grad():
                hook.remove(owner)  # type: ignore[attr-defined]
            del owner._forward_pre_hooks[key]
            return True
    return False
