"""The operations that an affine may pass, and under which condition: one table for both directions.

Used by the walk. `backward` answers what an operation's inputs must become so that its output becomes affine(output);
`forward` answers what affine its output carries when its input carries one. Every rule is an equality of real numbers;
what is not in the table is refused, with the reason.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from ..core import Affine, concatenate
from ..refusals import Refusal, RefusalCode
from .axes import MOVES_AXES, SPLITS, axis_after, axis_before, merged
from .channel_copies import COPIES, copies_backward, copies_forward
from .graph import TorchGraph, arguments, dtype, is_tensor, operation, same_shape, shape
from .norms import AffineNode, read_affine_node
from .permutations import permutation_from, permutation_to
from .selections import SELECTIONS, dims_of, is_selection, picked, static_size, unpicked

_KEEPS = {"aten::clone", "aten::contiguous", "aten::detach", "aten::alias", "aten::lift_fresh_copy"}
_CASTS = {"aten::to", "aten::_to_copy", "aten::type_as"}
_DROPOUTS = {"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout"}
_PADDED_AVERAGES = {"aten::avg_pool1d", "aten::avg_pool2d", "aten::avg_pool3d"}
_AVERAGES = {f"aten::{kind}{n}d" for kind in ("adaptive_avg_pool", "upsample_nearest") for n in (1, 2, 3)}
_AVERAGES |= {f"aten::_upsample_nearest_exact{n}d" for n in (1, 2, 3)}
_AVERAGES |= {f"aten::upsample_{kind}" for kind in ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d")}
_AVERAGES |= {f"aten::_upsample_{kind}_aa" for kind in ("bilinear2d", "bicubic2d")}
_MAXIMA = {f"aten::{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)}
_MAXIMA |= {f"aten::max_pool{n}d_with_indices" for n in (1, 2, 3)}
_COPYING_PADS = {f"aten::{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)}
_REDUCTIONS = {"aten::mean", "aten::amax", "aten::amin"}
_SUMS = {"aten::add", "aten::sub"}
# fmt: off
_ACTIVATIONS = {
    "relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "prelu", "rrelu",
    "hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "softmax", "log_softmax", "log_sigmoid", "clamp",
    "clamp_min", "clamp_max", "glu", "threshold", "hardshrink", "softshrink",
}
# fmt: on


@dataclass(frozen=True)
class Flow:
    """An affine that a value carries: which value, along which axis (None: one channel, any axis).

    Attributes:
        through: what lies between the value and where the step came from, when that is more than one operation;
            in the order of evaluation.
    """

    value: Node
    axis: int | None
    affine: Affine
    through: tuple[Node, ...] = ()


def backward(graph: TorchGraph, node: Node, axis: int | None, affine: Affine) -> list[Flow]:
    """Return what the inputs of `node` must carry so that its output carries `affine` along `axis`.

    Raises:
        Refusal: no such inputs exist, or the rule for this operation is not known.
    """
    name = _name(node)
    permuted = permutation_to(graph, node)
    if permuted is not None and axis == permuted.axis:
        return [Flow(permuted.source, axis, affine.pick(np.argsort(permuted.order)), permuted.nodes[:-1])]
    if name in MOVES_AXES:
        return [Flow(node.all_input_nodes[0], axis_before(node, axis), affine)]
    if name == "aten::cat":
        return _cat_backward(node, axis, affine)
    if _is_sum(graph, node):  # with any factor of the second one: both are scaled alike
        first, second = node.args[:2]
        return [Flow(first, axis, affine), Flow(second, axis, affine.without_shift())]  # type: ignore[arg-type]
    if name == "getitem":
        return _getitem_backward(node, axis, affine)
    if name in COPIES:
        return [Flow(_source(node), *copies_backward(node, axis, affine))]
    step = read_affine_node(graph, node)
    if step is not None:
        return [Flow(step.source, axis, _before_step(node, affine, _constants(step, node, axis, affine.channels)))]
    source = _source(node)
    if axis is not None and is_selection(graph, node, axis):
        return [Flow(source, axis, unpicked(graph, node, axis, affine))]
    before = _axis_before_reduction(node, axis) if name in _REDUCTIONS else axis
    require_passing(node, before, affine)
    return [Flow(source, before, affine)]


def forward(graph: TorchGraph, node: Node, value: Node, axis: int | None, affine: Affine) -> Flow:
    """Return what the output of `node` carries when its input `value` carries `affine` along `axis`.

    Raises:
        Refusal: the output would be no affine of what it was, or the rule for this operation is not known.
    """
    name = _name(node)
    permuted = permutation_from(graph, node)
    if permuted is not None and axis == permuted.axis:
        return Flow(permuted.nodes[-1], axis, affine.pick(permuted.order), permuted.nodes[:-1])
    if name in MOVES_AXES:
        joined = None if axis is None else merged(node, axis)
        if joined is not None and axis is not None and (joined[1] > 1 or joined[2] > 1):
            place, repeat, tile = joined
            return Flow(node, place, concatenate([affine.repeat(repeat)] * tile))
        return Flow(node, axis_after(node, axis), affine)
    if name == "aten::cat":
        return _cat_forward(node, value, axis, affine)
    step = read_affine_node(graph, node)
    if step is not None:
        return Flow(node, axis, affine.past(_constants(step, node, axis, affine.channels)))
    if _source(node) is not value:
        raise _unknown(node)
    if name in COPIES:
        return Flow(node, *copies_forward(node, axis, affine))
    if axis is not None and is_selection(graph, node, axis):
        return Flow(node, axis, affine.pick(picked(graph, node, axis)))
    require_passing(node, axis, affine)
    return Flow(node, _axis_after_reduction(node, axis) if name in _REDUCTIONS else axis, affine)


def require_passing(node: Node, axis: int | None, affine: Affine) -> None:
    """Raise Refusal unless the operation gives affine(output) for affine(input), `axis` being the input's."""
    name, given = _name(node), arguments(node) if hasattr(node.target, "_schema") else {}
    if name in _KEEPS or name in _AVERAGES:
        return
    if name in _CASTS:
        if dtype(node) != dtype(_source(node)):
            raise Refusal(RefusalCode.DTYPE, f"'{node.name}' casts {dtype(_source(node))} to {dtype(node)} on the way")
    elif name in _DROPOUTS:
        if given["train"]:
            raise Refusal(RefusalCode.TRAINING, f"the dropout '{node.name}' is in training mode")
    elif name in _PADDED_AVERAGES:
        _require_plain_average(node, given)
    elif name in _MAXIMA or name == "aten::amax" or name == "aten::amin":
        if np.any(affine.scale < 0):
            raise Refusal(
                RefusalCode.SIGN,
                f"{int(np.sum(affine.scale < 0))} channels have a negative scale, "
                f"and the largest value of '{node.name}' would become the smallest",
            )
        _require_other_axes(node, axis, given)
    elif name in _REDUCTIONS or name in SELECTIONS:
        _require_other_axes(node, axis, given)
    elif name == "aten::pad" or name == "aten::constant_pad_nd" or name in _COPYING_PADS:
        _require_copying_pad(node, given, affine)
    else:
        raise _unknown(node)


