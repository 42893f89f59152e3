"""Images changed in ways that leave their labels true.

A shoe seen from the left is still that shoe: images may be mirrored left to right. Nothing may stand on its head.
"""

import torch
from torch import Tensor


def mirror(images: Tensor, is_mirrored: Tensor) -> Tensor:
    """Return `images` (N, C, H, W) with those mirrored left to right where `is_mirrored` (N,) says so."""
    return torch.where(is_mirrored.view(-1, 1, 1, 1), images.flip(3), images)
