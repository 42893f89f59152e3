"""Inputs of the shapes that `--input` states, made up from a fixed seed, for a network that brings none."""

import math

import torch
from torch import Tensor

from ..errors import ConfigError

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int64": torch.int64,
    "int32": torch.int32,
}
_MOST_ELEMENTS = 2**31  # more is a slip of the keyboard


def make_inputs(specs: list[str]) -> tuple[Tensor, ...]:
    """Return one tensor for each "[DTYPE:]D,D,...": normal floats, bytes 0 to 255, or zeros and ones.

    Raises:
        ConfigError: a dtype that is not known, or dimensions that are no positive integers.
    """
    generator = torch.Generator().manual_seed(0)
    return tuple(make_input(*shape_of(spec), generator) for spec in specs)


def shape_of(spec: str) -> tuple[list[int], torch.dtype]:
    """Return the shape and the dtype that "[DTYPE:]D,D,..." states.

    Raises:
        ConfigError: a dtype that is not known, or dimensions that are no positive integers.
    """
    kind, _, dims = spec.rpartition(":")
    dtype = _DTYPES.get(kind or "float32")
    if dtype is None:
        raise ConfigError(f"--input {spec!r}: dtype {kind!r} is not one of {', '.join(_DTYPES)}")
    try:
        shape = [int(dim) for dim in dims.split(",")]
    except ValueError as err:
        raise ConfigError(f"--input {spec!r}: expected dimensions such as 1,3,224,224") from err
    if min(shape) < 1 or math.prod(shape) > _MOST_ELEMENTS:
        raise ConfigError(f"--input {spec!r}: expected positive dimensions and at most 2^31 elements")
    return shape, dtype


def make_input(shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return one made-up tensor: normal floats, bytes 0 to 255, or zeros and ones."""
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 256 if dtype is torch.uint8 else 2, shape, generator=generator, dtype=dtype)
