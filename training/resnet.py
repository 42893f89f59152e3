"""A small residual network for colour pictures: three stages of one block, a norm after each convolution.

It builds untrained modules; what is trained, and how, is the recipe's.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from .norm_layer import norm_layer

WIDTHS = (16, 32, 64)
LARGEST_UNREDUCED = 48  # pixels of a side up to which the first convolution looks at every pixel


class ResidualBlock(nn.Module):
    """Two convolutions with their norms, beside a way past them.

    Args:
        incoming: channels of the input.
        outgoing: channels of the output.
        stride: of the first convolution; 2 halves the sides.
        norm: `torch`, `scratch` or `none`.
        variance: as in a recipe.

    Source: He et al. 2015 (arXiv:1512.03385), figure 2 and section 4.2.
    """

    def __init__(self, incoming: int, outgoing: int, stride: int, norm: str, variance: str) -> None:
        super().__init__()
        self.first = convolution(incoming, outgoing, 3, stride, norm, variance)
        self.second = convolution(outgoing, outgoing, 3, 1, norm, variance)
        same = stride == 1 and incoming == outgoing
        self.past = None if same else convolution(incoming, outgoing, 1, stride, norm, variance)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outgoing, H / stride, W / stride) for `x` (N, incoming, H, W)."""
        y = self.second(F.relu(self.first(x)))
        return F.relu(y + (x if self.past is None else self.past(x)))


class MeanOverPositions(nn.Module):
    """The mean of each channel: (N, C, H, W) to (N, C), whatever the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C)."""
        return x.mean((2, 3))


def resnet_small(
    image_shape: tuple[int, int, int], classes: int, *, norm: str = "torch", variance: str = "unbiased"
) -> nn.Sequential:
    """Return the network: images (N, C, H, W) in [0, 1] to logits (N, classes); any size of image.

    78,042 parameters for 3 x 32 x 32 and 10 classes. Images with a side above 48 pixels are halved by the first
    convolution.

    Args:
        image_shape: channels, height and width.
        classes: how many.
        norm: `torch`, `scratch` or `none`.
        variance: as in a recipe.

    Raises:
        ConfigError: another norm.
    """
    stride = 1 if max(image_shape[1:]) <= LARGEST_UNREDUCED else 2
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=convolution(image_shape[0], WIDTHS[0], 3, stride, norm, variance), relu=nn.ReLU()
    )
    incoming = WIDTHS[0]
    for number, width in enumerate(WIDTHS, start=1):
        layers[f"block{number}"] = ResidualBlock(incoming, width, 1 if number == 1 else 2, norm, variance)
        incoming = width
    layers["mean"] = MeanOverPositions()
    layers["dense"] = nn.Linear(incoming, classes)
    model = nn.Sequential(layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def convolution(incoming: int, outgoing: int, kernel: int, stride: int, norm: str, variance: str) -> nn.Sequential:
    """Return a convolution that keeps the sides, or divides them by `stride`, with its norm; a bias without one."""
    layer = norm_layer(norm, outgoing, 4, variance)
    conv = nn.Conv2d(incoming, outgoing, kernel, stride, padding=kernel // 2, bias=layer is None)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if layer is not None:
        layers["norm"] = layer
    return nn.Sequential(layers)
