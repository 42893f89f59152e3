"""Small networks in the style of well-known ones, with how many norms must fold and how many must stay."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.fold_cases import Forward, randomise


def lenet() -> nn.Module:
    """The book's LeNet, concise."""
    return nn.Sequential(
        *[nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.Sigmoid(), nn.AvgPool2d(2)],
        *[nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten()],
        *[nn.Linear(256, 120), nn.BatchNorm1d(120), nn.Sigmoid()],
        *[nn.Linear(120, 84), nn.BatchNorm1d(84), nn.Sigmoid(), nn.Linear(84, 10)],
    )


def book_batch_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled():
        axes = (0,) if x.ndim == 2 else (0, 2, 3)
        batch_mean = x.mean(axes, keepdim=True)
        batch_var = ((x - batch_mean) ** 2).mean(axes, keepdim=True)
        normalised = (x - batch_mean) / torch.sqrt(batch_var + eps)
        mean, var = 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var
    else:
        normalised = (x - mean) / torch.sqrt(var + eps)
    return gamma * normalised + beta, mean.data, var.data


class BookNorm(nn.Module):
    """Batch normalization as the book's readers write it: plain-tensor statistics, mode by is_grad_enabled."""

    def __init__(self, channels: int, num_dims: int):
        super().__init__()
        shape = (1, channels) if num_dims == 2 else (1, channels, 1, 1)
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))
        self.moving_mean = torch.randn(shape)
        self.moving_var = torch.rand(shape) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.moving_mean.device != x.device:
            self.moving_mean = self.moving_mean.to(x.device)
            self.moving_var = self.moving_var.to(x.device)
        y, self.moving_mean, self.moving_var = book_batch_norm(
            x, self.gamma, self.beta, self.moving_mean, self.moving_var, 1e-5
        )
        return y


def book_lenet() -> nn.Module:
    """The book's LeNet with its own norm."""
    return nn.Sequential(
        *[nn.Conv2d(1, 6, 5), BookNorm(6, 4), nn.Sigmoid(), nn.AvgPool2d(2)],
        *[nn.Conv2d(6, 16, 5), BookNorm(16, 4), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten()],
        *[nn.Linear(256, 120), BookNorm(120, 2), nn.Sigmoid()],
        *[nn.Linear(120, 84), BookNorm(84, 2), nn.Sigmoid(), nn.Linear(84, 10)],
    )


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3, self.relu, self.downsample = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnext() -> nn.Module:
    stem = [nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks = [Bottleneck(8, 8, 16, groups=4), Bottleneck(16, 8, 16, groups=4), Bottleneck(16, 8, 32, 2, groups=8)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


class DenseLayer(nn.Module):
    """BN-ReLU-conv twice: the first norm reads what others read too, the second stands behind the first conv."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 8, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))], 1)


def densenet() -> nn.Module:
    layers = [DenseLayer(6, 4), DenseLayer(10, 4), nn.BatchNorm2d(14), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), *layers, nn.Conv2d(14, 5, 1))


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.block = nn.Sequential(
            *[nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden, eps=1e-3), nn.Hardswish(inplace=True)],
            *[nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden, eps=1e-3)],
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, 4, 1), nn.ReLU(), nn.Conv2d(4, hidden, 1))
        self.tail = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels, eps=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.block(x), inplace=True)
        return x + self.tail(y * F.hardsigmoid(self.gate(y)))


def mobilenet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(), InvertedResidual(8, 16))


def inception() -> nn.Module:
    def unit(inputs: int, outputs: int, **options: int) -> nn.Module:
        conv, bn = nn.Conv2d(inputs, outputs, bias=False, **options), nn.BatchNorm2d(outputs, eps=1e-3)
        return Forward(lambda m, x: F.relu(m.bn(m.conv(x)), inplace=True), conv=conv, bn=bn)

    return Forward(
        lambda m, x: torch.cat([m.a(x), m.c(m.b(x)), F.avg_pool2d(m.d(x), 3, 1, 1), F.max_pool2d(m.a(x), 3, 1, 1)], 1),
        a=unit(3, 4, kernel_size=1),
        b=unit(3, 4, kernel_size=1),
        c=unit(4, 5, kernel_size=3, padding=1),
        d=unit(3, 2, kernel_size=1),
    )


def shared_heads() -> nn.Module:
    """EfficientDet's head: one convolution for all levels, a norm of its own for each."""
    return Forward(
        lambda m, x: [F.silu(bn(m.conv(x[:, :, ::step, ::step]))) for step, bn in zip((1, 2, 4), m.norms, strict=True)],
        conv=nn.Conv2d(3, 4, 3, padding=1),
        norms=nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3)),
    )