def _name(node: Node) -> str:
    name = operation(node)
    return name.removesuffix("_") if not name.endswith("__") else name


def _source(node: Node) -> Node:
    if not node.all_input_nodes:
        raise Refusal(RefusalCode.NO_PRODUCER, f"'{node.name}' is an input of the model")
    return node.all_input_nodes[0]


def _unknown(node: Node) -> Refusal:
    name = _name(node).removeprefix("aten::")
    if node.op == "placeholder":
        return Refusal(RefusalCode.NO_PRODUCER, f"no layer stands between the model's input '{node.name}' and the norm")
    if name in _ACTIVATIONS:
        return Refusal(RefusalCode.ACTIVATION_BETWEEN, f"the activation {name} ('{node.name}') is in between")
    if "quantize" in name:
        return Refusal(RefusalCode.QUANTISED, f"'{node.name}' ({name}) works on quantised values")
    if not hasattr(node.target, "_schema"):
        return Refusal(RefusalCode.SUBGRAPH, f"'{node.name}' ({name}) has a body of its own")
    return Refusal(RefusalCode.UNKNOWN_OP, f"no exact rule is known for '{node.name}' ({name})")


def is_plain_sum(graph: TorchGraph, node: Node) -> bool:
    """True for the sum or difference of two different values of one shape."""
    return _is_sum(graph, node) and float(node.kwargs.get("alpha", 1)) == 1  # type: ignore[arg-type]


