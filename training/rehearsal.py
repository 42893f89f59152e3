"""Whether a network of the user's can go the whole way, found out before it is trained.

It runs on a few images what comes after the training: a network that cannot be folded or exported is refused at once.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from . import model_file
from .dataset import Interface, as_tensor, scale_pixels
from .errors import ConfigError, ExportError, FoldError
from .pipeline import PROOF_ROWS, fold_network


def rehearse(spec: str, network: nn.Module, interface: Interface, images: NDArray[np.uint8]) -> None:
    """Return when `network` gives logits for the images and can be folded and exported; it is left as it was.

    Args:
        spec: what made it, for messages.
        network: untrained.
        interface: that it has to have.
        images: uint8 (N, C, H, W), at least 2.

    Raises:
        ConfigError: it cannot; the message says at which step, and why.
    """
    twin = copy.deepcopy(network).eval()
    _check_logits(spec, twin, interface, images[:2])
    try:
        folded, _ = fold_network(twin, images[:PROOF_ROWS])
        model_file.export(folded, metadata={}, image_shape=interface.image_shape)
    except (FoldError, ExportError) as err:
        raise ConfigError(f"--network {spec}: it could be trained, but not published: {err}") from err


def _check_logits(spec: str, network: nn.Module, interface: Interface, images: NDArray[np.uint8]) -> None:
    expected = (len(images), interface.classes)
    try:
        with torch.no_grad():
            logits = network(scale_pixels(as_tensor(images)))
    except Exception as err:  # the user's code, whatever it raises
        raise ConfigError(
            f"--network {spec}: it does not take images {tuple(images.shape)} in [0, 1] ({type(err).__name__}: {err})"
        ) from err
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != expected:
        raise ConfigError(f"--network {spec}: it gives {shape}, expected logits {expected}, one for each class")
