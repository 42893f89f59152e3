"""Runs an ONNX model as it will be deployed: stored dtypes, onnxruntime on the CPU, all optimisations off.

Used by `pair` and `exporter`. Optimisations are off because some of them are themselves wrong on models that still
have a norm, and the model is what is judged. It compares nothing.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from ...errors import FoldError
from ..tiled import give_memory_back
from .protos import Values, boxed, label, operation, rebuilt, subgraphs, to_array, with_initializers_as_inputs

_LARGE = 2**14  # elements
_FED_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)  # those that numpy knows


class CannotRunError(Exception):
    """onnxruntime has no kernel, or no room, for a model."""


def outputs_of(
    model: onnx.ModelProto, feeds: Mapping[str, Values], names: Iterable[str] | None = None
) -> dict[str, Values]:
    """Return values of the main graph by name, a sequence of tensors as one object.

    Args:
        model: weights in memory.
        feeds: inputs in the dtypes that the model declares.
        names: of the values that are wanted; None for the outputs, in the model's order.

    Raises:
        CannotRunError: onnxruntime refuses the model or fails on it.
        FoldError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as err:
        raise FoldError("proof impossible: onnxruntime is not installed: pip install 'foldserve[cpu]'") from err
    wanted = [value.name for value in model.graph.output] if names is None else list(dict.fromkeys(names))
    values = _with_weights_fed(onnxruntime, model, feeds, wanted)
    give_memory_back()
    return values


def _with_weights_fed(
    onnxruntime: Any, model: onnx.ModelProto, feeds: Mapping[str, Values], wanted: list[str]
) -> dict[str, Values]:
    """Return the values of a run to which large weights are inputs: a session would hold them twice more."""
    large = [t for t in model.graph.initializer if t.data_type in _FED_TYPES and int(np.prod(t.dims)) > _LARGE]
    try:
        try:
            weights = {tensor.name: to_array(tensor) for tensor in large}
            return _run(onnxruntime, with_initializers_as_inputs(model, large), {**feeds, **weights}, wanted)
        except CannotRunError:
            raise
        except Exception:  # an operation that wants its weights as constants
            return _run(onnxruntime, model, feeds, wanted)
    except CannotRunError:
        raise
    except Exception as err:  # onnxruntime's own exceptions share no public base
        raise CannotRunError(str(err).splitlines()[0]) from err


def _run(onnxruntime: Any, model: onnx.ModelProto, feeds: Mapping[str, Values], names: list[str]) -> dict[str, Values]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    inner = [onnx.ValueInfoProto(name=name) for name in set(names) - {value.name for value in model.graph.output}]
    if inner:
        model = rebuilt(model, outputs=[*model.graph.output, *inner])
    model = _without_empty_ends(model)
    for node in filter(_writes_nowhere, _nodes(model.graph)):
        raise CannotRunError(
            f"{label(node)!r} names some of its outputs only; onnxruntime writes to the others, and ends"
        )
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = zip(names, session.run(names, dict(feeds)), strict=True)
    return {name: boxed(copy.deepcopy(value)) for name, value in results}  # its own arrays keep all that a run took


def _without_empty_ends(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, or a copy without the empty names at the end of a node's outputs, which say nothing.

    The runtime's BatchNormalization of opset 9 to 13 writes to such outputs, which ends the process.
    """
    if not any(map(_has_empty_end, _nodes(model.graph))):
        return model
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    for node in filter(_has_empty_end, _nodes(cut.graph)):
        while _has_empty_end(node):
            del node.output[-1]
    return cut


def _has_empty_end(node: onnx.NodeProto) -> bool:
    return len(node.output) > 1 and not node.output[-1]


def _writes_nowhere(node: onnx.NodeProto) -> bool:
    return operation(node) == "BatchNormalization" and "" in node.output


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from _nodes(body)
