"""Float64 forms of the ONNX operators whose reference implementation is slow or wrong.

Used by `evaluator` only. Convolutions and pools call PyTorch's double kernels, which share no code with the fold;
batch normalization is written out, because ONNX's own reference takes opset 9 to 13 for training. A kernel that does
not know an attribute returns None, and the reference takes over.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_loop
from onnx.reference.ops.aionnxml import op_svm_classifier
from torch import Tensor

from ..tiled import convolve
from .protos import Values

Kernel = Callable[[Sequence[Values | None], dict[str, Any]], Values | None]


def _batch_norm(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    x, gamma, beta, mean, var = (np.asarray(v) for v in inputs)
    if fields.get("training_mode", 0):
        return None
    shape = (1, *mean.shape) + (1,) * (x.ndim - 1 - mean.ndim)  # with spatial=0 each position has its own statistics
    deviation = np.sqrt(var + fields.get("epsilon", float(np.float32(1e-5))))
    result = np.subtract(x, mean.reshape(shape), dtype=np.result_type(x, mean, var, gamma, beta))
    result /= deviation.reshape(shape)
    result *= gamma.reshape(shape)
    result += beta.reshape(shape)
    return np.asarray(result)


def _conv(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    x, weight, bias = _operands(inputs)
    kernel = _Window(fields, weight.shape[2:])
    if kernel.pads is None or x.ndim - 2 not in (1, 2, 3):
        return None
    function = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    begins, ends = kernel.pads
    x = x if begins == ends else kernel.pad(x, 0.0)

    def convolution(part: Tensor, padding: Any) -> Any:
        return function(part, weight, bias, kernel.strides, padding, kernel.dilations, fields.get("group", 1))

    sides = begins if begins == ends else [0] * len(kernel.strides)
    result = convolve(convolution, x, weight, kernel.strides, sides, kernel.dilations)
    return np.asarray(result.numpy())


def _conv_transpose(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    x, weight, bias = _operands(inputs)
    kernel = _Window(fields, weight.shape[2:])
    if x.ndim - 2 not in (1, 2, 3):
        return None
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[x.ndim - 3]
    extra = fields.get("output_padding", [0] * (x.ndim - 2))
    pads = _cut_from_transposed(fields, kernel, x.shape[2:], extra)
    if pads is None:
        return None
    begins, ends = pads
    if any(extra) and any(e >= s and e >= d for e, s, d in zip(extra, kernel.strides, kernel.dilations, strict=True)):
        return None
    full = function(x, weight, bias, kernel.strides, 0, extra, fields.get("group", 1), kernel.dilations)
    cut = tuple(slice(b, size - e) for b, e, size in zip(begins, ends, full.shape[2:], strict=True))
    return np.asarray(full[(slice(None), slice(None), *cut)].numpy())


def _cut_from_transposed(
    fields: dict[str, Any], kernel: "_Window", sizes: Sequence[int], extra: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """Return what is cut from begins and ends of the whole result of a transposed convolution, None where unknown.

    Source: ONNX, operator ConvTranspose: with a size of the output, or as many strides as the input has elements.
    """
    mode = fields.get("auto_pad", b"NOTSET")
    wanted = fields.get("output_shape") or [n * stride for n, stride in zip(sizes, kernel.strides, strict=True)]
    if "output_shape" not in fields and mode not in (b"SAME_UPPER", b"SAME_LOWER"):
        return kernel.pads
    begins, ends = list[int](), list[int]()
    parts = zip(sizes, wanted[-len(sizes) :], kernel.sizes, kernel.strides, kernel.dilations, extra, strict=True)
    for n, size, width, stride, dilation, more in parts:
        total = stride * (n - 1) + more + (width - 1) * dilation + 1 - size
        if total < 0:
            return None
        begins.append(total // 2 if mode == b"SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return begins, ends


def _max_pool(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    (x,) = _tensors(inputs)
    kernel = _Window(fields, fields["kernel_shape"])
    if kernel.pads is None or fields.get("ceil_mode", 0) or fields.get("storage_order", 0) or x.ndim not in (3, 4, 5):
        return None
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    padded = kernel.pad(x, -torch.inf)
    return np.asarray(function(padded, kernel.sizes, kernel.strides, 0, kernel.dilations).numpy())


def _average_pool(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    (x,) = _tensors(inputs)
    kernel = _Window(fields, fields["kernel_shape"])
    plain = kernel.pads is not None and not fields.get("ceil_mode", 0) and set(kernel.dilations) == {1}
    if not plain or x.ndim not in (3, 4, 5):
        return None
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    summed = function(kernel.pad(x, 0.0), kernel.sizes, kernel.strides)
    if fields.get("count_include_pad", 0):
        return np.asarray(summed.numpy())
    inside = function(kernel.pad(torch.ones_like(x), 0.0), kernel.sizes, kernel.strides)
    return np.asarray((summed / inside).numpy())


def _global_average_pool(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    x = np.asarray(inputs[0])
    return np.asarray(x.mean(axis=tuple(range(2, x.ndim)), keepdims=True))


def _same(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """An optional value that there is, which ONNX's reference wraps in a list."""
    return inputs[0] if inputs else None


