"""The lesson `layer-norm`: Layer Normalization beside batch normalization, and why the one can be folded.

In evaluation a batch norm is an affine map with constants, so it can go into the weights before it. Layer Normalization
divides by the deviation of the very row it is given, which is no affine map, so nothing constant can take its place.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...fold import fold
from ...model import lenet
from ..variants import layer_norms
from .lesson import Figures, Finding, Lesson, Reading, Setting
from .trained import book_arm, compared, draw_arms, measure_arms, table

BN, LAYER, NONE = "BN", "Layer Normalization", "no norm"
ARMS = {
    BN: book_arm("lenet"),
    LAYER: book_arm("layer-norm", norm="none"),
    NONE: book_arm("lenet", norm="none"),
}
CHANNELS, SIZE = 6, 8


def bend(layer: Callable[[Tensor], Tensor], seed: int = 0) -> float:
    """Return how far f((x + y) / 2) is from (f(x) + f(y)) / 2, over the size of the latter: 0 for every affine map."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(16, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64) * size for size in (1, 5))
    with torch.no_grad():
        middle = (layer(x) + layer(y)) / 2
        return float(torch.linalg.vector_norm(layer((x + y) / 2) - middle) / torch.linalg.vector_norm(middle))


def company(layer: nn.Module) -> float:
    """Return by how much a row's answer changes with the other rows of its batch, in training mode."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return float((layer.train()(x)[:4] - layer.train()(x[:4])).abs().max())


def measure(setting: Setting) -> dict[str, Any]:
    """Return the trainings, and what both layers do to an affine map's equation, to company and in a fold."""
    batch = nn.BatchNorm2d(CHANNELS, dtype=torch.float64)
    layer = nn.GroupNorm(1, CHANNELS, dtype=torch.float64)
    example = (torch.rand(2, 1, 28, 28),)
    left = {}
    for name, network in ((BN, lenet()), (LAYER, layer_norms(lenet(norm="none")))):
        folded = fold(network.eval(), example).model
        left[name] = sum(
            isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm) for module in folded.modules()
        )
    return {
        "company": {BN: company(batch), LAYER: company(layer)},
        "bend": {BN: bend(batch.eval()), LAYER: bend(layer.eval())},
        "left": left,
        **measure_arms(ARMS, setting),
    }


def read(figures: Figures) -> Reading:
    """Return how the trainings compare, and what tells the two layers apart."""
    bends, left, others = figures["bend"], figures["left"], figures["company"]
    return table(
        figures,
        [
            compared(figures, LAYER, NONE, "better than no norm", lambda away: away > 0),
            compared(figures, BN, LAYER, "nothing: the heading is left empty", lambda _away: True),
            Finding("a row's answer in training changes with its batch, BN and Layer Normalization",
                    f"{others[BN]:.2f}, {others[LAYER]:.0e}", "BN's statistics are the batch's, the other's a row's",
                    others[BN] > 0.01 and others[LAYER] < 1e-12),
            Finding("f((x + y)/2) against (f(x) + f(y))/2 in evaluation, BN and Layer Normalization",
                    f"{bends[BN]:.0e}, {bends[LAYER]:.2f}", "BN is affine, the other is not",
                    bends[BN] < 1e-12 and bends[LAYER] > 0.1),
            Finding("norms left after a fold, BN and Layer Normalization", f"{left[BN]}, {left[LAYER]}",
                    "only an affine map can go into weights", left[BN] == 0 and left[LAYER] == 4),
        ],
    )  # fmt: skip


LAYER_NORM = Lesson(
    "layer-norm", "Layer Normalization beside BN: same network, same budget, and why only BN can be folded",
    measure, read, draw_arms, seeds=5,
)  # fmt: skip