def _is_sum(graph: TorchGraph, node: Node) -> bool:
    """True for the same with a factor of the second value."""
    if _name(node) not in _SUMS:
        return False
    operands = list(node.args[:2])
    moving = all(is_tensor(a) and not graph.is_constant(a) for a in operands)  # type: ignore[arg-type]
    if not moving or operands[0] is operands[1]:
        return False
    return all(same_shape(a, node) for a in operands)  # type: ignore[arg-type]


def _constants(step: AffineNode, node: Node, axis: int | None, channels: int) -> Affine:
    """Return the constants of a step that stays in the graph, per channel; refuse those that vary along other axes."""
    others = [varying for varying in step.axes(len(shape(node))) if varying != axis]
    if others:
        raise Refusal(RefusalCode.AXIS, f"the constant of '{node.name}' varies along axis {others[0]}")
    return step.affine(channels)


def _before_step(node: Node, affine: Affine, step: Affine) -> Affine:
    """Return what to put before the step so that its output y becomes affine(y), the step staying as it is."""
    needed = affine.shift + affine.scale * step.shift - step.shift
    if np.any((step.scale == 0) & (needed != 0)):
        raise Refusal(RefusalCode.ZERO_DENOMINATOR, f"'{node.name}' multiplies by zero before the norm adds its shift")
    return Affine(affine.scale, needed / np.where(step.scale == 0, 1.0, step.scale))


def _cat_backward(node: Node, axis: int | None, affine: Affine) -> list[Flow]:
    parts: Any = node.args[0]
    if len(set(parts)) < len(parts):
        raise Refusal(RefusalCode.MULTI_USE, f"'{node.name}' joins a value with itself")
    if axis is None or dims_of(node) != [axis]:
        return [Flow(part, axis, affine) for part in parts]
    flows, start = [], 0
    for part in parts:
        size = static_size(node, shape(part)[axis])
        flows.append(Flow(part, axis, affine.take(start, start + size)))
        start += size
    return flows


def _cat_forward(node: Node, value: Node, axis: int | None, affine: Affine) -> Flow:
    parts: Any = node.args[0]
    (dim,) = dims_of(node)
    if axis not in (None, dim):
        raise Refusal(RefusalCode.MULTI_USE, f"'{node.name}' joins the norm's output with values that have no norm")
    sizes = [static_size(node, shape(part)[dim]) for part in parts]
    pieces = [affine.spread(n) if one is value else Affine.identity(n) for one, n in zip(parts, sizes, strict=True)]
    return Flow(node, dim, concatenate(pieces))


def _getitem_backward(node: Node, axis: int | None, affine: Affine) -> list[Flow]:
    split, index = node.args[0], node.args[1]
    assert isinstance(split, Node)
    assert isinstance(index, int)
    if index == 0 and _is_maximum_alone(split):
        require_passing(split, axis, affine)
        return [Flow(_source(split), axis, affine, (split,))]
    dim = dims_of(split)[0] if _name(split) in SPLITS else None
    if dim is None or axis not in (None, dim):
        raise _unknown(split)
    if sum(user.args[1:] == node.args[1:] for user in split.users) > 1:
        raise Refusal(RefusalCode.MULTI_USE, f"part {index} of '{split.name}' is taken twice")
    sizes = [static_size(split, part.shape[dim]) for part in split.meta["val"]]
    pieces = [affine.spread(size) if i == index else Affine.identity(size) for i, size in enumerate(sizes)]
    return [Flow(_source(split), dim, concatenate(pieces), (split,))]


