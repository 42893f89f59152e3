"""Whether a network of the user's can go the whole way, found out before it is trained.

It runs on a few images what a training does and what comes after it: a network that cannot be trained, folded or
exported is refused at once.
"""

import copy
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from . import model_file
from .batchnorm import BatchNormLayer
from .dataset import Interface, as_tensor, scale_pixels
from .errors import ConfigError, TrainingError
from .pipeline import PROOF_ROWS, fold_network
from .statistics import population_statistics
from .user_model.foreign import cause, foreign_code, place


def rehearse(spec: str, network: nn.Module, interface: Interface, images: NDArray[np.uint8]) -> None:
    """Return when `network` can be trained a step on the images, folded and exported; it is left as it was.

    Args:
        spec: what made it, for messages.
        network: untrained.
        interface: that it has to have.
        images: uint8 (N, C, H, W), at least 2.

    Raises:
        ConfigError: it cannot; the message says at which step, and why.
    """
    images = images[:PROOF_ROWS]
    twin = copy.deepcopy(network)
    with torch.no_grad():
        _logits(spec, twin.eval(), interface, images[:2])
        _fill_zeros(twin)
    _check_step(spec, copy.deepcopy(network).train(), interface, images)
    try:
        if any(isinstance(module, BatchNormLayer) for module in twin.modules()):
            population_statistics(twin, as_tensor(images))
        folded, _ = fold_network(twin, images)
        model_file.export(folded, metadata={}, image_shape=interface.image_shape)
    except TrainingError as err:
        raise ConfigError(f"--network {spec}: it could be trained, but not published: {err}") from err


def _logits(spec: str, network: nn.Module, interface: Interface, images: NDArray[np.uint8]) -> Tensor:
    mode = "in training mode" if network.training else "in evaluation mode"
    with _refused(spec, f"{mode} it does not take images {tuple(images.shape)} in [0, 1]"):
        logits: Tensor = network(scale_pixels(as_tensor(images)))
    expected = (len(images), interface.classes)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != expected:
        raise ConfigError(f"--network {spec}: {mode} it gives {shape}, expected logits {expected}, one for each class")
    return logits


def _fill_zeros(network: nn.Module) -> None:
    """Draw the parameters that start at 0, as many a last layer does: where all outputs are 0 a fold proves nothing."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)


def _check_step(spec: str, network: nn.Module, interface: Interface, images: NDArray[np.uint8]) -> None:
    """Go forward and back once, as a step of the training does.

    Raises:
        ConfigError: that fails, or there is nothing to train.
    """
    with torch.random.fork_rng(devices=[]):  # dropout draws
        logits = _logits(spec, network, interface, images)
        if not logits.requires_grad:
            parameters = list(network.parameters())
            frozen = sum(not parameter.requires_grad for parameter in parameters)
            raise ConfigError(
                f"--network {spec}: there is nothing to train: {frozen} of its {len(parameters)} parameters are frozen "
                "(requires_grad=False), and its logits depend on none of the others; let some be trained, or publish "
                "the network as it is with `foldserve publish`"
            )
        with _refused(spec, "no gradients can be computed"):
            F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]


def _refused(spec: str, what: str) -> AbstractContextManager[None]:
    return foreign_code(lambda err: ConfigError(f"--network {spec}: {what}: it {cause(err)}{place(err)}"))
