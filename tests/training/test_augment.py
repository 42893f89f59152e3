"""Mirroring against NumPy, and its coins."""

import numpy as np
import torch

from foldserve.training.augment import mirror
from foldserve.training.epoch import epoch_mirrored, epoch_order


def test_mirrored_images_are_reversed_along_the_width():
    """Chosen images equal NumPy's left-right flip, the others and the argument stay as they were."""
    images = torch.arange(3 * 1 * 4 * 5, dtype=torch.uint8).reshape(3, 1, 4, 5)
    before = images.clone()
    found = mirror(images, torch.tensor([True, False, True]))
    for row, flipped in enumerate([True, False, True]):
        expected = np.fliplr(images[row, 0].numpy()) if flipped else images[row, 0].numpy()
        np.testing.assert_array_equal(found[row, 0].numpy(), expected)
    assert torch.equal(images, before)


def test_about_half_are_mirrored_and_other_ones_in_each_epoch():
    """A fair coin for each row; seed and epoch decide it, and a second call tells the same."""
    first = epoch_mirrored(10_000, seed=0, epoch=1)
    assert abs(int(first.sum()) - 5_000) < 200  # four standard deviations
    assert torch.equal(first, epoch_mirrored(10_000, seed=0, epoch=1))
    for other in (epoch_mirrored(10_000, seed=0, epoch=2), epoch_mirrored(10_000, seed=1, epoch=1)):
        assert 4_800 < int((first == other).sum()) < 5_200


def test_coins_do_not_follow_the_order_of_the_rows():
    """Early and late rows of an epoch are mirrored equally often."""
    order, coins = epoch_order(10_000, seed=0, epoch=1), epoch_mirrored(10_000, seed=0, epoch=1)
    assert abs(int(coins[order[:5_000]].sum()) - 2_500) < 150
