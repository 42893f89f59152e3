"""How the weights move: the optimizer that a recipe names and its learning rate at each step.

Part of the training loop, which calls it before every step; it knows no data and no network.
"""

import torch
from torch import Tensor, nn

from .config import Recipe
from .muon import Muon

WARM_UP = 0.1  # share of all steps over which `linear` rises before it falls
ADAM_BETAS = (0.9, 0.99)  # averages over 100 steps rather than 1,000: a whole run has a few thousand


def optimizer_for(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer that `recipe` names, over all parameters of `model`.

    On a GPU a learning rate that changes is a tensor, so that a captured step reads each new one.
    """
    is_cuda = device.type == "cuda"
    rate: float | Tensor = recipe.learning_rate
    if recipe.schedule != "constant" and is_cuda:
        rate = torch.tensor(recipe.learning_rate, device=device)
    if recipe.optimizer == "muon":
        matrices = hidden_matrices(model)
        taken = {id(matrix) for matrix in matrices}
        return Muon(matrices, [other for other in model.parameters() if id(other) not in taken], lr=rate)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate, betas=ADAM_BETAS, capturable=is_cuda)
    return torch.optim.SGD(model.parameters(), lr=rate, fused=is_cuda)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of convolutions and linear layers but the last, whose rows are classes and not features."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [weight for layer in layers[:-1] for name, weight in layer.named_parameters() if name == "weight"]


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of `step`, counted from 0, of `steps` in the whole run.

    `constant` is the recipe's own. `linear` rises to it over the first tenth of the steps and falls from there to 0,
    reached one step after the last: the weights come to rest, and the running statistics with them.
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    rising = max(1, round(WARM_UP * steps))
    share = (step + 1) / rising if step < rising else (steps - step) / (steps - rising + 1)
    return recipe.learning_rate * min(1.0, share)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of `optimizer` the learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
