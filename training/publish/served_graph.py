"""The graph of a network alone -> the graph that is served: pixels in, what the task means out, and its metadata.

The same for every source: what the exporter made of a PyTorch network, and an ONNX file as it was brought. It adds
operations around the network and changes none in it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from foldserve.format.image import ANY_SIZE, ImageRecipe
from foldserve.format.task import CLASSIFY, MULTILABEL, TENSORS

from ..errors import ConfigError, ExportError
from ..fold.onnx.protos import set_attribute, subgraphs
from .tasks import RESULTS

PREFIX = "foldserve/"  # of the names of what is added
_LEAST_OPSET = 13  # from here on Softmax, Unsqueeze and the others are what they are today
_LEAST_IR = 8  # of a file of that opset
_STATED_MODE = 14  # opset from which on an attribute says whether a norm trains
_BATCH = "batch"
_PORTABLE = "C.UTF-8"
_US_ENGLISH = ("", "en_US", "en_US.UTF-8", "en_US.utf8", "en-US")


def with_current_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model at an opset that the added operations mean the same in.

    Raises:
        ExportError: ONNX cannot convert it.
    """
    opset = _opset(model)
    if opset is None:
        model.opset_import.append(helper.make_opsetid("", _LEAST_OPSET))
    if opset is None or opset >= _LEAST_OPSET:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, _LEAST_OPSET)
    except Exception as err:  # the converter's errors share no base
        raise ExportError(f"opset {opset} cannot be brought to {_LEAST_OPSET}: {str(err).splitlines()[0]}") from err
    return _with_weights_as_constants(converted)


def _opset(model: onnx.ModelProto) -> int | None:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def _with_weights_as_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in a version of ONNX's format in which weights need not be listed among the inputs, unlisted."""
    model.ir_version = max(model.ir_version, _LEAST_IR)
    own = graph_inputs(model)
    del model.graph.input[:]
    model.graph.input.extend(own)
    return model


def without_dead_statistics(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return the model whose norms give out no statistics that nothing reads, and how many did.

    Before opset 14 a norm with such outputs computes the statistics of each batch. Exporters wrote them for networks
    at rest, which take those that they were trained to.
    """
    if (_opset(model) or _STATED_MODE) >= _STATED_MODE:
        return model, 0
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = [*_nodes(changed.graph.node), *(node for one in changed.functions for node in _nodes(one.node))]
    read = {name for node in nodes for name in node.input}
    graphs = [changed.graph, *(body for node in nodes for body in subgraphs(node))]
    read |= {value.name for graph in graphs for value in graph.output}
    read |= {name for function in changed.functions for name in function.output}
    norms = [node for node in nodes if node.op_type == "BatchNormalization" and len(node.output) > 1]
    dead = [node for node in norms if not read & {name for name in node.output[1:] if name}]
    for node in dead:
        del node.output[1:]
    return (changed, len(dead)) if dead else (model, 0)


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes, and those of the bodies in them."""
    for node in nodes:
        yield node
        for body in subgraphs(node):
            yield from _nodes(body.node)


def with_portable_locales(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return the model whose text operators need no locale of the machine's that serves it, and how many did.

    Without the attribute it is en_US.UTF-8, which a container rarely has, and where it is empty the environment's own.
    Letters change in C.UTF-8 as they do in en_US.UTF-8; what names another language is left alone.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = [node for node in changed.graph.node if node.op_type == "StringNormalizer" and _locale(node) in _US_ENGLISH]
    for node in nodes:
        set_attribute(node, "locale", _PORTABLE)
    return (changed, len(nodes)) if nodes else (model, 0)


def _locale(node: NodeProto) -> str:
    return next((attribute.s.decode() for attribute in node.attribute if attribute.name == "locale"), "")


def without_zipmaps(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str] | None]:
    """Return the model with the tensor that each ZipMap packs into dictionaries, and the classes that it names."""
    maps = {node.output[0]: node for node in model.graph.node if node.op_type == "ZipMap"}
    if not maps:
        return model, None
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    classes: list[str] | None = None
    for number, value in enumerate(changed.graph.output):
        node = maps.get(value.name)
        if node is None:
            continue
        found = [item.decode() for a in node.attribute for item in a.strings] or [
            str(item) for a in node.attribute for item in a.ints
        ]
        classes = found or classes
        tensor = helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [_BATCH, len(found)])
        changed.graph.output[number].CopyFrom(tensor)
    kept = [node for node in changed.graph.node if node.op_type != "ZipMap"]
    del changed.graph.node[:]
    changed.graph.node.extend(kept)
    return changed, classes


