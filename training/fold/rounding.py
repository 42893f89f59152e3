"""From float64 to the parameter's own dtype, exactly once, and how far that is from the exact value.

Used by both front ends after `core`; and by the proof, which requires that a stored parameter equals the float64 result
rounded once, bit for bit. bfloat16 has no numpy dtype, so its values travel as float32 that hold them exactly.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .core import Array
from .refusals import Refusal, RefusalCode

BFLOAT16 = "bfloat16"
_BLOCK = 2**16
_FLOATS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


def round_once(values: Array, dtype: str) -> npt.NDArray[Any]:
    """Return float64 `values` rounded to nearest even in `dtype`, in a single rounding.

    Args:
        values: any shape, float64, finite.
        dtype: "float16", "float32", "float64" or "bfloat16" (returned as float32 that holds bfloat16 values).

    Raises:
        Refusal: overflow when a value rounds to infinity, dtype for any other dtype.
    """
    if dtype != BFLOAT16 and dtype not in _FLOATS:
        raise Refusal(RefusalCode.DTYPE, f"parameters are {dtype}; expected one of float16, bfloat16, float32, float64")
    with np.errstate(over="ignore"):
        rounded = _round_bfloat16(values) if dtype == BFLOAT16 else values.astype(_FLOATS[dtype])
    if not np.all(np.isfinite(rounded)):
        largest = float(np.max(np.abs(values)))
        raise Refusal(RefusalCode.OVERFLOW, f"a folded value of {largest:.3g} does not fit {dtype}")
    return rounded


def max_ulp(stored: npt.NDArray[Any], exact: Array, dtype: str) -> float:
    """Return the largest distance of `stored` from `exact`, in units in the last place of `dtype`.

    Args:
        stored: the rounded values, in `dtype` (float32 for bfloat16).
        exact: the same shape, float64.
        dtype: as in `round_once`; at most 0.5 when `stored` was rounded once from `exact`.
    """
    one, other, worst = np.ravel(stored), np.ravel(exact), 0.0
    for start in range(0, other.size, _BLOCK):  # in pieces: the intermediate values of a large weight add up
        part = other[start : start + _BLOCK]
        distance = np.abs(np.asarray(one[start : start + _BLOCK], np.float64) - part)
        worst = max(worst, float(np.max(distance / _spacing(part, dtype))))
    return worst


def _spacing(exact: Array, dtype: str) -> Array:
    """Return the gap between neighbours of `dtype` around each value; the smallest subnormal is the least gap."""
    bits, lowest = {"float16": (10, -14), "float32": (23, -126), "float64": (52, -1022), BFLOAT16: (7, -126)}[dtype]
    _, exponent = np.frexp(exact)  # exact = m * 2**exponent with 0.5 <= |m| < 1
    return np.asarray(np.ldexp(1.0, np.maximum(exponent - 1, lowest) - bits), np.float64)


def _round_bfloat16(values: Array) -> npt.NDArray[np.float32]:
    """Return the nearest bfloat16 values as float32; by way of a rounded float32 would round twice."""
    quantum = _spacing(values, BFLOAT16)
    nearest = np.rint(values / quantum) * quantum  # division and product by powers of two are exact
    return np.asarray(nearest, np.float32)
