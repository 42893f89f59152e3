"""Training steps compiled, everything else as it is: a study is many trainings of one shape, so compiling pays.

Only full batches in training mode go through the compiler; the odd batch, evaluation and the search for population
statistics run the network itself, whose parameters and buffers both share.
"""

import torch
from torch import Tensor, nn

# Below it, compiling takes longer than it saves; what one training compiled, the next finds in PyTorch's cache.
WORTH_COMPILING_EPOCHS = 5


class CompiledSteps(nn.Module):
    """`network` with its training step on `rows` rows compiled; the state is the network's own.

    Args:
        network: trained in place through this module.
        rows: of the batches worth compiling for.
    """

    def __init__(self, network: nn.Module, rows: int) -> None:
        super().__init__()
        self.network = network
        self.rows = rows
        self._compiled = torch.compile(network, dynamic=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits for `images` (N, 1, 28, 28)."""
        is_step = self.training and images.shape[0] == self.rows
        logits: Tensor = self._compiled(images) if is_step else self.network(images)
        return logits