def add_preprocessing(
    model: onnx.ModelProto,
    recipe: ImageRecipe,
    factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
) -> None:
    """Let `model` take the uint8 pixels of a recipe in place of its first input, in place.

    Args:
        model: whose only input is floats of the recipe's shape.
        recipe: names the input and states its layout.
        factors: what pixels are multiplied by and what is added then, (C,) each; None where the network takes them in.

    Raises:
        ConfigError: the recipe does not fit the input.
    """
    value = graph_inputs(model)[0]
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value for dim in tensor.shape.dim)
    if len(shape) != 4 or any(
        size > 0 and size != wanted for size, wanted in zip(shape[1:], recipe.shape, strict=True)
    ):
        raise ConfigError(f"the image recipe gives rows of {recipe.shape}, the network takes {shape} with its batch")
    old, pixels = value.name, recipe.input
    inner = f"{PREFIX}pixels" if pixels == old else old
    if pixels == old:
        _rename(model, old, inner)
    last = inner if factors is None else f"{PREFIX}cast"
    nodes = [helper.make_node("Cast", [pixels], [last], f"{PREFIX}cast", to=tensor.elem_type)]
    if factors is not None:
        nodes += _arithmetic(model, last, inner, recipe, factors)
    sizes = (None if size == ANY_SIZE else size for size in recipe.shape)
    added = helper.make_tensor_value_info(pixels, TensorProto.UINT8, [_first_axis(value), *sizes])
    value.CopyFrom(added)
    _prepend(model, nodes)


def _arithmetic(
    model: onnx.ModelProto,
    source: str,
    target: str,
    recipe: ImageRecipe,
    factors: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> list[NodeProto]:
    shape = (1, -1, 1, 1) if recipe.layout == "CHW" else (1, 1, 1, -1)
    for name, values in zip(("scale", "shift"), factors, strict=True):
        array = values.reshape(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, f"{PREFIX}{name}"))
    scaled = target if not factors[1].any() else f"{PREFIX}scaled"
    nodes = [helper.make_node("Mul", [source, f"{PREFIX}scale"], [scaled], f"{PREFIX}mul")]
    if scaled != target:
        nodes.append(helper.make_node("Add", [scaled, f"{PREFIX}shift"], [target], f"{PREFIX}add"))
    else:
        del model.graph.initializer[-1]
    return nodes


def add_task(
    model: onnx.ModelProto, task: str, scores: str | None, is_probability: bool, columns: int, names: Mapping[str, str]
) -> None:
    """Let `model` answer what `task` means instead of what the network returns, in place.

    Args:
        model: of the network.
        task: one of `foldserve.format.task`.
        scores: the graph's own name of the output that the task is about.
        is_probability: it is one already.
        columns: how many numbers a row of it has.
        names: of the outputs as they are, the graph's -> the wanted ones; used by `tensors`.
    """
    graph = model.graph
    if task == TENSORS or scores is None:
        for old, new in names.items():
            if old != new:
                _rename(model, old, new)
        kept = [value for value in graph.output if value.name in set(names.values())]
        del graph.output[:]
        graph.output.extend(kept)
        return
    value = next(entry for entry in graph.output if entry.name == scores)
    batch = _first_axis(value) if value.type.tensor_type.shape.dim else _BATCH
    nodes, outputs = _task_nodes(model, value, task, is_probability, columns, batch)
    del graph.output[:]
    graph.output.extend(outputs)
    graph.node.extend(nodes)


