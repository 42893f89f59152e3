"""Images changed in ways that leave their labels true.

A shoe seen from the left is still that shoe: images may be mirrored left to right. Nothing may stand on its head.
"""

import numpy as np
import torch
from torch import Tensor

_PURPOSE = 1  # keeps these coins apart from the order of the rows, which the same seed and epoch decide


def epoch_mirrored(rows: int, seed: int, epoch: int) -> Tensor:
    """Return which rows are mirrored in an epoch, (rows,) bool; seed and epoch alone decide."""
    mixed = np.random.SeedSequence([seed, epoch, _PURPOSE]).generate_state(1, np.uint64)[0]
    return torch.randint(2, (rows,), generator=torch.Generator().manual_seed(int(mixed >> np.uint64(1)))).bool()


def mirror(images: Tensor, is_mirrored: Tensor) -> Tensor:
    """Return `images` (N, C, H, W) with those mirrored left to right where `is_mirrored` (N,) says so."""
    return torch.where(is_mirrored.view(-1, 1, 1, 1), images.flip(3), images)
