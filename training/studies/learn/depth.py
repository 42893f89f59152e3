"""The lesson `depth`: gradients, updates and outputs of the layers of a deep network, with norms and without.

Every layer of sigmoids passes on at most a quarter of a gradient times the norm of its weights, so without norms the
layers near the input learn last, if at all.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...dataset import Tensors, scale_pixels
from ...drawing import CYCLE, canvas, draw_runs
from ...epoch import epoch_order
from ...fit import evaluate
from ..tables import Spread
from .lesson import Figures, Finding, Lesson, Reading, Setting

DEPTH, WIDTH = 8, 64  # hidden layers, and units in each
STEPS, BATCH, RATE = 300, 128, 0.5
TEST_ROWS = 4_000
STEEPEST = 0.25  # slope of a sigmoid at 0
KINDS = ("sigmoid", "sigmoid and BN", "ReLU, large weights", "ReLU, large weights and BN")
LARGE = 3.0  # deviation of the large weights, in units of the one that keeps the size of what ReLU passes on


def deep(kind: str, seed: int) -> nn.Sequential:
    """Return `DEPTH` hidden layers of `WIDTH` units for images (N, 1, 28, 28): linear, norm or not, activation."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for incoming, outgoing in pairwise([784] + [WIDTH] * DEPTH):
        linear = nn.Linear(incoming, outgoing)
        if kind.startswith("sigmoid"):
            nn.init.xavier_uniform_(linear.weight)
        else:
            nn.init.normal_(linear.weight, std=LARGE * math.sqrt(2 / incoming))
        layers.append(linear)
        if kind.endswith("BN"):
            layers.append(nn.BatchNorm1d(outgoing))
        layers.append(nn.Sigmoid() if kind.startswith("sigmoid") else nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def gradients(network: nn.Sequential, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Return of each linear layer, from the input on, what one batch gives.

    Args:
        network: in training mode.
        images: (N, 1, 28, 28) float32.
        labels: (N,) int64.

    Returns:
        `gradient`: norm of the loss's gradient by the layer's output; `by_weight`: by its weights; `norm`: the largest
        singular value of its weights; `mean` and `deviation`: of its output before any norm, over rows and units.
    """
    linears = [module for module in network if isinstance(module, nn.Linear)]
    outputs: list[Tensor] = []
    handles = [linear.register_forward_hook(lambda _m, _x, y: outputs.append(y)) for linear in linears]
    try:
        loss = F.cross_entropy(network(images), labels)
    finally:
        for handle in handles:
            handle.remove()
    by_output = torch.autograd.grad(loss, outputs, retain_graph=True)
    by_weight = torch.autograd.grad(loss, [linear.weight for linear in linears])
    return {
        "gradient": [_norm(each) for each in by_output],
        "by_weight": [_norm(each) for each in by_weight],
        "norm": [float(torch.linalg.matrix_norm(linear.weight.detach().double(), 2)) for linear in linears],
        "mean": [output.detach().double().mean().item() for output in outputs],
        "deviation": [output.detach().double().std().item() for output in outputs],
    }


def train_deep(kind: str, data: Tensors, seed: int, steps: int) -> dict[str, Any]:
    """Return what a training of `steps` steps did; it ends early when the loss is no number any more.

    Returns:
        `first`: before it, as `gradients` has it; `moved`: of each layer the distance that its weights went over their
        norm at first; `loss` of each step; `test`: accuracy at the end.
    """
    network = deep(kind, seed).train()
    weights = [module.weight for module in network if isinstance(module, nn.Linear)]
    before = [weight.detach().clone() for weight in weights]
    order, losses = epoch_order(len(data.train_labels), seed, 1), []
    fixed = order[:BATCH]
    first = gradients(network, scale_pixels(data.train_images[fixed]), data.train_labels[fixed])
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE if kind.startswith("sigmoid") else RATE / 50)
    for step in range(steps):
        rows = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        loss = F.cross_entropy(network(scale_pixels(data.train_images[rows])), data.train_labels[rows])
        if not torch.isfinite(loss):
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    moved = [_norm(weight.detach() - old) / _norm(old) for weight, old in zip(weights, before, strict=True)]
    test = evaluate(network, data.test_images[:TEST_ROWS], data.test_labels[:TEST_ROWS])
    return {"first": first, "moved": [_finite(each) for each in moved], "loss": losses, "test": test}


def measure(setting: Setting) -> dict[str, Any]:
    """Return for each kind of network what `train_deep` gives for each seed."""
    data, runs = setting.load().on(torch.device("cpu")), {}
    for kind in KINDS:
        steps = 5 if setting.quick else STEPS
        runs[kind] = [train_deep(kind, data, seed, steps) for seed in range(setting.seeds)]
        setting.tell(f"{kind}: done")
    return {"runs": runs}


def read(figures: Figures) -> Reading:
    """Return how much of the gradient reaches the first layer, beside its bound, and which layers moved."""
    reach = {kind: _geometric([run["first"]["gradient"][0] / run["first"]["gradient"][-1] for run in runs])
             for kind, runs in figures["runs"].items()}  # fmt: skip
    plain, norms, large, large_norms = (figures["runs"][kind] for kind in KINDS)
    bounds = [bound(run["first"]["norm"]) for run in plain]
    inside = all(
        run["first"]["gradient"][0] / run["first"]["gradient"][-1] <= limit
        for run, limit in zip(plain, bounds, strict=True)
    )
    uneven = {
        kind: _geometric([run["moved"][-1] / run["moved"][0] for run in figures["runs"][kind]]) for kind in KINDS[:2]
    }
    sizes = [_geometric([run["first"]["deviation"][DEPTH - 1] for run in runs]) for runs in (large, large_norms)]
    findings = [
        Finding("sigmoid: gradient at the first layer over that at the last", f"{reach[KINDS[0]]:.1e}",
                f"vanishes; at most the product of |W| / 4, {_geometric(bounds):.1e}", inside),
        Finding("the same with BN", f"{reach[KINDS[1]]:.2g}", "eased", reach[KINDS[1]] > 1000 * reach[KINDS[0]]),
        Finding("large weights: gradient at the first layer over that at the last", f"{reach[KINDS[2]]:.1e}",
                f"explodes, about {LARGE:g}^{DEPTH}", reach[KINDS[2]] > LARGE ** (DEPTH - 2)),
        Finding("the same with BN", f"{reach[KINDS[3]]:.2g}", "eased", reach[KINDS[3]] < reach[KINDS[2]] / 100),
        Finding("sigmoid: how far the last layer moved over the first, without and with BN",
                f"{uneven[KINDS[0]]:.0f}, {uneven[KINDS[1]]:.1f}", "near the output they learn faster",
                uneven[KINDS[0]] > 10 * uneven[KINDS[1]]),
        Finding("large weights: size of the last hidden layer's output, without and with BN",
                f"{sizes[0]:.0f}, {sizes[1]:.1f}", "outputs stay balanced", sizes[0] > 100 * sizes[1]),
        Finding("sigmoid: test accuracy without and with BN",
                f"{_mean_test(plain):.3f}, {_mean_test(norms):.3f}", "learns with BN",
                _mean_test(norms) > _mean_test(plain) + 0.1),
        Finding("large weights: trainings that end before their last step, without and with BN",
                f"{_broken(large)} and {_broken(large_norms)} of {len(large)}", "without BN they break off",
                _broken(large) > _broken(large_norms)),
    ]  # fmt: skip
    rows = [
        (kind, *(f"{_geometric([run['first']['gradient'][at] for run in runs]):.1e}" for at in range(DEPTH + 1)))
        for kind, runs in figures["runs"].items()
    ]
    return Reading(findings, ("gradient by the output of layer", *range(1, DEPTH + 2)), rows)


def bound(norms: list[float]) -> float:
    """Return how much of a gradient can get from the last layer to the first: the product of norm · 1/4 behind it."""
    return math.prod(STEEPEST * norm for norm in norms[1:])


def draw(figures: Figures) -> Figure:
    """Return gradients by depth, movement by depth, size of outputs by depth, and the loss."""
    figure, (first, moved, size, loss) = canvas(4, width=3.7)
    numbers = list(range(1, DEPTH + 2))
    for (kind, runs), colour in zip(figures["runs"].items(), CYCLE, strict=False):
        draw_runs(first, numbers, [run["first"]["gradient"] for run in runs], colour, kind)
        draw_runs(moved, numbers, [run["moved"] for run in runs], colour, kind)
        draw_runs(size, numbers, [run["first"]["deviation"] for run in runs], colour, kind)
        for run in runs:
            loss.plot(run["loss"], color=colour, alpha=0.4, linewidth=0.7)
    first.set(xlabel="layer, from the input", ylabel="gradient by its output, before training", yscale="log")
    moved.set(xlabel="layer", ylabel="weights moved by, relative", yscale="log", ylim=(1e-6, 1e3))
    size.set(xlabel="layer", ylabel="deviation of its output, before training", yscale="log")
    loss.set(xlabel="step", ylabel="loss", yscale="log", ylim=(0.3, 30.0))
    first.legend(fontsize=6)
    return figure


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))


def _geometric(values: list[float]) -> float:
    """Return the geometric mean, which figures over many powers of ten need."""
    return math.exp(math.fsum(math.log(max(value, 1e-300)) for value in values) / len(values))


def _broken(runs: list[Any]) -> int:
    return sum(len(run["loss"]) < STEPS for run in runs)


def _mean_test(runs: list[Any]) -> float:
    return Spread.of(run["test"] for run in runs).mean


def _finite(value: float) -> float:
    """Return `value`, or 1e38 in the place of what overflowed, which JSON has no word for."""
    return value if math.isfinite(value) else 1e38


DEEP = Lesson(
    "depth",
    "without BN gradients vanish or explode with depth and layers near the output learn faster; BN keeps them balanced",
    measure,
    read,
    draw,
    seeds=5,
)
