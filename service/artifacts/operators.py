"""Refuse an ONNX file with nodes that must not run, before a session is made of it.

A golden answer cannot tell a norm in training mode from one at rest when the runtime ignores the mode.
"""

from pathlib import Path

from ..errors import ArtifactInvalid
from .onnx_file import find_all, opened
from .protobuf import Message

# Built into onnxruntime; everything else would need a library to be loaded for it.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
_REFUSED = {"EPContext": "a compiled engine that cannot be checked"}

_MODEL_FUNCTION, _FUNCTION_DOMAIN = 25, 10
_NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3


def refuse_operators(path: Path) -> None:
    """Raise when the ONNX file at `path` holds a node that must not run.

    Raises:
        ArtifactInvalid: a node is of a domain that is not built into onnxruntime, is a BatchNormalization in training
            mode or with outputs without a name, or is a compiled engine; or the file is not an ONNX model.
    """
    with opened(path) as data:
        functions = Message.parse(data).messages(_MODEL_FUNCTION)
        own = {function.text(_FUNCTION_DOMAIN, "replace") for function in functions}
        for node in find_all("Node", data):
            _check(path, Message.parse(node), own)


def _check(path: Path, node: Message, own: set[str]) -> None:
    """Refuse one node; functions that the model itself defines may be called."""
    op_type, domain = node.text(_NODE_OP_TYPE, "replace"), node.text(_NODE_DOMAIN, "replace")
    if domain not in _DOMAINS and domain not in own:
        raise ArtifactInvalid(
            f"{path} holds the operator {op_type[:64]!r} of {domain[:64]!r}, which is no part of ONNX"
        )
    if op_type in _REFUSED:
        raise ArtifactInvalid(f"{path} holds the operator {op_type!r}, {_REFUSED[op_type]}")
    if op_type == "BatchNormalization" and _is_training(node):
        raise ArtifactInvalid(
            f"{path} holds a BatchNormalization in training mode, whose answers depend on the batch; "
            "put the network into eval mode and export it again"
        )
    if op_type == "BatchNormalization" and not all(node.all_bytes(_NODE_OUTPUT)):
        raise ArtifactInvalid(
            f"{path} holds a BatchNormalization with outputs that have no name; onnxruntime writes to them and ends. "
            "foldserve publish leaves such outputs out"
        )


def _is_training(node: Message) -> bool:
    """Whether a norm computes the statistics of its batch: it says so, or, before opset 14, it gives them out."""
    outputs = [name for name in node.all_bytes(_NODE_OUTPUT) if name]
    return len(outputs) > 1 or any(
        attribute.text(_ATTRIBUTE_NAME, "replace") == "training_mode" and attribute.integer(_ATTRIBUTE_INT) != 0
        for attribute in node.messages(_NODE_ATTRIBUTE)
    )
