"""Float64 forms of the ONNX operators whose reference implementation is slow or wrong, by operator.

Used by `evaluator` only. A kernel that does not know an attribute returns None, and the reference takes over.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .products import product
from .protos import Values
from .reference_operations import batch_norm
from .resize import resize
from .windows import average_pool, conv, conv_transpose, max_pool

Kernel = Callable[[Sequence[Values | None], dict[str, Any]], Values | None]


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


def _matmul(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    return product(np.asarray(inputs[0]), np.asarray(inputs[1]))


def _gemm(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    a, b = np.asarray(inputs[0]), np.asarray(inputs[1])
    result = product(a.T if fields.get("transA", 0) else a, b.T if fields.get("transB", 0) else b)
    result *= fields.get("alpha", 1.0)
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


KERNELS: dict[str, Kernel] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GroupNormalization": _group_norm,
    "LRN": _local_response,
    "MatMul": _matmul,
    "MaxPool": max_pool,
    "StringNormalizer": _string_normalizer,
    "MeanVarianceNormalization": _mean_variance,
    "Optional": _same,
    "OptionalGetElement": _same,
    "Pad": _pad,
    "Resize": resize,
}
