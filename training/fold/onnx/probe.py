"""Inputs on which a folded ONNX model is compared with the original: random, signed, of every declared type.

Used by `proof`. Free dimensions are tried from small to large until the model runs on them, since a network with
five poolings needs an image that survives them.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...errors import FoldError
from ..rounding import round_once
from .evaluator import Evaluator
from .protos import FLOAT_TYPES, Dims, Values, infer

_INTEGERS = {getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}
_LARGE = 2**16  # elements of one row from which on a single row is enough work
_SIZES = (12, 32, 64, 224)  # tried for each free dimension that is not the batch


def probe_inputs(
    evaluator: Evaluator, wanted: Iterable[str], starts: Iterable[str]
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Return inputs for the model, and those of the `wanted` values that could be computed from them in float64.

    Args:
        evaluator: the unfolded model.
        wanted: names of values.
        starts: those of them that a part of the graph starts from; where an operation before one is unknown to us, it
            gets random numbers of its declared shape.

    Raises:
        FoldError: the model runs on none of the sizes that were tried, and nothing in it is unknown.
    """
    wanted, starts = set(wanted), set(starts)
    shapes, types = infer(evaluator.model)
    inputs = [
        v for v in evaluator.model.graph.input if v.name not in {t.name for t in evaluator.model.graph.initializer}
    ]
    best: tuple[dict[str, Values], dict[str, Values]] | None = None
    for size in _SIZES if any(_is_free(shapes.get(v.name)) for v in inputs) else _SIZES[:1]:
        rng = np.random.default_rng(0)
        sizes: dict[str, int] = {}
        feeds = {v.name: _random(rng, shapes.get(v.name, ()), types[v.name], sizes, size) for v in inputs}
        values = evaluator.run(feeds, wanted)
        for name in sorted(starts - set(values)):
            if name in shapes and types.get(name) in FLOAT_TYPES:
                values[name] = _random(rng, shapes[name], types[name], sizes, size)
        is_whole = all(name in values and values[name].size for name in wanted)
        if is_whole or best is None or len(wanted & set(values)) > len(wanted & set(best[1])):
            best = feeds, {n: v for n, v in values.items() if v.size}
        if is_whole:
            break
    if best is None or not all(name in best[1] for name in starts):
        why = next(iter(evaluator.unknown.values()), "no size that was tried fits")
        raise FoldError(f"proof impossible: the model cannot be evaluated in float64: {why}")
    return best


def stored_form(feeds: Mapping[str, Values], model: onnx.ModelProto) -> dict[str, Values]:
    """Return the float64 feeds in the dtypes that the model declares, which hold them exactly."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    return {name: value.astype(helper.tensor_dtype_to_np_dtype(types[name])) for name, value in feeds.items()}


def _is_free(shape: Dims | None) -> bool:
    return shape is None or any(not isinstance(dim, int) for dim in shape[1:])


def _random(rng: np.random.Generator, shape: Dims, kind: int, sizes: dict[str, int], size: int) -> Values:
    row = int(np.prod([d if isinstance(d, int) else size for d in shape[1:]], dtype=np.int64))
    batch = 2 if row < _LARGE else 1  # rather two, so that rows cannot be mistaken for channels
    dims = [d if isinstance(d, int) else sizes.setdefault(d, size if i else batch) for i, d in enumerate(shape)]
    if kind in FLOAT_TYPES:
        values = rng.normal(0.0, 1.0, dims) + rng.normal(0.0, 1.0)
        return np.asarray(round_once(np.asarray(values), FLOAT_TYPES[kind]), np.float64)
    if kind == TensorProto.BOOL:
        return np.asarray(rng.integers(0, 2, dims), np.bool_)
    if kind == TensorProto.STRING:
        raise FoldError("proof impossible: the model has a string input")
    if kind not in _INTEGERS:
        raise FoldError(f"proof impossible: the model has an input of ONNX type {kind}; expected a tensor of numbers")
    highest = 256 if kind == TensorProto.UINT8 else 2
    return np.asarray(rng.integers(0, highest, dims), helper.tensor_dtype_to_np_dtype(kind))
