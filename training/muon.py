"""Muon: steps along the momentum of each weight matrix made orthogonal, so that every direction of it moves alike.

What is no matrix between hidden layers (biases, norms, the logits' layer) moves by Adam in the same optimizer. Nothing
here reads a value back to the host, so a CUDA graph may hold a step.

Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks; Kingma and Ba 2015
(arXiv:1412.6980) for Adam.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Five rounds of p(x) = ax + bx³ + cx⁵ take every singular value from 0.01 to 1 into about 0.7 to 1.2: near enough.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
ADAM_EPS = 1e-8


class Muon(torch.optim.Optimizer):
    """Muon for `matrices`, Adam for `others`.

    Args:
        matrices: hidden weights of at least two axes; a convolution counts as (C_out, C_in·kH·kW).
        others: every other parameter.
        lr: learning rate of the matrices, whose steps have singular values near 1.
        momentum: weight of the old gradients, Nesterov's way.
        adam_share: Adam's learning rate as a share of `lr`.
        betas: Adam's weights of the old averages.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        *,
        lr: float | Tensor,
        momentum: float = 0.9,
        adam_share: float = 0.5,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        shared = {"lr": lr, "momentum": momentum, "adam_share": adam_share, "betas": betas}
        groups = [{"params": matrices, "is_matrix": True}, {"params": others, "is_matrix": False}]
        super().__init__([group for group in groups if group["params"]], shared)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = _matrix_step if group["is_matrix"] else _adam_step
                    update(parameter, parameter.grad, self.state[parameter], group)


def orthogonalised(matrix: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """Return `matrix` (rows, columns) with its singular values taken to about 1, its singular vectors kept.

    Newton and Schulz's iteration with the coefficients of Jordan et al., which trade exactness for speed.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def _matrix_step(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    state["momentum"].lerp_(gradient, 1 - group["momentum"])
    ahead = torch.lerp(gradient, state["momentum"], group["momentum"])
    direction = orthogonalised(ahead.flatten(1)).view_as(parameter)
    rows, columns = parameter.flatten(1).shape
    parameter.sub_(direction * (group["lr"] * max(1.0, rows / columns) ** 0.5))


def _adam_step(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state["mean"] = torch.zeros_like(parameter)
        state["square"] = torch.zeros_like(parameter)
    old_mean, old_square = group["betas"]
    state["step"].add_(1)
    state["mean"].lerp_(gradient, 1 - old_mean)
    state["square"].lerp_(gradient.square(), 1 - old_square)
    mean = state["mean"] / (1 - old_mean ** state["step"])
    square = state["square"] / (1 - old_square ** state["step"])
    parameter.sub_(mean / (square.sqrt() + ADAM_EPS) * (group["lr"] * group["adam_share"]))