def _pad(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Padding with a constant; negative pads crop, which the reference does not know."""
    x = np.asarray(inputs[0])
    if fields.get("mode", b"constant") != b"constant":
        return None
    pads = [int(p) for p in (inputs[1] if len(inputs) > 1 and inputs[1] is not None else fields.get("pads", []))]
    filling = np.asarray(inputs[2] if len(inputs) > 2 and inputs[2] is not None else fields.get("value", 0.0))
    named = inputs[3] if len(inputs) > 3 else None
    axes = list(range(x.ndim)) if named is None else [int(axis) % x.ndim for axis in np.ravel(named)]
    if len(pads) != 2 * len(axes):
        return None
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[place], pads[place + len(axes)]
    kept = tuple(slice(max(-b, 0), size - max(-e, 0)) for b, e, size in zip(begins, ends, x.shape, strict=True))
    around = [(max(b, 0), max(e, 0)) for b, e in zip(begins, ends, strict=True)]
    return np.pad(x[kept], around, constant_values=x.dtype.type(filling.item()))


def _resize(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Nearest and linear resizing, axis by axis; the reference does it number by number, and not that of opset 10.

    Coordinates are float32, as onnxruntime reckons, so that halves fall to the same side.
    """
    x, is_old = np.asarray(inputs[0]), len(inputs) == 2
    given = [None if value is None or not np.size(value) else np.ravel(value) for value in (*inputs[1:], None, None)]
    scales, sizes = (given[0], None) if is_old else (given[1], given[2])
    mode, rounding = fields.get("mode", b"nearest"), fields.get("nearest_mode", b"round_prefer_floor")
    transform = b"asymmetric" if is_old else fields.get("coordinate_transformation_mode", b"half_pixel")
    plain = {"mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "extrapolation_value"}
    numbers = scales if sizes is None else sizes
    is_known = mode in (b"nearest", b"linear") and transform in _COORDINATES and fields.keys() <= plain
    if numbers is None or numbers.size != x.ndim or not is_known:
        return None
    for axis, number in enumerate(numbers):
        old = x.shape[axis]
        scale = np.float32(number) if sizes is None else np.float32(number) / np.float32(old)
        new = int(scale * np.float32(old)) if sizes is None else int(number)
        if new != old:
            at = _COORDINATES[transform](np.arange(new, dtype=np.float32), scale, old, new)
            simple = b"floor" if scale >= 1 else b"ceil"
            x = _interpolated(x, axis, at, mode, simple if is_old else rounding)
    return x


def _interpolated(x: Values, axis: int, at: Values, mode: bytes, rounding: bytes) -> Values:
    """Return the values of `x` at the places `at` of an axis, those beyond its ends as at the ends."""
    last = x.shape[axis] - 1
    if mode == b"nearest":
        return np.take(x, np.clip(_ROUNDINGS[rounding](at), 0, last).astype(np.int64), axis)
    at = np.clip(at, 0, last).astype(np.float64)
    low = np.floor(at).astype(np.int64)
    part = (at - low).reshape(-1, *[1] * (x.ndim - 1 - axis)).astype(x.dtype)
    above = np.take(x, np.minimum(low + 1, last), axis)
    return np.asarray(np.take(x, low, axis) * (1 - part) + above * part)


_HALF = np.float32(0.5)
_COORDINATES: dict[bytes, Callable[[Values, Any, int, int], Values]] = {
    b"half_pixel": lambda at, scale, old, new: (at + _HALF) / scale - _HALF,
    b"pytorch_half_pixel": lambda at, scale, old, new: (at + _HALF) / scale - _HALF if new > 1 else at * 0,
    b"asymmetric": lambda at, scale, old, new: at / scale,
    b"align_corners": lambda at, scale, old, new: at * np.float32(old - 1) / np.float32(max(new - 1, 1)),
}
_ROUNDINGS: dict[bytes, Callable[[Values], Values]] = {
    b"round_prefer_floor": lambda at: np.ceil(at - _HALF),
    b"round_prefer_ceil": lambda at: np.floor(at + _HALF),
    b"floor": np.floor,
    b"ceil": np.ceil,
}


def _matmul(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    return np.asarray(np.matmul(np.asarray(inputs[0]), np.asarray(inputs[1])))


def _gemm(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    a, b = np.asarray(inputs[0]), np.asarray(inputs[1])
    product = (a.T if fields.get("transA", 0) else a) @ (b.T if fields.get("transB", 0) else b)
    result = fields.get("alpha", 1.0) * product
    c = inputs[2] if len(inputs) > 2 else None
    return np.asarray(result if c is None else result + fields.get("beta", 1.0) * c)


def _group_norm(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Return the normalisation over each group; ONNX's reference does not run the one of opset 21."""
    x, scale, shift = (np.asarray(v) for v in inputs)
    groups, channels = int(fields["num_groups"]), x.shape[1]
    rows = x.reshape(x.shape[0], groups, -1)
    deviation = np.sqrt(rows.var(-1, keepdims=True) + fields.get("epsilon", float(np.float32(1e-5))))
    normalised = ((rows - rows.mean(-1, keepdims=True)) / deviation).reshape(x.shape)
    per_channel = (1, channels) + (1,) * (x.ndim - 2)
    factor, addend = (np.repeat(v, channels // v.size).reshape(per_channel) for v in (scale, shift))
    return np.asarray(normalised * factor + addend)


def _local_response(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Return x over a power of the squares nearby; ONNX's reference sums the channels of the first rows only."""
    x, size = np.asarray(inputs[0]), int(fields["size"])
    before, squares = (size - 1) // 2, np.square(x)
    padded = np.pad(squares, [(0, 0), (before, size - 1 - before)] + [(0, 0)] * (x.ndim - 2))
    total = sum(padded[:, i : i + x.shape[1]] for i in range(size))
    alpha, beta = fields.get("alpha", float(np.float32(1e-4))), fields.get("beta", 0.75)
    return np.asarray(x / (fields.get("bias", 1.0) + alpha / size * total) ** beta)


def _mean_variance(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Return the values less their mean, over their deviation; ONNX spells it out with numbers in float32."""
    x, axes = np.asarray(inputs[0]), tuple(fields.get("axes", (0, 2, 3)))
    deviation = x.std(axes, keepdims=True) + float(np.float32(1e-9))
    return np.asarray((x - x.mean(axes, keepdims=True)) / deviation)


class _Window:
    """Kernel, strides, dilations and pads of a convolution or pool, as PyTorch wants them."""

    def __init__(self, fields: dict[str, Any], sizes: Sequence[int]):
        rank = len(sizes)
        self.sizes = [int(size) for size in sizes]
        self.strides = [int(s) for s in fields.get("strides", [1] * rank)]
        self.dilations = [int(d) for d in fields.get("dilations", [1] * rank)]
        pads = [int(p) for p in fields.get("pads", [0] * 2 * rank)]
        known = fields.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID") and min(pads, default=0) >= 0
        self.pads = (pads[:rank], pads[rank:]) if known else None

    def pad(self, x: Tensor, value: float) -> Tensor:
        """Return `x` with `value` around its last axes."""
        assert self.pads is not None
        if not any(map(any, self.pads)):
            return x
        both = [side for begin, end in reversed(list(zip(*self.pads, strict=True))) for side in (begin, end)]
        return F.pad(x, both, value=value)


def _string_normalizer(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values:
    """Return text without stop words, in letters of one case; ONNX's own takes accents off, which no runtime does."""
    texts = np.asarray(inputs[0], object)
    action = fields.get("case_change_action", b"NONE")
    compared = str if fields.get("is_case_sensitive", 0) else _CASES.get(action, _lower)
    hidden = {compared(word.decode()) for word in fields.get("stopwords", ())}
    kept = [_CASES.get(action, str)(text) for text in texts.reshape(-1).tolist() if compared(text) not in hidden] or [
        ""
    ]
    return np.array(kept, object).reshape(-1 if texts.ndim == 1 else (1, -1))


def _lower(text: str) -> str:
    """Return the text letter by letter in small ones, as the towlower of C gives them: one for one."""
    return "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)


def _upper(text: str) -> str:
    return "".join(letter.upper() if len(letter.upper()) == 1 else letter for letter in text)


_CASES: dict[bytes, Callable[[str], str]] = {b"LOWER": _lower, b"UPPER": _upper}


def _tensors(inputs: Sequence[Values | None]) -> list[Tensor]:
    return [torch.from_numpy(np.require(value, requirements=["C", "W"])) for value in inputs if value is not None]


def _operands(inputs: Sequence[Values | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    tensors = _tensors(inputs)
    return tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None


class BatchNormalization(OpRun):
    """The same normalisation inside bodies and functions, which ONNX's reference runs by itself."""

    op_domain = ""

    def _run(self, *inputs: Values, **fields: Any) -> tuple[Values]:
        result = _batch_norm(inputs, fields)
        if result is None:
            raise NotImplementedError("BatchNormalization in training mode")
        return (result,)


class Loop(op_loop.Loop):
    """A Loop whose condition may be left out, and whose results of each step are stacked; ONNX's own does neither."""

    op_domain = ""

    def _run(self: Any, *inputs: Any, context: Any = None, body: Any = None, **passed: Any) -> Any:
        steps, condition, *carried = inputs
        goes_on, step = condition is None or bool(condition), 0
        results: list[list[Values]] = [[] for _ in range(self.K)]
        names = self.body.input_names
        while goes_on and (steps is None or step < int(steps)):
            given = {**(context or {}), names[0]: np.array(step, np.int64), names[1]: np.array(True)}
            outputs = self._run_body(given | dict(zip(names[2:], carried, strict=True)), **passed)
            goes_on, carried = bool(outputs[0]), [*outputs[1 : 1 + self.N]]
            for result, value in zip(results, outputs[1 + self.N :], strict=True):
                result.append(value)
            step += 1
        if not step and results:
            raise NotImplementedError("a Loop of no steps, the shape of whose results is not known")
        return (*carried, *map(np.stack, results))


class SVMClassifier(op_svm_classifier.SVMClassifier):
    """ONNX's own but for probabilities of three classes and more, where that sums what should stand side by side."""

    op_domain = "ai.onnx.ml"

    def _probabilities(self, scores: Values, class_count_: int) -> Values:
        pairs = np.zeros((class_count_, class_count_))
        stated: Any = self._svm.atts
        above = np.triu_indices(class_count_, 1)
        for score, a, b, i, j in zip(scores, stated.prob_a, stated.prob_b, *above, strict=True):
            pairs[i, j] = np.clip(1 / (1 + np.exp(float(a) * score + float(b))), 1e-7, 1 - 1e-7)
            pairs[j, i] = 1 - pairs[i, j]
        return _coupled(pairs)


def _coupled(pairs: Values) -> Values:
    """Return probabilities (C,) of classes from those of pairs: `pairs[i, j]` of i where it is i or j.

    Source: Wu, Lin and Weng 2004, Probability Estimates for Multi-class Classification by Pairwise Coupling, algorithm
    2, with the end that LIBSVM has (multiclass_probability in its svm.cpp).
    """
    classes = len(pairs)
    matrix = -pairs.T * pairs
    np.fill_diagonal(matrix, (pairs**2).sum(axis=0))
    found = np.full(classes, 1 / classes)
    for _ in range(max(100, classes)):
        gradient = matrix @ found
        whole = float(found @ gradient)
        if np.abs(gradient - whole).max() < 0.005 / classes:
            break
        for t in range(classes):
            step = (whole - gradient[t]) / matrix[t, t]
            found[t] += step
            whole = (whole + step * (step * matrix[t, t] + 2 * gradient[t])) / (1 + step) ** 2
            gradient = (gradient + step * matrix[t]) / (1 + step)
            found /= 1 + step
    return found


REFERENCE_OPERATIONS: list[type[OpRun]] = [
    BatchNormalization,
    Loop,
    SVMClassifier,
]  # in place of ONNX's own, in bodies as well

KERNELS: dict[str, Kernel] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GroupNormalization": _group_norm,
    "LRN": _local_response,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "StringNormalizer": _string_normalizer,
    "MeanVarianceNormalization": _mean_variance,
    "Optional": _same,
    "OptionalGetElement": _same,
    "Pad": _pad,
    "Resize": _resize,
}
