"""Cut the ZipMap off the end of a graph, as scikit-learn's and LightGBM's exporters put it there by default.

It turns a tensor of probabilities into a list of dictionaries, which no protocol of tensors carries. Its input is the
same numbers: the node becomes an Identity of the same output, and its classes become the model's labels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from foldserve.format.metadata import LABELS

from .protobuf import Message

_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_METADATA = 7, 8, 14
_GRAPH_NODE, _GRAPH_OUTPUT = 1, 12
_NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 2, 4, 5, 7
_ATTRIBUTE_INTS, _ATTRIBUTE_STRINGS = 8, 9
_VALUE_NAME, _VALUE_TYPE = 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE, _SHAPE_DIM, _DIM_VALUE, _DIM_NAME = 1, 1, 2, 1, 1, 2
_FLOAT = 1
_IDENTITY_OPSET = 13


@dataclass(frozen=True)
class _Cut:
    """One ZipMap: the name of its output, and its classes as text."""

    output: str
    classes: tuple[str, ...]


def without_zipmaps(data: bytes | memoryview) -> bytes | None:
    """Return a model whose ZipMap outputs are plain tensors; None where it has none.

    Args:
        data: of the model file.

    Raises:
        ValueError: the bytes are not a model.
    """
    model = Message.parse(data)
    graph = Message.parse(b"".join(model.all_bytes(_MODEL_GRAPH)))
    outputs = {value.text(_VALUE_NAME) for value in graph.messages(_GRAPH_OUTPUT)}
    cuts: dict[str, _Cut] = {}
    nodes: list[bytes | memoryview] = []
    for raw in graph.all_bytes(_GRAPH_NODE):
        node = Message.parse(raw)
        if node.text(_NODE_OP_TYPE, "replace") == "ZipMap" and node.text(_NODE_OUTPUT, "replace") in outputs:
            cut = _Cut(node.text(_NODE_OUTPUT), _classes(node))
            cuts[cut.output] = cut
            raw = _identity(node).encode()
        nodes.append(raw)
    if not cuts:
        return None
    graph.replace(_GRAPH_NODE, nodes)
    graph.replace(_GRAPH_OUTPUT, [_retyped(value, cuts) for value in graph.all_bytes(_GRAPH_OUTPUT)])
    model.replace(_MODEL_GRAPH, [graph.encode()])
    if not any(not opset.text(_OPSET_DOMAIN) for opset in model.messages(_MODEL_OPSETS)):
        opset = Message.of({_OPSET_VERSION: [_IDENTITY_OPSET]}).encode()
        model.replace(_MODEL_OPSETS, [*model.all_bytes(_MODEL_OPSETS), opset])
    _add_labels(model, cuts)
    return model.encode()


def _classes(node: Message) -> tuple[str, ...]:
    for attribute in node.messages(_NODE_ATTRIBUTE):
        classes = attribute.texts(_ATTRIBUTE_STRINGS, "replace") or attribute.integers(_ATTRIBUTE_INTS)
        if classes:
            return tuple(map(str, classes))
    return ()


def _identity(node: Message) -> Message:
    """Return the node as one that passes its tensor on."""
    node.replace(_NODE_OP_TYPE, ["Identity"])
    node.replace(_NODE_DOMAIN, [])
    node.replace(_NODE_ATTRIBUTE, [])
    return node


def _retyped(value: bytes | memoryview, cuts: dict[str, _Cut]) -> bytes | memoryview:
    """Return the declaration of an output, as float32 [batch, classes] where its ZipMap was cut off."""
    declared = Message.parse(value)
    cut = cuts.get(declared.text(_VALUE_NAME))
    if cut is None:
        return value
    batch = Message.of({_DIM_NAME: ["batch"]}).encode()
    classes = Message.of({_DIM_VALUE: [len(cut.classes)]}).encode()
    shape = Message.of({_SHAPE_DIM: [batch, classes]}).encode()
    tensor = Message.of({_TENSOR_ELEMENT: [_FLOAT], _TENSOR_SHAPE: [shape]}).encode()
    declared.replace(_VALUE_TYPE, [Message.of({_TYPE_TENSOR: [tensor]}).encode()])
    return declared.encode()


def _add_labels(model: Message, cuts: dict[str, _Cut]) -> None:
    """Hand the classes of the only ZipMap to the model's labels, unless it has some."""
    entries = model.messages(_MODEL_METADATA)
    if len(cuts) > 1 or any(entry.text(_ENTRY_KEY, "replace") == LABELS for entry in entries):
        return
    (cut,) = cuts.values()
    _append_labels(model, cut.classes)


def with_labels(data: bytes | memoryview, labels: Sequence[str]) -> bytes | None:
    """Return a model with these class names in its metadata; None where it has some of its own.

    Raises:
        ValueError: the bytes are not a model.
    """
    model = Message.parse(data)
    if any(entry.text(_ENTRY_KEY, "replace") == LABELS for entry in model.messages(_MODEL_METADATA)):
        return None
    _append_labels(model, labels)
    return model.encode()


def _append_labels(model: Message, labels: Sequence[str]) -> None:
    entry = Message.of({_ENTRY_KEY: [LABELS], _ENTRY_VALUE: [json.dumps(labels)]}).encode()
    model.replace(_MODEL_METADATA, [*model.all_bytes(_MODEL_METADATA), entry])
