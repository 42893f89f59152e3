"""Networks that differ from BN-LeNet in one thing each, made by rearranging its layers.

They exist for `compare` alone: nothing here is exported or served.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

DROPOUT = 0.5  # share of the classifier's hidden units; what the book and its readers put in a norm's place


class ShiftingNoise(nn.Module):
    """Noise of a mean and a size that are drawn anew for every channel at every step: covariate shift on purpose.

    In training each channel c gets m_c + s_c·z added, m_c uniform in ±`shift`, s_c uniform in 0 to `scale`, z normal
    for every value; in evaluation nothing. After a norm it undoes what the norm is said to be for, and leaves what it
    does to the loss surface.

    Source: Santurkar, Tsipras, Ilyas, Madry 2018 (arXiv:1805.11604), section 2.2.
    """

    def __init__(self, shift: float = 0.5, scale: float = 1.25) -> None:
        super().__init__()
        self.shift = shift
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (N, C, ...) with noise in training and unchanged in evaluation."""
        if not self.training:
            return x
        per_channel = (1, x.shape[1], *(1 for _ in x.shape[2:]))
        mean = x.new_empty(per_channel).uniform_(-self.shift, self.shift)
        size = x.new_empty(per_channel).uniform_(0.0, self.scale)
        return x + mean + size * torch.randn_like(x)


def norms_after_activations(model: nn.Sequential) -> nn.Sequential:
    """Return `model` with each norm after the sigmoid that followed it; the layers are moved, not copied."""
    layers = list(model.named_children())
    places = [at for at, (name, _) in enumerate(layers) if name.startswith("norm")]
    for at in places:
        layers[at], layers[at + 1] = layers[at + 1], layers[at]
    return nn.Sequential(OrderedDict(layers))


def noise_after_norms(model: nn.Sequential) -> nn.Sequential:
    """Return `model` with `ShiftingNoise` after each norm."""
    return _with_added(model, "norm", "noise", ShiftingNoise)


def dropout_in_classifier(model: nn.Sequential) -> nn.Sequential:
    """Return `model` with dropout after the two sigmoids between linear layers."""
    sigmoids = ("sigmoid3", "sigmoid4")
    return _with_added(model, sigmoids, "dropout", lambda: nn.Dropout(DROPOUT))


def _with_added(
    model: nn.Sequential, after: str | tuple[str, ...], kind: str, make: Callable[[], nn.Module]
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in model.named_children():
        layers[name] = layer
        if name.startswith(after):
            layers[f"{kind}{name[-1]}"] = make()
    return nn.Sequential(layers)
