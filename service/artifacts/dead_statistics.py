"""Bring norms that older exporters wrote in the form of training to the form of inference.

Before opset 14 a BatchNormalization that names more outputs than its result computes the statistics of each batch:
onnxruntime does, and so an answer would depend on the other rows. PyTorch, TensorFlow's and Paddle's exporters wrote
such nodes for networks at rest, with names for outputs that nobody reads. Those names are left out; then the node takes
the statistics that it was given, as the network did.
"""

from .onnx_file import find_all
from .protobuf import Message

_MODEL_GRAPH, _MODEL_OPSETS = 7, 8
_GRAPH_NODE, _GRAPH_OUTPUT, _VALUE_NAME = 1, 12, 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_DOMAIN = 1, 2, 4, 7
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_STATED_MODE = 14  # opset from which on an attribute says whether a norm trains


def without_dead_statistics(data: memoryview) -> bytes | None:
    """Return a model whose norms give out nothing that nobody reads; None where there is none of that kind.

    Norms with statistics that something reads, and those within subgraphs, stay as they are.

    Args:
        data: of the model file.

    Raises:
        ValueError: the bytes are not a model.
    """
    model = Message.parse(data)
    opsets = {opset.text(_OPSET_DOMAIN): opset.integer(_OPSET_VERSION) for opset in model.messages(_MODEL_OPSETS)}
    if opsets.get("", opsets.get("ai.onnx", _STATED_MODE)) >= _STATED_MODE:
        return None
    graph = Message.parse(b"".join(model.all_bytes(_MODEL_GRAPH)))
    nodes = graph.all_bytes(_GRAPH_NODE)
    if not any(_in_training_form(Message.parse(node)) for node in nodes):
        return None
    read = {bytes(name) for node in find_all("Node", data) for name in Message.parse(node).all_bytes(_NODE_INPUT)}
    read |= {bytes(name) for value in graph.messages(_GRAPH_OUTPUT) for name in value.all_bytes(_VALUE_NAME)}
    graph.replace(_GRAPH_NODE, [_at_rest(node, read) for node in nodes])
    model.replace(_MODEL_GRAPH, [graph.encode()])
    return model.encode()


def _in_training_form(node: Message) -> bool:
    return (
        node.text(_NODE_OP_TYPE, "replace") == "BatchNormalization"
        and node.text(_NODE_DOMAIN, "replace") in ("", "ai.onnx")
        and len(node.all_bytes(_NODE_OUTPUT)) > 1
    )


def _at_rest(raw: bytes | memoryview, read: set[bytes]) -> bytes | memoryview:
    """Return a node with its first output alone, where it is a norm whose others are not read."""
    node = Message.parse(raw)
    if not _in_training_form(node):
        return raw
    first, *others = node.all_bytes(_NODE_OUTPUT)
    if any(bytes(name) in read for name in others if name):
        return raw
    node.replace(_NODE_OUTPUT, [first])
    return node.encode()
