"""Whatever Python makes of a size, a forward that chooses by it is folded right at every size, or refused, or raises.

Each network puts a relu between a convolution and a norm for some sizes, and is compared with its fold in float64 over
a sweep of sizes. Nothing is said of how many norms stay; other numbers without a word are what must not be.
"""

import functools
import hashlib
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold
from tests.support.fold_cases import randomise

SWEEP = [
    *((2, 3, size, size) for size in (4, 7, 8, 9, 12, 15, 16, 17, 20, 23, 24, 25, 31, 32, 33, 40, 48, 63, 64, 65, 96)),
    *((batch, 3, 16, 16) for batch in (1, 3, 4, 5, 6, 7, 8, 9, 16, 17, 32)),
    *(
        (2, 3, *sizes)
        for sizes in ((16, 24), (24, 16), (8, 32), (15, 16), (16, 15), (40, 24), (9, 30), (12, 18), (64, 8))
    ),
]


@functools.lru_cache
def is_large(height: int, width: int) -> bool:
    return height * width > 500


def fails(x: Tensor, *shape: int) -> bool:
    try:
        x.reshape(shape)
    except RuntimeError:
        return True
    return False


def found(sizes: dict[Any, Any], key: Any) -> Any:
    try:
        return sizes[key]
    except KeyError:
        return False


