"""A digest of a graph without its weights, equal for two models that differ in nothing else.

Between the model file and the engine: what was measured for one of two such models holds for the other, which need not
be measured while requests wait. Knows no session.
"""

import hashlib
from pathlib import Path

from ..artifacts.protobuf import Message
from .graph import LARGEST_FILE_BYTES

_MODEL_GRAPH, _MODEL_OPSETS = 7, 8
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, 8


def structure_of(path: Path) -> str:
    """Return a digest of operators, shapes, types and names; an empty text where the file cannot be told apart.

    Constants within nodes count as part of the graph; initializers do not.

    Args:
        path: a model file.
    """
    if path.stat().st_size > LARGEST_FILE_BYTES:
        return ""
    try:
        model = Message.parse(path.read_bytes())
        graph = Message.parse(b"".join(model.all_bytes(_MODEL_GRAPH)))
        tensors = graph.messages(_GRAPH_TENSOR)
        declared = [f"{t.text(_TENSOR_NAME)} {t.integer(_TENSOR_TYPE)} {t.integers(_TENSOR_DIMS)}" for t in tensors]
    except ValueError:
        return ""
    parts: list[list[bytes | memoryview]] = [model.all_bytes(_MODEL_OPSETS), [text.encode() for text in declared]]
    parts += [graph.all_bytes(number) for number in (_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d;" % len(part))
        for data in part:
            digest.update(b"%d:" % len(data))
            digest.update(data)
    return digest.hexdigest()
