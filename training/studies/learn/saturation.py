"""The lesson `saturation`: tanh(5) and tanh(40), and how a norm keeps a layer away from both.

A norm takes any scale off its input, so what the units see does not depend on how large the inputs or weights are.
"""

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...drawing import BLUE, CYCLE, ORANGE, canvas, draw_runs
from ..tables import Spread
from .lesson import Figures, Finding, Lesson, Reading, Setting

SCALES = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0)
ROWS, FEATURES, UNITS = 512, 20, 50
FLAT = 0.01  # a slope of tanh, whose steepest is 1: |x| > 2.99


def layer(seed: int, *, norm: bool) -> tuple[nn.Sequential, Tensor]:
    """Return a linear layer, with a norm or not, and inputs of scale 1 for it."""
    torch.manual_seed(seed)
    linear, x = nn.Linear(FEATURES, UNITS, bias=False), torch.randn(ROWS, FEATURES)
    nn.init.normal_(linear.weight, std=1 / math.sqrt(FEATURES))  # outputs of deviation 1
    return nn.Sequential(linear, nn.BatchNorm1d(UNITS)) if norm else nn.Sequential(linear), x


def measure_at(network: nn.Sequential, x: Tensor) -> dict[str, float]:
    """Return `flat`, the share of tanh units with a slope below `FLAT`, and `slope`, the mean slope."""
    with torch.no_grad():
        slope = 1 - torch.tanh(network(x)).double().square()
    return {"flat": (slope < FLAT).double().mean().item(), "slope": slope.mean().item()}


def expected_flat(scale: float) -> float:
    """Return the share of units that are flat where they see normal values of deviation `scale`."""
    edge = math.atanh(math.sqrt(1 - FLAT))
    return math.erfc(edge / scale / math.sqrt(2))


def measure(setting: Setting) -> dict[str, Any]:
    """Return tanh and its slope at 5 and 40 in both precisions, and flat units by the scale of the inputs."""
    points = {
        f"{x:g}": {
            "float32": torch.tanh(torch.tensor(x)).item(),
            "float64": math.tanh(x),
            "slope": 1 / math.cosh(x) ** 2,
        }
        for x in (5.0, 40.0)
    }
    flat = {
        name: [
            [measure_at(network, scale * x) for scale in SCALES]
            for network, x in (layer(seed, norm=norm) for seed in range(setting.seeds))
        ]
        for name, norm in (("with BN", True), ("without", False))
    }
    return {"points": points, "scales": list(SCALES), "runs": flat}


def read(figures: Figures) -> Reading:
    """Return the printed numbers, and the shares of flat units beside the normal distribution's."""
    five, forty = figures["points"]["5"], figures["points"]["40"]
    share = {
        name: [Spread.of(run[at]["flat"] for run in runs) for at in range(len(figures["scales"]))]
        for name, runs in figures["runs"].items()
    }
    with_norm, without = share["with BN"][1:], share["without"]
    away = max(abs(each.mean - expected_flat(scale)) for each, scale in zip(without, figures["scales"], strict=True))
    moved = max(each.mean for each in with_norm) - min(each.mean for each in with_norm)
    findings = [
        Finding("tanh(5)", f"{five['float32']:.4f}, slope {five['slope']:.1e}", "0.9999",
                f"{five['float32']:.4f}" == "0.9999"),
        Finding("tanh(40)", f"{forty['float64']:.4f}, slope {forty['slope']:.1e}", "1, inputs are told apart no more",
                forty["float64"] == 1.0 == forty["float32"]),
        Finding(f"flat units at a scale of {figures['scales'][-1]:g}: without BN, with it",
                f"{without[-1].mean:.3f}, {with_norm[-1].mean:.3f}", "saturation is avoided",
                without[-1].mean > 0.9 and with_norm[-1].mean < 0.02),
        Finding("without BN: largest distance from P(|z| > 2.99 / scale)", f"{away:.4f}", "the normal distribution's",
                away < 0.02),
        Finding("with BN: change of the share over scales from 1 to 100", f"{moved:.1e}", "none: scale is taken off",
                moved < 1e-3),
    ]  # fmt: skip
    rows = [(name, *(f"{each.mean:.4f}" for each in spreads)) for name, spreads in share.items()]
    return Reading(findings, ("share of flat units", *(f"x {scale:g}" for scale in figures["scales"])), rows)


def draw(figures: Figures) -> Figure:
    """Return tanh with its slope and the two points, and flat units by scale."""
    figure, (curve, flat) = canvas(2)
    x = torch.linspace(-8, 8, 400, dtype=torch.float64)
    curve.plot(x, torch.tanh(x), color=BLUE, label="tanh(x)")
    curve.plot(x, 1 - torch.tanh(x).square(), color=ORANGE, label="its slope")
    curve.plot([5], [math.tanh(5)], "o", color="black")
    curve.annotate("tanh(5) = 0.9999\ntanh(40) = 1", (5, 1), (0.6, 0.35), arrowprops={"arrowstyle": "->"}, fontsize=8)
    curve.set(xlabel="x")
    curve.legend(fontsize=7, loc="upper left")
    for (name, runs), colour in zip(figures["runs"].items(), CYCLE, strict=False):
        draw_runs(flat, figures["scales"], [[each["flat"] for each in run] for run in runs], colour, name)
    flat.plot(
        figures["scales"], [expected_flat(scale) for scale in figures["scales"]], "k:", label="P(|z| > 2.99 / scale)"
    )
    flat.set(xlabel="scale of the inputs", ylabel="share of tanh units that are flat", xscale="log")
    flat.legend(fontsize=7)
    return figure


SATURATION = Lesson(
    "saturation", "tanh(5) = 0.9999 and tanh(40) = 1: a norm keeps sigmoid and tanh where they have a slope",
    measure, read, draw, seeds=5,
)  # fmt: skip
