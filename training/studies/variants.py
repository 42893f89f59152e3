"""Networks that differ from BN-LeNet in one thing each, made by rearranging its layers.

They exist for `compare` and `learn` alone: nothing here is exported or served.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..batchnorm import BatchNormLayer

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


def norms_on_inputs(model: nn.Sequential) -> nn.Sequential:
    """Return `model`, which has none, with a norm of PyTorch's on the input of each convolution and linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d):
            layers[f"norm_{name}"] = nn.BatchNorm2d(layer.in_channels)
        elif isinstance(layer, nn.Linear):
            layers[f"norm_{name}"] = nn.BatchNorm1d(layer.in_features)
        layers[name] = layer
    return nn.Sequential(layers)


def layer_norms(model: nn.Sequential) -> nn.Sequential:
    """Return `model`, which has none, with Layer Normalization before each sigmoid.

    Statistics are those of one image over all channels and positions; gamma and beta are one for each channel, so that
    it has as many parameters as with batch normalization.

    Source: Ba, Kiros, Hinton 2016 (arXiv:1607.06450); for convolutions Wu and He 2018 (arXiv:1803.08494), one group.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 0
    for name, layer in model.named_children():
        if isinstance(layer, nn.Sigmoid):
            layers[f"norm{name[-1]}"] = nn.GroupNorm(1, channels)
        layers[name] = layer
        if isinstance(layer, nn.Conv2d | nn.Linear):
            channels = layer.weight.shape[0]
    return nn.Sequential(layers)


def only_norms(model: nn.Sequential, kept: str) -> nn.Sequential:
    """Return `model` with those norms alone whose number stands in `kept`, such as `13`."""
    return nn.Sequential(
        OrderedDict(
            (name, layer) for name, layer in model.named_children() if not name.startswith("norm") or name[-1] in kept
        )
    )


def fixed_affines(model: nn.Sequential) -> nn.Sequential:
    """Return `model` whose norms learn neither gamma nor beta: they stay 1 and 0."""
    for name, layer in model.named_children():
        if name.startswith("norm"):
            layer.requires_grad_(False)
    return model


def without_redundant_biases(model: nn.Sequential) -> nn.Sequential:
    """Return `model` whose convolutions and linear layers before a norm have no bias: the norm takes it off anyway."""
    layers = list(model.children())
    for layer, following in pairwise(layers):
        if isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(following, BatchNormLayer):
            layer.bias = None
    return model


def _with_added(
    model: nn.Sequential, after: str | tuple[str, ...], kind: str, make: Callable[[], nn.Module]
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in model.named_children():
        layers[name] = layer
        if name.startswith(after):
            layers[f"{kind}{name[-1]}"] = make()
    return nn.Sequential(layers)
