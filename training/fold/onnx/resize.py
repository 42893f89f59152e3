"""Resize in float64: the reference does it number by number, and not that of opset 10.

Used by `kernels` only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .protos import Values


def resize(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
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
