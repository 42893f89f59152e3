"""The arithmetic of pixels, (pixel * scale - mean) / std: for the oracle in float64, and as factors for the graph."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foldserve.format.image_options import Normalisation

Floats = NDArray[np.float64]


def factors(wanted: Normalisation) -> tuple[Floats, Floats]:
    """Return what pixels are multiplied by and what is added then, (C,) each."""
    mean, std = np.array(wanted.mean, np.float64), np.array(wanted.std, np.float64)
    return wanted.scale / std, -mean / std


def normalised(pixels: NDArray[Any], wanted: Normalisation, channel_axis: int) -> Floats:
    """Return pixels (N, ...) as a network takes them, the channels along `channel_axis`."""
    shape = [1] * pixels.ndim
    shape[channel_axis] = -1
    factor, shift = (values.reshape(shape) for values in factors(wanted))
    return pixels * factor + shift


def is_identity(wanted: Normalisation) -> bool:
    """Return whether a network takes pixels as they are."""
    factor, shift = factors(wanted)
    return bool((factor == 1).all() and (shift == 0).all())
