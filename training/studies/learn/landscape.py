"""The lesson `landscape`: how smooth loss and gradient are along a step of a small VGG: plain, with BN, with noisy BN.

At points of a training the loss and its gradient are looked at along the gradient: how far the loss ranges, how far
the gradient moves, and the largest ratio of the latter to the distance, which is a smoothness constant on that line.

Source: Santurkar, Tsipras, Ilyas, Madry 2018 (arXiv:1805.11604), section 3.1 and figure 4.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...dataset import Tensors, scale_pixels
from ...drawing import CYCLE, canvas
from ...epoch import epoch_order
from ..tables import Spread
from ..variants import ShiftingNoise
from .lesson import Figures, Finding, Lesson, Reading, Setting

KINDS = ("plain", "BN", "noisy BN")
STEPS, EVERY, BATCH, RATE = 120, 8, 64, 0.1
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # of a look along the gradient, in learning rates
EARLIEST = 8  # before it the networks have learnt nothing and all losses are alike


def vgg(kind: str, seed: int) -> nn.Sequential:
    """Return blocks of two 3x3 convolutions and maximum pooling, as VGG has, for (N, 1, 28, 28): 8, 16, 32 channels."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.AvgPool2d(2)]  # 14 x 14 are enough, and four times as quick
    channels = 1
    for width in (8, 16, 32):
        for _ in range(2):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight)  # else the plain one does not learn, and shows nothing
            layers.append(conv)
            if kind != "plain":
                layers.append(nn.BatchNorm2d(width))
            if kind == "noisy BN":
                layers.append(ShiftingNoise())
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


def along_gradient(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], lengths: Sequence[float]
) -> dict[str, list[float]]:
    """Return loss and gradient at points along the steepest descent; the parameters end where they were.

    Args:
        loss: of the parameters as they are.
        parameters: leaves that require gradients.
        lengths: how many gradients to go from where they are.

    Returns:
        `loss` at each point; `moved`: distance of the gradient there from the one at the start; `smoothness`: that over
        the distance of the points.
    """
    start = [parameter.detach().clone() for parameter in parameters]
    here = torch.autograd.grad(loss(), parameters)
    size = _norm(here)
    found: dict[str, list[float]] = {"loss": [], "moved": [], "smoothness": []}
    for length in lengths:
        with torch.no_grad():
            for parameter, origin, gradient in zip(parameters, start, here, strict=True):
                parameter.copy_(origin - length * gradient)
        value = loss()
        there = torch.autograd.grad(value, parameters)
        moved = _norm([one - other for one, other in zip(there, here, strict=True)])
        found["loss"].append(value.item())
        found["moved"].append(moved)
        found["smoothness"].append(moved / (length * size))
    with torch.no_grad():
        for parameter, origin in zip(parameters, start, strict=True):
            parameter.copy_(origin)
    return found


def look(kind: str, data: Tensors, seed: int, steps: int) -> dict[str, Any]:
    """Return the losses of a training of `steps` steps, and what `along_gradient` gives at every few of them."""
    network = vgg(kind, seed).train()
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=RATE)
    order, losses, looks = epoch_order(len(data.train_labels), seed, 1), [], []
    for step in range(steps):
        rows = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        images, labels = scale_pixels(data.train_images[rows]), data.train_labels[rows]

        def loss(images: Tensor = images, labels: Tensor = labels, noise: int = seed * steps + step) -> Tensor:
            torch.manual_seed(noise)  # the same noise at every point of a line
            return F.cross_entropy(network(images), labels)

        if step >= min(EARLIEST, steps - 1) and step % EVERY == 0:
            looks.append({"step": step, **along_gradient(loss, parameters, [RATE * length for length in LENGTHS])})
        value = loss()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value.item())
    return {"loss": losses, "looks": looks}


