"""The correction at the border of a Conv or ConvTranspose that takes a norm before it: padding must stay unshifted.

Used by `parameters` when `fold_onnx(..., padding="exact")` says so. A convolution of one channel of ones, with the
same strides, dilations and pads, gives the share of the shift at each place; its kernel is `core.border_kernel`. Where
the size of the map is fixed, a runtime turns it into a constant.
"""

import numpy as np
from onnx import NodeProto, helper

from ..core import Array
from ..refusals import Refusal, RefusalCode
from ..rounding import round_once
from .graph import OnnxGraph
from .protos import set_attribute, to_tensor

_FIRST_OPSET = 9  # of ConstantOfShape


def require_border(graph: OnnxGraph, layer: NodeProto) -> None:
    """Raise Refusal unless the correction of this Conv can be written in the model's operator set."""
    if graph.opset < _FIRST_OPSET:
        wanted = f"which takes opset {_FIRST_OPSET}, not {graph.opset}"
        reason = f"{layer.op_type} {layer.name!r} needs a correction at its border, {wanted}"
        raise Refusal(RefusalCode.PAD, reason, f"convert the model to opset {_FIRST_OPSET} or later")


def add_border(graph: OnnxGraph, layer: NodeProto, kernel: Array, dtype: str, stem: str) -> None:
    """Add to what `layer` makes the convolution of ones with `kernel`.

    Args:
        graph: holds the layer; the value that it makes keeps its name and becomes the sum.
        layer: a Conv or ConvTranspose.
        kernel: (out, 1, *kernel), or (1, out, *kernel) for the latter, float64.
        dtype: in which it is stored.
        stem: beginning of the new names.
    """
    output, label = str(layer.output[0]), layer.name or layer.output[0]
    weight = graph.fresh(f"{stem}_border_kernel")
    graph.store(weight, kernel, dtype)
    size, nodes = _size_of_ones(graph, str(layer.input[0]), kernel.ndim - 2, stem)
    ones, share, inner = (graph.fresh(f"{output}_{part}") for part in ("ones", "border", "unshifted"))
    one = to_tensor("one", round_once(np.ones(1), dtype), dtype)
    nodes.append(helper.make_node("ConstantOfShape", [size], [ones], graph.fresh(f"{label}_ones"), value=one))
    nodes.append(_like(layer, [ones, weight], share, graph.fresh(f"{label}_border")))
    nodes.append(helper.make_node("Add", [inner, share], [output], graph.fresh(f"{label}_add_border")))
    graph.rename_output(layer, output, inner)
    for node in reversed(nodes):
        graph.insert_after(layer, node)


def _like(layer: NodeProto, inputs: list[str], output: str, name: str) -> NodeProto:
    """Return a node with the strides, dilations and pads of `layer`, of one group."""
    node: NodeProto = NodeProto.FromString(layer.SerializeToString())
    del node.input[:], node.output[:]
    node.name = name
    node.input.extend(inputs)
    node.output.append(output)
    set_attribute(node, "group", 1)
    return node


def _size_of_ones(graph: OnnxGraph, source: str, spatial: int, stem: str) -> tuple[str, list[NodeProto]]:
    """Return the name of the shape (1, 1, *size of `source`) and the nodes that work it out, none when it is fixed."""
    shape = graph.shape(source)
    known = () if shape is None else shape[-spatial:]
    fixed = [size for size in known if isinstance(size, int)]
    if len(fixed) == spatial:
        return graph.put_integers(f"{stem}_border_shape", [1, 1, *fixed]), []
    whole, part, size = (graph.fresh(f"{stem}_border_{what}") for what in ("whole", "part", "shape"))
    places = graph.put_integers(f"{stem}_border_places", list(range(2, 2 + spatial)))
    front = graph.put_integers(f"{stem}_border_front", [1, 1])
    return size, [
        helper.make_node("Shape", [source], [whole], graph.fresh(f"{stem}_border_Shape")),
        helper.make_node("Gather", [whole, places], [part], graph.fresh(f"{stem}_border_Gather"), axis=0),
        helper.make_node("Concat", [front, part], [size], graph.fresh(f"{stem}_border_Concat"), axis=0),
    ]