def forward_to_parts(node: Node, axis: int | None, affine: Affine) -> list[Flow] | None:
    """Return what the parts of a split, or of a maximum with its places, carry; None for any other operation.

    Raises:
        Refusal: as `forward`.
    """
    parts = [user for user in node.users if user.users or _name(user) != "getitem"]
    if _is_maximum_alone(node):
        require_passing(node, axis, affine)
        return [Flow(part, axis, affine) for part in parts]
    if _name(node) not in SPLITS or any(_name(part) != "getitem" for part in parts):
        return None
    if axis is None or dims_of(node) != [axis]:
        return [Flow(part, axis, affine) for part in parts]
    ends = np.cumsum([static_size(node, part.shape[axis]) for part in node.meta["val"]])
    stretches = [(end - value.shape[axis], end) for end, value in zip(ends, node.meta["val"], strict=True)]
    return [Flow(part, axis, affine.take(*stretches[part.args[1]])) for part in parts]  # type: ignore[index]


def _is_maximum_alone(node: Node) -> bool:
    """True for a maximum that gives its places too, which nothing reads: where the scale is zero, they are others."""
    is_pair = _name(node) in _MAXIMA and not is_tensor(node)
    return is_pair and all(user.args[1] == 0 or not user.users for user in node.users)


def _require_plain_average(node: Node, given: dict[str, Any]) -> None:
    padding = given["padding"] if isinstance(given["padding"], list | tuple) else [given["padding"]]
    if given.get("divisor_override") is not None:
        raise Refusal(RefusalCode.POOL, f"'{node.name}' divides by {given['divisor_override']}, not by the area")
    if any(padding) and given["count_include_pad"]:
        raise Refusal(RefusalCode.POOL, f"'{node.name}' counts zeros of the padding into its averages")


def _require_copying_pad(node: Node, given: dict[str, Any], affine: Affine) -> None:
    """Allow padding that copies values, crops, or adds a constant that the affine leaves as it is."""
    if _name(node) in _COPYING_PADS or given.get("mode", "constant") != "constant" or all(p <= 0 for p in given["pad"]):
        return
    value = float(given.get("value") or 0.0)
    if np.any(affine.scale * value + affine.shift != value):
        raise Refusal(RefusalCode.PAD, f"'{node.name}' pads with {value:g}, which the norm would move")


def _require_other_axes(node: Node, axis: int | None, given: dict[str, Any]) -> None:
    """Refuse a reduction, selection or maximum along the channel axis itself."""
    if axis is None and _name(node) in _REDUCTIONS | SELECTIONS | _MAXIMA:
        return
    wanted = given.get("dims", given.get("dim"))
    if _name(node) in _MAXIMA:
        return
    rank = len(shape(_source(node)))
    dims = range(rank) if wanted in (None, []) else (wanted if isinstance(wanted, list | tuple) else [wanted])
    if axis in {d % rank for d in dims}:
        raise Refusal(RefusalCode.AXIS, f"'{node.name}' works along the channel axis {axis}")


def _reduced(node: Node) -> set[int]:
    given, rank = arguments(node), len(shape(_source(node)))
    dims = given.get("dim")
    if given.get("keepdim"):
        return set()
    return set(range(rank)) if dims in (None, []) else {d % rank for d in dims}


def _axis_before_reduction(node: Node, axis: int | None) -> int | None:
    kept = [a for a in range(len(shape(_source(node)))) if a not in _reduced(node)]
    return None if axis is None else kept[axis]


def _axis_after_reduction(node: Node, axis: int | None) -> int | None:
    kept = [a for a in range(len(shape(_source(node)))) if a not in _reduced(node)]
    return None if axis is None else kept.index(axis)
