"""A private, editable view of an ONNX graph: who makes a value, who reads it, what is constant, which shape it has.

Second in the ONNX flow, after `protos`; the modules that find and fold norms see the model only through it. It
knows no norm and no layer, and never touches the model it was made from. It holds the file's own nodes: through onnx_ir
(1.1) a node does not keep its bytes ("ai.onnx" and empty outputs are dropped), and the order of declarations changes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, helper

from ..core import Array
from ..rounding import round_once
from .operators import NEVER_CONSTANT, SHAPE_ONLY
from .protos import (
    FLOAT_TYPES,
    TYPE_NUMBERS,
    Dims,
    attributes,
    captures,
    names_of,
    operation,
    opset_of,
    to_tensor,
    without_initializers,
)
from .shapes import infer


@dataclass(frozen=True)
class Use:
    """One reader of a value: the node and which of its inputs; what a subgraph captures has index -1."""

    node: NodeProto
    index: int


class OnnxGraph:
    """The main graph of a copied model, with the edits that a fold needs.

    Attributes:
        model: the copy; its nodes and its initializers are complete only after `finish`.
        nodes: the main graph's nodes in order.
        initializers: name -> tensor, that of the original until another one is stored.
        exact: float64 values of the initializers that were written here, as they were before their one rounding.
        constants: names of the values that no input can change.
        known: what `read_constant` has worked out of them.
        names: every name that is taken, shared between a graph and the bodies in it.
        added: those of them that were not in the original.
    """

    def __init__(self, model: onnx.ModelProto, names: set[str] | None = None):
        self.model = without_initializers(model)
        graph = self.model.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.exact: dict[str, Array] = {}
        self.opset = opset_of(self.model)
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        self._shapes, self._types = infer(model)
        self.names = set(names_of(model.graph)) if names is None else names
        self.added: set[str] = set()
        self._index()
        self.constants = self.constant_values()
        self.known: dict[str, Any] = {}
        self._read_at_start = set(self._uses) | self.outputs

    def producer(self, value: str) -> NodeProto | None:
        """Return the node that makes `value`, or None for a graph input or an initializer."""
        return self._producers.get(value)

    def uses(self, value: str) -> list[Use]:
        """Return every reader of `value` in the main graph, captures by If, Loop and Scan bodies included."""
        return self._uses.get(value, [])

    def readers(self, value: str) -> list[Use]:
        """Return those of `uses` to which the numbers matter: not Shape and Size, which a fold leaves as they are."""
        return [use for use in self.uses(value) if operation(use.node) not in SHAPE_ONLY or use.index < 0]

    def describe_readers(self, value: str) -> str:
        """Return how many readers `value` has, and which, as the beginning of a sentence."""
        uses = self.readers(value)
        names = ", ".join(sorted({use.node.name or use.node.op_type for use in uses}))
        return f"{value!r} has {len(uses)} readers: {names}" if uses else f"{value!r} has no reader"

    def constant_values(self, *, with_shapes: bool = True) -> set[str]:
        """Return the values that no input can change: initializers, and what operations make of them alone.

        Args:
            with_shapes: count a Shape whose numbers are known, although it is that of data.
        """
        constant = {"", *self.initializers}
        for node in self.nodes:
            if operation(node) in SHAPE_ONLY:
                is_constant = with_shapes and self.numbers_of_shape(node) is not None
            else:
                read = node.input[:1] if operation(node) == "CastLike" else node.input
                is_constant = operation(node) not in NEVER_CONSTANT and constant.issuperset(read)
            if is_constant:
                constant.update(node.output)
        return constant - {""}

    def numbers_of_shape(self, node: NodeProto) -> list[int] | None:
        """Return the dimensions that a Shape or Size is about, None when one of them is not known."""
        dims, fields = self.shape(node.input[0]), attributes(node)
        if dims is None:
            return None
        wanted = dims[fields.get("start", 0) : fields.get("end", len(dims))]
        numbers = [dim for dim in wanted if isinstance(dim, int)]
        return numbers if len(numbers) == len(wanted) else None

    def shape(self, value: str) -> Dims | None:
        """Return the dimensions of `value` as `shapes.infer` tells them, or None when its rank is not known."""
        return self._shapes.get(value)

    def dtype(self, value: str) -> str | None:
        """Return the float dtype of `value` by numpy's name, or None when it is no float or not known."""
        return FLOAT_TYPES.get(self._types.get(value, 0))

    def is_overridable(self, value: str) -> bool:
        """True when callers may replace this initializer; before IR 4 every initializer had to be an input."""
        return value in self.initializers and value in self.inputs and self.model.ir_version >= 4

    def is_sparse(self, value: str) -> bool:
        """True for a constant in a form that no fold reads or writes."""
        return any(tensor.values.name == value for tensor in self.model.graph.sparse_initializer)

    def fresh(self, wish: str) -> str:
        """Return `wish`, numbered when it is taken anywhere in the model, and reserve it."""
        name, number = wish, 0
        while name in self.names:
            number += 1
            name = f"{wish}_{number}"
        self.names.add(name)
        self.added.add(name)
        return name

    def store(self, name: str, exact: Array, dtype: str) -> None:
        """Write `exact`, rounded once to `dtype`, as the initializer `name`, a new one or in place of the old.

        Raises:
            Refusal: overflow when a value does not fit `dtype`.
        """
        self.initializers[name] = to_tensor(name, round_once(exact, dtype), dtype)
        self.exact[name] = exact
        self.constants.add(name)
        self._types[name], self._shapes[name] = TYPE_NUMBERS[dtype], tuple(exact.shape)

    def put_integers(self, wish: str, values: list[int]) -> str:
        """Add an int64 initializer of one axis, such as a shape, and return its name."""
        name = self.fresh(wish)
        self.initializers[name] = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        self.constants.add(name)
        self._types[name], self._shapes[name] = TensorProto.INT64, (len(values),)
        return name

    def value_info(self, value: str) -> onnx.ValueInfoProto:
        """Return what is known of `value` as a declaration; without a type when that is not known."""
        kind, shape = self._types.get(value, 0), self._shapes.get(value)
        if not kind:
            return helper.make_value_info(value, onnx.TypeProto())
        return helper.make_tensor_value_info(value, kind, None if shape is None else list(shape))

    def reindex(self) -> None:
        """Take note of edits that were made to the nodes themselves."""
        self._index()

    def remove(self, nodes: Iterable[NodeProto]) -> None:
        """Take `nodes` out of the graph."""
        gone = {id(node): node for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]
        for node in gone.values():
            self._leave(node)

    def insert_after(self, anchor: NodeProto, node: NodeProto) -> None:
        """Put `node` right after `anchor`."""
        at = next(i for i, other in enumerate(self.nodes) if other is anchor)
        self.nodes.insert(at + 1, node)
        self._enter(node)

    def rename_output(self, node: NodeProto, old: str, new: str) -> None:
        """Let `node` make `new` where it made `old`; the shape stays what was known of `new`, or is that of `old`."""
        if new not in self._types and old in self._types:
            self._types[new] = self._types[old]
            self._shapes |= {new: self._shapes[old]} if old in self._shapes else {}
        at = list(node.output).index(old)
        node.output[at] = new
        self._producers.pop(old, None)
        self._producers[new] = node

    def set_input(self, node: NodeProto, index: int, value: str) -> None:
        """Let input `index` of `node` read `value`, with empty inputs before it where it had fewer."""
        while len(node.input) <= index:
            node.input.append("")
        old = node.input[index]
        self._uses[old] = [use for use in self.uses(old) if use.node is not node or use.index != index]
        self._let_go.add(old)
        node.input[index] = value
        self._uses.setdefault(value, []).append(Use(node, index))

    def finish(self) -> onnx.ModelProto:
        """Return the model with the edits written back, without what nothing reads any more because of them."""
        self.sweep()
        graph = self.model.graph
        nodes = [NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del graph.node[:]
        graph.node.extend(nodes)
        gone = {name for name in self.initializers if self._is_orphan(name)}
        for name in [name for name in self.initializers if name not in gone]:
            graph.initializer.append(self.initializers.pop(name))  # a copy; that of a stored one goes with it
            self.initializers[name] = graph.initializer[-1]
        made = {name for node in nodes for name in node.output}
        _keep(graph.value_info, lambda value: value.name in made)
        if self.model.ir_version < 4:
            self._list_initializers_as_inputs(gone)
        return self.model

    def _index(self) -> None:
        self._producers: dict[str, NodeProto] = {}
        self._uses: dict[str, list[Use]] = {}
        for node in self.nodes:
            self._enter(node)
        self._let_go = set(self._producers)  # values that may have lost their last reader

    def _enter(self, node: NodeProto) -> None:
        self._producers.update({name: node for name in node.output if name})
        for i, name in enumerate(node.input):
            if name:
                self._uses.setdefault(name, []).append(Use(node, i))
        for name in captures(node):
            self._uses.setdefault(name, []).append(Use(node, -1))

    def _leave(self, node: NodeProto) -> None:
        for name in node.output:
            if self._producers.get(name) is node:
                del self._producers[name]
        for name in (*node.input, *captures(node)):
            self._uses[name] = [use for use in self.uses(name) if use.node is not node]
            self._let_go.add(name)

    def _is_orphan(self, value: str) -> bool:
        """True when `value` was read before the fold (or was added by it) and no longer is."""
        known = value in self._read_at_start or value in self.exact
        return known and not self.uses(value) and value not in self.outputs

    def sweep(self) -> None:
        """Remove the nodes whose results nothing reads any more because of the fold."""
        gone = set[int]()
        while self._let_go:
            node = self._producers.get(self._let_go.pop())
            if node is not None and all(self._is_dead(output) for output in node.output):
                self._leave(node)
                gone.add(id(node))
        if gone:
            self.nodes = [node for node in self.nodes if id(node) not in gone]

    def _is_dead(self, output: str) -> bool:
        return not output or self._is_orphan(output)

    def _list_initializers_as_inputs(self, gone: set[str]) -> None:
        """Keep the graph's inputs in step with its initializers, as IR 3 wants."""
        graph = self.model.graph
        _keep(graph.input, lambda value: value.name not in gone)
        for tensor in graph.initializer:
            if tensor.name not in self.inputs:
                graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def _keep(field: Any, wanted: Callable[[Any], bool]) -> None:
    """Delete from a repeated protobuf field, in place, what is not wanted."""
    for i in reversed(range(len(field))):
        if not wanted(field[i]):
            del field[i]