def matched(shape: Any) -> bool:
    match tuple(shape):
        case (_, 3, height, width) if height == width:
            return height in (12, 24)
        case (_, _, 9, _):
            return True
        case _:
            return False


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "numel of the shape": lambda x: x.shape.numel() > 3000,
    "numel": lambda x: x.numel() == 2 * 3 * 24 * 24,
    "nelement": lambda x: x.nelement() % 9 == 0,
    "a text as a key": lambda x: {"24x24": True, "9x30": True}.get(f"{x.shape[2]}x{x.shape[3]}", False),
    "a text with a format": lambda x: f"{x.shape[2]:04d}".endswith("7"),
    "percent": lambda x: "%d" % x.shape[3] in ("20", "33"),  # noqa: UP031 -- a kind
    "join": lambda x: ",".join(map(str, x.shape[2:])) == "8,32",
    "length of a text": lambda x: len(str(x.shape[2])) == 1,
    "a cached function": lambda x: is_large(x.shape[2], x.shape[3]),
    "product": lambda x: x.shape[2] * x.shape[3] > 700,
    "ratio": lambda x: x.shape[3] / x.shape[2] >= 1.5,
    "rounded ratio": lambda x: round(x.shape[3] / x.shape[2], 1) == 1.5,
    "floor of a ratio": lambda x: math.floor(x.shape[2] / 10) == 2,
    "ceiling of a ratio": lambda x: math.ceil(x.shape[2] / 10) == 3,
    "last": lambda x: x.shape[-1] > 30,
    "first": lambda x: x.shape[0] in (5, 7),
    "length": lambda x: len(x) == 6,
    "length of the shape": lambda x: len(x.shape[2:]) == 2 and x.shape[2] > 40,
    "another shape": lambda x: x.shape == torch.Size([2, 3, 40, 24]),
    "in a list of shapes": lambda x: tuple(x.shape[2:]) in [(12, 18), (31, 31)],
    "in a set": lambda x: x.shape[2] in {9, 31, 65},
    "a slice of the shape": lambda x: x.shape[2:] == (24, 16),
    "order of the shape": lambda x: x.shape[2:] > (30, 0),
    "in the shape": lambda x: 33 in x.shape,
    "index in the shape": lambda x: list(x.shape).index(max(x.shape)) == 3,
    "count in the shape": lambda x: x.shape.count(3) == 2 or tuple(x.shape).count(16) == 1,
    "a view in groups": lambda x: x.view(x.shape[0], x.shape[1], -1).shape[-1] % 16 == 1,
    "the largest axis": lambda x: max(range(4), key=lambda axis: x.shape[axis]) == 3,
    "the order of axes": lambda x: sorted(range(4), key=lambda axis: x.shape[axis])[-1] == 2,
    "argmax of NumPy": lambda x: int(np.argmax(x.shape)) == 0,
    "smallest": lambda x: min(x.shape[-2:]) < 9,
    "largest": lambda x: max(x.shape[-2:]) > 32,
    "sorted": lambda x: sorted(x.shape[-2:]) == [16, 24],
    "sum": lambda x: sum(x.shape[-2:]) == 40,
    "hash": lambda x: hash(x.shape[2]) == 23,
    "hash of a pair": lambda x: hash(tuple(x.shape[2:])) == hash((40, 24)),
    "digest": lambda x: hashlib.sha256(str(tuple(x.shape)).encode()).digest()[0] > 200,
    "logarithm": lambda x: math.log2(x.shape[2]) > 5,
    "whole logarithm": lambda x: math.log2(x.shape[2]).is_integer() and x.shape[2] != 16,
    "square root": lambda x: math.isqrt(x.shape[2]) == 5,
    "bits": lambda x: x.shape[2] & 1,
    "a power of two": lambda x: x.shape[2] & (x.shape[2] - 1),
    "shifted": lambda x: x.shape[2] >> 5,
    "number of bits": lambda x: x.shape[3].bit_length() == 7 if hasattr(x.shape[3], "bit_length") else False,
    "exclusive or": lambda x: x.shape[2] ^ x.shape[3],
    "complement": lambda x: ~x.shape[2] < -30,
    "an error of a size": lambda x: fails(x, 2, 3, 4, -1),
    "an error of a key": lambda x: found({24: True, 7: True}, x.shape[2]),
    "where": lambda x: bool(torch.where(torch.tensor(x.shape[2] > 30), 1, 0)),
    "sizes in NumPy": lambda x: (np.array(x.shape[2:]) > 30).any(),
    "sizes in a tensor": lambda x: torch.tensor(x.shape).max().item() > 40,
    "a tensor of a size": lambda x: bool(torch.as_tensor(x.shape[-1]) > 31),
    "negative": lambda x: -x.shape[2] < -31,
    "absolute difference": lambda x: abs(x.shape[2] - x.shape[3]) == 8,
    "true division": lambda x: (
        (x.shape[2] / 4).is_integer() if isinstance(x.shape[2] / 4, float) else x.shape[2] % 4 == 0
    ),
    "power": lambda x: x.shape[2] ** 2 > 1000,
    "matched": lambda x: matched(x.shape),
    "unpacked": lambda x: (lambda b, _, h, w: b * h > 100 and w < 30)(*x.shape),
    "reduced": lambda x: functools.reduce(operator.mul, x.shape) > 9000,
    "any of them": lambda x: any(size % 16 for size in x.shape[2:]),
    "all of them": lambda x: all(size > 16 for size in x.shape[2:]),
    "chained": lambda x: 16 < x.shape[2] < 25,
    "float": lambda x: float(x.shape[2]) > 24.5,
    "complex": lambda x: complex(x.shape[2]).real > 47,
    "number of slices": lambda x: len(x.split(5)) > 1,
    "rows of another axis": lambda x: len(x[0, 0]) == 20,
    "range": lambda x: 30 in range(0, x.shape[2], 3),
    "enumerate": lambda x: [number for number, _ in enumerate(x)][-1] == 3,
    "stride": lambda x: x.stride(1) > 600,
    "element of a list": lambda x: (
        [False] * 31 + [True] * 200 if x.shape[2] < 0 else ([False] * 31 + [True] * 200)[x.shape[2]]
    ),
    "bytes": lambda x: x.shape[2].to_bytes(2, "big")[1] == 33 if isinstance(x.shape[2], int) else int(x.shape[2]) == 33,
    "integer of a text": lambda x: int(str(x.shape[2])[-1]) == 5,
    "a default": lambda x: getattr(x, "names", None) is None or x.shape[2] > 47,
    "pooled": lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, 1)).shape[2] > 12,
    "a loop": lambda x: sum(1 for _ in range(x.shape[2] // 8)) > 3,
}


class Chooses(nn.Module):
    def __init__(self, asks: Callable[[Tensor], Any]):
        super().__init__()
        self.conv, self.norm, self.asks = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), asks

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(F.relu(y) if self.asks(x) else y)


@pytest.mark.parametrize("name", KINDS)
def test_no_size_gives_other_numbers_without_a_word(name: str) -> None:
    """Right, or an error of ours, at each of some forty sizes."""
    torch.manual_seed(0)
    model = randomise(Chooses(KINDS[name])).double()
    try:
        folded = fold(model, (torch.randn(2, 3, 16, 16, dtype=torch.double),)).model
    except FoldError:
        return
    for shape in SWEEP:
        x = torch.randn(shape, dtype=torch.double)
        with torch.no_grad():
            try:
                expected = model(x)
            except Exception:  # the original does not take this size
                continue
            try:
                got = folded(x)
            except FoldError:
                continue
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=f"for an input of {shape}")
