"""One rounding, to the nearest, checked against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from foldserve.training.fold.refusals import Refusal
from foldserve.training.fold.rounding import BFLOAT16, max_ulp, round_once


def neighbours(dtype: str, value: float) -> list[Fraction]:
    """The stored value and both values next to it, exactly."""
    kind = getattr(torch, dtype)
    stored = torch.tensor(value, dtype=kind)
    bits = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}[kind]
    return [Fraction(float((stored.view(bits) + step).view(kind))) for step in (-1, 0, 1)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rounded_values_are_the_nearest(dtype) -> None:
    """No neighbour of a rounded value is nearer to the exact one; ties go to the even one."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=300) * 10.0 ** rng.integers(-4, 4, size=300)
    for exact, stored in zip(values, round_once(values, dtype), strict=True):
        near = [abs(n - Fraction(float(exact))) for n in neighbours(dtype, float(stored))]
        assert near[1] == min(near)


def test_bfloat16_is_not_rounded_twice() -> None:
    """1 + 2**-8 + 2**-40 is above the tie; rounding to float32 first would lose that and round down."""
    assert round_once(np.array([1 + 2.0**-8 + 2.0**-40]), BFLOAT16)[0] == 1 + 2.0**-7
    assert round_once(np.array([1 + 2.0**-8]), BFLOAT16)[0] == 1.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_half_an_ulp_at_most(dtype) -> None:
    """The distance is at most half a unit in the last place, subnormal values included, and 0 for float64."""
    values = np.random.default_rng(1).normal(size=500) * np.logspace(-7, 3, 500)
    distance = max_ulp(round_once(values, dtype), values, dtype)
    assert distance == 0 if dtype == "float64" else 0.4 < distance <= 0.5


@pytest.mark.parametrize(("dtype", "value"), [("float16", 7e4), ("bfloat16", 3.4e38), ("float32", 1e39)])
def test_values_beyond_the_dtype_are_refused(dtype, value) -> None:
    """A folded value never becomes infinite in silence."""
    with pytest.raises(Refusal, match="overflow"):
        round_once(np.array([1.0, value]), dtype)


def test_other_dtypes_are_refused() -> None:
    """Integers and quantised types have no rounding here."""
    with pytest.raises(Refusal, match="dtype"):
        round_once(np.ones(1), "qint8")
