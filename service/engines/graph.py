"""An ONNX graph that can be changed: nodes, weights, who reads what.

Between the model file and the rewrites that suit it to a machine. Holds no more of ONNX than those need; whatever else
stands in the file is written back as it came. Field numbers are those of onnx.proto, IR version 13.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..artifacts.protobuf import Message

LARGEST_FILE_BYTES = 64 * 1024 * 1024  # of files worth reading: a large network takes long, and its layers are wide

Floats = npt.NDArray[np.float32]
Attribute = int | str | tuple[int, ...]

_MODEL_GRAPH, _MODEL_OPSETS = 7, 8
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_STRING, _ATTRIBUTE_INTS, _ATTRIBUTE_TYPE = 1, 3, 4, 8, 20
_ATTRIBUTE_GRAPHS = (6, 11)
_TYPE_INT, _TYPE_STRING, _TYPE_INTS = 2, 3, 7
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 4, 8, 9
_FLOAT, _INT64 = 1, 7


@dataclass(eq=False)
class Node:
    """One operation; attributes are written back as they came unless `set` changes them."""

    message: Message

    @classmethod
    def new(cls, op: str, name: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Attribute) -> "Node":
        """Return a node of ONNX's own operators."""
        node = cls(Message())
        node.message.replace(_NODE_INPUT, inputs)
        node.message.replace(_NODE_OUTPUT, outputs)
        node.message.replace(_NODE_NAME, [name])
        node.message.replace(_NODE_TYPE, [op])
        for key, value in attributes.items():
            node.set(key, value)
        return node

    @property
    def op(self) -> str:
        """The operator, with its domain in front where that is not ONNX's own."""
        domain = self.message.text(_NODE_DOMAIN)
        return f"{domain}.{self.message.text(_NODE_TYPE)}" if domain else self.message.text(_NODE_TYPE)

    @property
    def inputs(self) -> list[str]:
        """Names of the tensors that it reads."""
        return self.message.texts(_NODE_INPUT)

    @inputs.setter
    def inputs(self, names: Sequence[str]) -> None:
        self.message.replace(_NODE_INPUT, names)

    @property
    def outputs(self) -> list[str]:
        """Names of the tensors that it gives."""
        return self.message.texts(_NODE_OUTPUT)

    @outputs.setter
    def outputs(self, names: Sequence[str]) -> None:
        self.message.replace(_NODE_OUTPUT, names)

    @property
    def holds_graphs(self) -> bool:
        """Whether an attribute is a graph of its own, which may read any tensor around it."""
        return any(attribute.all_bytes(number) for attribute in self._attributes() for number in _ATTRIBUTE_GRAPHS)

    def integer(self, name: str, default: int) -> int:
        """An attribute that is one number."""
        found = self._attribute(name)
        return default if found is None else found.integer(_ATTRIBUTE_INT)

    def integers(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """An attribute that is a list of numbers."""
        found = self._attribute(name)
        return tuple(default) if found is None else tuple(found.integers(_ATTRIBUTE_INTS))

    def text(self, name: str, default: str) -> str:
        """An attribute that is a string."""
        found = self._attribute(name)
        return default if found is None else found.text(_ATTRIBUTE_STRING)

    def set(self, name: str, value: Attribute) -> None:
        """Give an attribute another value."""
        changed = Message()
        changed.replace(_ATTRIBUTE_NAME, [name])
        if isinstance(value, tuple):
            changed.replace(_ATTRIBUTE_INTS, value)
        else:
            changed.replace(_ATTRIBUTE_INT if isinstance(value, int) else _ATTRIBUTE_STRING, [value])
        kind = _TYPE_INTS if isinstance(value, tuple) else _TYPE_INT if isinstance(value, int) else _TYPE_STRING
        changed.replace(_ATTRIBUTE_TYPE, [kind])
        others = [found.encode() for found in self._attributes() if found.text(_ATTRIBUTE_NAME) != name]
        self.message.replace(_NODE_ATTRIBUTE, [*others, changed.encode()])

    def _attributes(self) -> Iterator[Message]:
        return (Message.parse(data) for data in self.message.all_bytes(_NODE_ATTRIBUTE))

    def _attribute(self, name: str) -> Message | None:
        return next((found for found in self._attributes() if found.text(_ATTRIBUTE_NAME) == name), None)


@dataclass(eq=False)
class Graph:
    """The graph of a model file.

    Attributes:
        nodes: in the order in which they run.
    """

    nodes: list[Node]
    _model: Message
    _graph: Message
    _tensors: dict[str, Message] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> "Graph":
        """Read a model file.

        Raises:
            ValueError: the bytes are not a model with a graph.
        """
        model = Message.parse(data)
        graphs = model.all_bytes(_MODEL_GRAPH)
        if len(graphs) != 1:
            raise ValueError(f"a model file holds {len(graphs)} graphs, expected one")
        graph = Message.parse(graphs[0])
        nodes = [Node(node) for node in graph.messages(_GRAPH_NODE)]
        return cls(nodes, model, graph, {tensor.text(_TENSOR_NAME): tensor for tensor in graph.messages(_GRAPH_TENSOR)})

    def encode(self) -> bytes:
        """Return the bytes of the model file; shapes of tensors within, which may have changed, are left out."""
        self._graph.replace(_GRAPH_NODE, [node.message.encode() for node in self.nodes])
        self._graph.replace(_GRAPH_TENSOR, [tensor.encode() for tensor in self._tensors.values()])
        self._graph.replace(_GRAPH_VALUE_INFO, [])
        self._model.replace(_MODEL_GRAPH, [self._graph.encode()])
        return self._model.encode()

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        sets = self._model.messages(_MODEL_OPSETS)
        return next((opset.integer(2) for opset in sets if opset.text(1) in ("", "ai.onnx")), 0)

    def readers(self, tensor: str) -> list[Node]:
        """Every node that reads a tensor."""
        return [node for node in self.nodes if tensor in node.inputs]

    def next_node(self, node: Node) -> Node | None:
        """The only reader of a node's only output; None when there are others, or the caller reads it too."""
        if len(node.outputs) != 1 or node.outputs[0] in self._named(_GRAPH_OUTPUT):
            return None
        readers = self.readers(node.outputs[0])
        return readers[0] if len(readers) == 1 else None

    def floats(self, tensor: str) -> Floats | None:
        """The float32 weights of this name; None when it is not such, or a caller may put others in its place."""
        weights = self._tensors.get(tensor)
        if weights is None or weights.integer(_TENSOR_TYPE) != _FLOAT or tensor in self._named(_GRAPH_INPUT):
            return None
        data = b"".join(weights.all_bytes(_TENSOR_RAW)) or b"".join(weights.all_bytes(_TENSOR_FLOATS))
        shape = weights.integers(_TENSOR_DIMS)
        if len(data) != 4 * int(np.prod(shape)):
            return None
        return np.frombuffer(data, "<f4").reshape(shape)

    def add_floats(self, name: str, values: Floats) -> str:
        """Add float32 weights; returns their name."""
        return self._add(name, values.shape, _FLOAT, np.ascontiguousarray(values, "<f4").tobytes())

    def add_integers(self, name: str, values: Sequence[int]) -> str:
        """Add a list of int64; returns its name."""
        return self._add(name, (len(values),), _INT64, np.array(values, "<i8").tobytes())

    def free_name(self, wish: str) -> str:
        """A name that no tensor has."""
        taken = {name for node in self.nodes for name in (*node.inputs, *node.outputs)} | set(self._tensors)
        while wish in taken:
            wish += "_"
        return wish

    def drop_unread_weights(self) -> None:
        """Leave out weights that no node reads any more."""
        read = {name for node in self.nodes for name in node.inputs} | set(self._named(_GRAPH_OUTPUT))
        self._tensors = {name: tensor for name, tensor in self._tensors.items() if name in read}

    def _add(self, wish: str, shape: Sequence[int], kind: int, data: bytes) -> str:
        name, tensor = self.free_name(wish), Message()
        tensor.replace(_TENSOR_DIMS, shape)
        tensor.replace(_TENSOR_TYPE, [kind])
        tensor.replace(_TENSOR_NAME, [name])
        tensor.replace(_TENSOR_RAW, [data])
        self._tensors[name] = tensor
        return name

    def _named(self, number: int) -> list[str]:
        return [message.text(1) for message in self._graph.messages(number)]
