"""A fold of the book's network written out by hand in NumPy, independent of `foldserve.training.fold`."""

import copy

import numpy as np
import torch
from torch import nn

from foldserve.training.dataset import PIXEL_SCALE
from foldserve.training.model import lenet

PAIRS = (("conv1", "norm1"), ("conv2", "norm2"), ("dense1", "norm3"), ("dense2", "norm4"))


def trained_like_lenet(seed: int = 0) -> nn.Sequential:
    """Return BN-LeNet in eval mode with statistics and affine far from the identity that a fresh norm is."""
    generator = torch.Generator().manual_seed(seed)
    network = lenet()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * 0.3
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.3, 2.0),
                (layer.weight.data, -1.5, 1.5),
                (layer.bias.data, -0.5, 0.5),
            ):
                tensor.uniform_(low, high, generator=generator)
    return network.eval()


def fold_by_hand(network: nn.Sequential) -> nn.Sequential:
    """Return the network without norms, for pixels in 0..255, each parameter rounded once from float64."""
    folded = copy.deepcopy(network)
    for layer_name, norm_name in PAIRS:
        layer, norm = getattr(folded, layer_name), getattr(folded, norm_name)
        mean, variance, gamma, beta = (
            tensor.detach().double().numpy() for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        scale = gamma / np.sqrt(variance + norm.eps)
        weight = layer.weight.detach().double().numpy() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        bias = (layer.bias.detach().double().numpy() - mean) * scale + beta
        if layer_name == "conv1":
            weight = weight / PIXEL_SCALE
        layer.weight.data, layer.bias.data = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
        setattr(folded, norm_name, nn.Identity())
    return folded.eval()
