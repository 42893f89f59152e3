"""Write folded parameters into the exported graph, where the user's module tree has no place for them.

The other of the two ways to write a result. What comes out is an `fx.GraphModule` with the same inputs, outputs and
parameter names, without the folded norms and without the user's classes.
"""

import copy
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from .float64 import named_tensors
from .graph import TorchGraph, is_in_place, operation
from .layers import Layer, border_arguments
from .parameters import Change, Value
from .placement import Placement
from .process_state import quiet
from .size_guard import SizeGuard, size_guard
from .writer import Writer

_CONSTANTS = (bool, int, float, str, type(None))


class GraphWriter(Writer):
    """The exported program as a GraphModule that takes new parameters.

    Args:
        graph: the program.
        conditions: of the sizes for which it was read, beside those that torch.export found; see `Question`.
        trains_with_gradients: see `SizeGuard`.
    """

    model: GraphModule

    def __init__(self, graph: TorchGraph, conditions: Iterable[str] = (), trains_with_gradients: bool = False):
        exported = graph.program.module(check_guards=False)
        shared = GraphModule(exported, exported.graph)  # its tensors are the user's
        with quiet():
            super().__init__(copy.deepcopy(shared))
        self.model._tracer_cls = None  # torch.export's tracer cannot be made again when the model is unpickled
        self._nodes = {n.name: n for n in self.model.graph.nodes}
        placeholders = [n for n in self.model.graph.nodes if n.op == "placeholder"]
        own = [n for n in graph.nodes if n.op == "placeholder" and graph.target(n) is None]
        self._inputs = {n.name: mine for n, mine in zip(own, placeholders, strict=True)}
        constants = [node for node in own if isinstance(node.meta.get("val"), _CONSTANTS)]
        guard = size_guard(graph.user_inputs, constants, conditions, trains_with_gradients)
        self._guard_inputs([*graph.user_inputs, *constants], guard)

    def _guard_inputs(self, inputs: list[Node], guard: SizeGuard) -> None:
        """Let the model refuse sizes and constants that the graph was not read for."""
        self.model.add_submodule("size_guard", guard)
        with self.model.graph.inserting_after(list(self._inputs.values())[-1]):
            self.model.graph.call_module("size_guard", tuple(self._inputs[node.name] for node in inputs))

    def write(self, graph: TorchGraph, placement: Placement, changes: Iterable[Change]) -> None:
        """Apply a whole placement to the GraphModule."""
        for number, change in enumerate(changes):
            for layer in change.layers:
                self._write_layer(graph, layer, change, f"folded_{number}")
        for norm in sorted(placement.folded, key=lambda n: -graph.order[n.output]):
            if norm in placement.parallel:
                self._drop(self._node(norm.output), self._node(norm.source))
            elif norm.nodes:
                self._node(norm.output).replace_all_uses_with(self._node(norm.source))
        self.model.graph.eliminate_dead_code()
        self.model.delete_all_unused_submodules()
        self._forget_unread()
        self.model.recompile()
        self.model.eval()

    def _forget_unread(self) -> None:
        """Delete the new parameters of what nothing reads, which a copy of the model would not have either."""
        read = {id(attrgetter(str(n.target))(self.model)) for n in self.model.graph.nodes if n.op == "get_attr"}
        unread = [tensor for tensor, _ in self._values if id(tensor) not in read]
        for name, tensor in list(named_tensors(self.model)):
            if any(tensor is one for one in unread):
                path, _, attribute = name.rpartition(".")
                delattr(self.model.get_submodule(path), attribute)

    def _node(self, node: Node) -> Node:
        written: Node = self._inputs[node.name] if node.op == "placeholder" else self._nodes[node.name]
        return written

    def _call(self, target: Any, *args: Any) -> Node:
        """Return a new operation, where the graph inserts at the moment."""
        return self.model.graph.call_function(target, args)

    def _drop(self, value: Node, reference: Node) -> None:
        """Take a value out of the one sum that reads it."""
        (total,) = (user for user in value.users if user.op == "call_function")
        (other,) = (part for part in total.args[:2] if part is not value)
        if not isinstance(other, Node):  # a sum that begins with the number zero
            with self.model.graph.inserting_before(value):
                value.replace_all_uses_with(self._call(torch.ops.aten.zeros_like.default, reference))
            return
        with self.model.graph.inserting_before(total):
            if operation(total).startswith("aten::sub") and other is total.args[1]:
                other = self._call(torch.ops.aten.neg.default, other)
            elif any(user.op == "call_function" and is_in_place(user) for user in total.users):
                other = self._call(torch.ops.aten.clone.default, other)
        total.replace_all_uses_with(other)
        self.model.graph.erase_node(total)

    def _write_layer(self, graph: TorchGraph, layer: Layer, change: Change, fresh: str) -> None:
        call = self._nodes[layer.node.name]
        if layer.weight is not None and change.weight is not None:
            self._put(graph, call, layer.weight, change.weight, f"{fresh}_weight")
        if change.bias is not None:
            if layer.bias is not None:
                self._put(graph, call, layer.bias, change.bias, f"{fresh}_bias")
            else:
                self._add_bias(call, change.bias, f"{fresh}_bias")
        if change.border is not None:
            self._add_border(call, change.border, f"{fresh}_border_kernel")

    def _put(self, graph: TorchGraph, call: Node, old: Node, value: Value, fresh: str) -> None:
        """Store a value where the constant `old` was: in its own tensor, or in a new one when it was computed."""
        name = graph.target(old)
        if name is None or old.meta["val"].numel() != value.exact.size:
            computed = self._nodes.get(old.name)
            mine = computed or next(one for one in call.all_input_nodes if one.op == "get_attr" and one.target == name)
            call.replace_input_with(mine, self._new(call, value, fresh))
        else:
            self.store(name, value)

    def _new(self, before: Node, value: Value, name: str) -> Node:
        """Return a new parameter as a node before `before`."""
        while hasattr(self.model, name):
            name += "_"
        stored = torch.from_numpy(value.stored).to(getattr(torch, value.dtype))
        device = next((tensor.device for _, tensor in named_tensors(self.model)), stored.device)
        parameter = nn.Parameter(stored.to(device))
        self.model.register_parameter(name, parameter)
        self.remember(parameter, value)
        with self.model.graph.inserting_before(before):
            return self.model.graph.get_attr(name)

    def _add_bias(self, call: Node, value: Value, fresh: str) -> None:
        node = self._new(call, value, fresh)
        schema = [a.name for a in call.target._schema.arguments]  # type: ignore[union-attr]
        if "bias" in schema:
            position = schema.index("bias")
            call.args = (*call.args[:position], node, *call.args[position + 1 :])
        else:
            self._add_after(call, node)

    def _add_border(self, call: Node, value: Value, fresh: str) -> None:
        """Add the convolution of one channel of ones that stands for the shift; see `border`."""
        kernel = self._new(call, value, fresh)
        aten, one = torch.ops.aten, call.args[0]
        with self.model.graph.inserting_before(call):
            for axis in range(len(call.meta["val"].shape) - (value.exact.ndim - 2)):
                one = self._call(aten.slice.Tensor, one, axis, 0, 1)
            ones = self._call(aten.ones_like.default, one)
            shares = self._call(call.target, ones, kernel, None, *border_arguments(call))
        self._add_after(call, shares)

    def _add_after(self, call: Node, addend: Node) -> None:
        users = list(call.users)
        with self.model.graph.inserting_after(call):
            total = self._call(torch.ops.aten.add.Tensor, call, addend)
        for user in users:
            user.replace_input_with(call, total)
        self._nodes[call.name] = total  # what now stands for the layer's output