def dcgan() -> nn.Module:
    return nn.Sequential(
        *[nn.ConvTranspose2d(6, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU(True)],
        *[nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False, groups=2), nn.BatchNorm2d(8), nn.ReLU(True)],
        *[nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()],
    )


def vocoder() -> nn.Module:
    weight_norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        *[weight_norm(nn.Conv1d(4, 8, 7, padding=3)), nn.BatchNorm1d(8), nn.LeakyReLU(0.1)],
        *[weight_norm(nn.ConvTranspose1d(8, 4, 8, 4, 2)), nn.BatchNorm1d(4), nn.LeakyReLU(0.1)],
        *[nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.BatchNorm1d(4, eps=1e-3), nn.Tanh()],
    )


def pointnet() -> nn.Module:
    return Forward(
        lambda m, x: m.head(m.points(x).amax(2)),
        points=nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 1), nn.BatchNorm1d(16)),
        head=nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)),
    )


class LinearNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear, self.bn = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


def levit() -> nn.Module:
    head = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    body = nn.Sequential(LinearNorm(6, 8), nn.Hardswish(), LinearNorm(8, 8))
    return Forward(lambda m, x: m.head(F.hardswish(m.body(x)).mean(1)), body=body, head=head)


def preactivation() -> nn.Module:
    """Norm, ReLU, padded conv around an identity: only norms directly behind a conv go."""
    return Forward(
        lambda m, x: (y := m.stem(x)) + m.conv2(F.relu(m.bn2(m.conv1(F.relu(m.bn1(y)))))),
        stem=nn.Conv2d(3, 6, 3),
        bn1=nn.BatchNorm2d(6),
        conv1=nn.Conv2d(6, 6, 3, padding=1),
        bn2=nn.BatchNorm2d(6),
        conv2=nn.Conv2d(6, 6, 3, padding=1),
    )


def video() -> nn.Module:
    """(2+1)-D convolutions."""
    return nn.Sequential(
        *[nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(4), nn.ReLU(True)],
        *[nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0), bias=False), nn.BatchNorm3d(4), nn.ReLU(True)],
    )


# name: (network, shape of its input, norms that fold, codes of those that stay)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, tuple[str, ...]]] = {
    "lenet": (lenet, (2, 1, 28, 28), 4, ()),
    "book lenet": (book_lenet, (2, 1, 28, 28), 4, ()),
    "resnext": (resnext, (1, 3, 32, 32), 12, ()),
    "densenet": (densenet, (2, 3, 9, 9), 3, ("multi-use",) * 3),
    "mobilenet": (mobilenet, (2, 3, 16, 16), 4, ()),
    "inception": (inception, (2, 3, 9, 9), 5, ()),
    "shared heads": (shared_heads, (2, 3, 16, 16), 0, ("shared",) * 3),
    "dcgan": (dcgan, (2, 6, 1, 1), 2, ()),
    "vocoder": (vocoder, (2, 4, 20), 3, ()),
    "pointnet": (pointnet, (3, 3, 12), 3, ()),
    "levit": (levit, (2, 5, 6), 3, ()),
    "preactivation": (preactivation, (2, 3, 9, 9), 1, ("multi-use",)),
    "video": (video, (1, 2, 4, 8, 8), 2, ()),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(NETWORKS[name][0]())
