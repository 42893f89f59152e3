"""ResNets of growing depth for the folding benchmark, as a PyTorch module and as an ONNX graph of the same layers.

Built here and nowhere else: a residual network as published (He et al. 2015, arXiv:1512.03385), its norms with
statistics that are not the identity.
"""

from typing import Any

import numpy as np

from tests.support.onnx_cases.net import Net

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}


def torch_resnet(stages: tuple[int, ...], width: int) -> Any:
    """A residual network of bottlenecks (basic blocks for depth 18), with norms that are not the identity."""
    import torch
    from torch import nn

    basic = stages == STAGES[18]

    class Block(nn.Module):
        def __init__(self, inside: int, middle: int, stride: int):
            super().__init__()
            outside = middle if basic else middle * 4
            kernels = [(3, stride), (3, 1)] if basic else [(1, 1), (3, stride), (1, 1)]
            layers: list[nn.Module] = []
            channels = inside
            for i, (kernel, step) in enumerate(kernels):
                out = outside if i == len(kernels) - 1 else middle
                layers += [
                    nn.Conv2d(channels, out, kernel, step, kernel // 2, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                ]
                channels = out
            self.body = nn.Sequential(*layers[:-1])
            plain = stride == 1 and inside == outside
            short = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
            self.short: nn.Module = nn.Identity() if plain else short
            self.act = nn.ReLU()
            self.outside = outside

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.body(x) + self.short(x))

    torch.manual_seed(0)
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks: list[nn.Module] = []
    channels = width
    for i, count in enumerate(stages):
        for j in range(count):
            blocks.append(Block(channels, width * 2**i, 2 if i and not j else 1))
            channels = blocks[-1].outside  # type: ignore[assignment]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    model = nn.Sequential(*stem, *blocks, *head)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


class OnnxResNet:
    """The same network written as an ONNX graph."""

    def __init__(self, stages: tuple[int, ...], width: int, size: int):
        self.net = Net(rng=np.random.default_rng(0))
        self.basic = stages == STAGES[18]
        value = self.net.input("x", "N", 3, size, size)
        value = self.net.node("Relu", [self.conv_norm(value, 3, width, 7, 2)])
        value = self.net.node("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        channels = width
        for i, count in enumerate(stages):
            for j in range(count):
                value, channels = self.block(value, channels, width * 2**i, 2 if i and not j else 1)
        flat = self.net.node("Flatten", [self.net.node("GlobalAveragePool", [value])])
        weight, bias = self.net.constant("fc_w", channels, 1000, scale=0.02), self.net.constant("fc_b", 1000)
        self.net.output(self.net.node("Gemm", [flat, weight, bias], "y"))
        self.model = self.net.model()

    def conv_norm(self, value: str, inside: int, outside: int, kernel: int, stride: int) -> str:
        """Add a convolution without bias and its norm."""
        scale = (inside * kernel * kernel) ** -0.5
        weight = self.net.constant(f"w{len(self.net.nodes)}", outside, inside, kernel, kernel, scale=scale)
        value = self.net.node("Conv", [value, weight], strides=[stride] * 2, pads=[kernel // 2] * 4)
        return self.net.norm(value, outside)

    def block(self, value: str, inside: int, middle: int, stride: int) -> tuple[str, int]:
        """Add a residual block and return its output and channels."""
        outside = middle if self.basic else middle * 4
        kernels = [(3, stride), (3, 1)] if self.basic else [(1, 1), (3, stride), (1, 1)]
        body, channels = value, inside
        for i, (kernel, step) in enumerate(kernels):
            body = self.net.node("Relu", [body]) if i else body
            out = outside if i == len(kernels) - 1 else middle
            body, channels = self.conv_norm(body, channels, out, kernel, step), out
        short = value if stride == 1 and inside == outside else self.conv_norm(value, inside, outside, 1, stride)
        return self.net.node("Relu", [self.net.node("Add", [body, short])]), outside