def measure(setting: Setting) -> dict[str, Any]:
    """Return for each kind of network what `look` gives for each seed."""
    data, runs = setting.load().on(torch.device("cpu")), {}
    for kind in KINDS:
        runs[kind] = [
            look(kind, data, seed, 2 * EVERY + 1 if setting.quick else STEPS) for seed in range(setting.seeds)
        ]
        setting.tell(f"{kind}: done")
    return {"lengths": list(LENGTHS), "runs": runs}


def summary(runs: Sequence[Any]) -> dict[str, Spread]:
    """Return over the seeds: range of the loss on a line, movement of the gradient, smoothness, and the last loss.

    Of each line the largest value counts, of each training the median line: a mean would be that of the worst.
    """
    return {
        "range": Spread.of(_median(max(each["loss"]) - min(each["loss"]) for each in run["looks"]) for run in runs),
        "moved": Spread.of(_median(max(each["moved"]) for each in run["looks"]) for run in runs),
        "smoothness": Spread.of(_median(max(each["smoothness"]) for each in run["looks"]) for run in runs),
        "loss": Spread.of(sum(run["loss"][-20:]) / len(run["loss"][-20:]) for run in runs),
    }


def read(figures: Figures) -> Reading:
    """Return how smooth each network is beside the plain one."""
    found = {kind: summary(runs) for kind, runs in figures["runs"].items()}
    plain, norms, noisy = found.values()
    findings = [
        Finding(f"{what}, plain over BN", f"{plain[key].mean / norms[key].mean:.1f}", "smoother with BN",
                plain[key].mean > norms[key].mean)
        for key, what in (("range", "range of the loss"), ("moved", "movement of the gradient"),
                          ("smoothness", "smoothness constant"))
    ]  # fmt: skip
    findings.append(
        Finding("loss of the last 20 steps: plain, BN, noisy BN",
                ", ".join(f"{each['loss'].mean:.3f}" for each in found.values()),
                "noisy BN trains better than plain", noisy["loss"].mean < plain["loss"].mean)
    )  # fmt: skip
    rows = [
        (kind, *(each[key].text(3) for key in ("range", "moved", "smoothness", "loss"))) for kind, each in found.items()
    ]
    return Reading(findings, ("network", "range of the loss", "gradient moved", "smoothness", "last loss"), rows)


def draw(figures: Figures) -> Figure:
    """Return the loss, its range along the gradient, the gradient's movement and the smoothness constant, by step."""
    figure, axes = canvas(4, width=3.7)
    for (kind, runs), colour in zip(figures["runs"].items(), CYCLE, strict=False):
        losses = torch.tensor([run["loss"] for run in runs]).mean(0)
        axes[0].plot(losses, color=colour, label=f"{kind} (n = {len(runs)})")
        steps = [each["step"] for each in runs[0]["looks"]]
        low, high = (
            [_middle([pick(run["looks"][at]["loss"]) for run in runs]) for at in range(len(steps))]
            for pick in (min, max)
        )
        axes[1].fill_between(steps, low, high, color=colour, alpha=0.35)
        for cell, key in ((axes[2], "moved"), (axes[3], "smoothness")):
            values = [_middle([max(run["looks"][at][key]) for run in runs]) for at in range(len(steps))]
            cell.plot(steps, values, ".-", color=colour)
    axes[0].set(ylabel="loss")
    axes[0].legend(fontsize=7)
    axes[1].set(ylabel="range of the loss along the gradient", yscale="log")
    axes[2].set(ylabel="largest distance of the gradients", yscale="log")
    axes[3].set(ylabel="the same over the distance gone", yscale="log")
    for cell in axes:
        cell.set(xlabel="step")
    return figure


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(math.fsum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def _median(values: Any) -> float:
    return _middle(list(values))


def _middle(values: Sequence[float]) -> float:
    held = sorted(values)
    return (held[(len(held) - 1) // 2] + held[len(held) // 2]) / 2


LANDSCAPE = Lesson(
    "landscape",
    "with BN loss and gradient are smoother along a step, and noisy BN trains too (a small VGG)",
    measure,
    read,
    draw,
    seeds=5,
)