def _task_nodes(
    model: onnx.ModelProto, value: onnx.ValueInfoProto, task: str, is_probability: bool, columns: int, batch: str | int
) -> tuple[list[NodeProto], list[onnx.ValueInfoProto]]:
    result = RESULTS.get(task) or ("probabilities" if is_probability else "logits")
    taken = _take_names(model, {result, "probabilities", "class_id"})
    nodes = _to_matrix(model, value, taken.get(value.name, value.name), result)
    outputs = [_matrix(result, TensorProto.FLOAT, batch, columns)]
    if result == "logits":
        nodes.append(_node("Sigmoid" if task == MULTILABEL else "Softmax", "logits", "probabilities", task))
        outputs.append(_matrix("probabilities", TensorProto.FLOAT, batch, columns))
    if task == CLASSIFY:
        nodes.append(helper.make_node("ArgMax", [result], ["class_id"], f"{PREFIX}argmax", axis=1, keepdims=1))
        outputs.append(_matrix("class_id", TensorProto.INT64, batch, 1))
    return nodes, outputs


def _node(operation: str, source: str, target: str, task: str) -> NodeProto:
    options: dict[str, Any] = {"axis": 1} if operation == "Softmax" else {}
    return helper.make_node(operation, [source], [target], f"{PREFIX}{operation.lower()}", **options)


def _to_matrix(model: onnx.ModelProto, value: onnx.ValueInfoProto, source: str, target: str) -> list[NodeProto]:
    """Return nodes that turn (N,), (N, C) or (N, C, 1, 1) of any float type into float32 (N, C) under `target`."""
    tensor = value.type.tensor_type
    steps: list[tuple[str, dict[str, Any]]] = [] if len(tensor.shape.dim) == 2 else [("Flatten", {"axis": 1})]
    if tensor.elem_type != TensorProto.FLOAT:
        steps.append(("Cast", {"to": TensorProto.FLOAT}))
    if not steps:
        _rename(model, source, target)
    nodes = []
    for number, (operation, options) in enumerate(steps):
        end = target if number == len(steps) - 1 else f"{PREFIX}{operation.lower()}_value"
        nodes.append(helper.make_node(operation, [source], [end], f"{PREFIX}{operation.lower()}", **options))
        source = end
    return nodes


def _matrix(name: str, dtype: int, batch: str | int, columns: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, [batch, columns])


def _take_names(model: onnx.ModelProto, wanted: set[str]) -> dict[str, str]:
    """Give every value of the graph that has a wanted name another one; returns old -> new."""
    values = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken = {name: f"{PREFIX}{name}" for name in sorted(wanted & values)}
    for old, new in taken.items():
        _rename(model, old, new, keep_outputs=True)
    return taken


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller gives: not the parameters that old files list beside them."""
    parameters = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in parameters]


def rename_inputs(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give inputs of the graph other names, in place."""
    for old, new in names.items():
        if old != new:
            _rename(model, old, new)


def producer_of(model: onnx.ModelProto, value: str) -> str:
    """Return the operation that makes a value, looking through those that only pass it on."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(value)
    while node is not None and node.op_type in ("Identity", "Cast", "Reshape", "Flatten", "Squeeze"):
        node = producers.get(node.input[0])
    return "" if node is None else node.op_type


def _rename(model: onnx.ModelProto, old: str, new: str, *, keep_outputs: bool = False) -> None:
    values: Sequence[onnx.ValueInfoProto] = [*model.graph.input, *model.graph.value_info]
    for value in values if keep_outputs else [*values, *model.graph.output]:
        if value.name == old:
            value.name = new
    for tensor in model.graph.initializer:
        if tensor.name == old:
            tensor.name = new
    _rename_in(model.graph.node, old, new)


def _rename_in(nodes: Sequence[NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _rename_in(body.node, old, new)
                for value in body.output:
                    if value.name == old:
                        value.name = new


def _first_axis(value: onnx.ValueInfoProto) -> str | int:
    axis = value.type.tensor_type.shape.dim[0]
    return axis.dim_value or axis.dim_param or _BATCH


def _prepend(model: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
