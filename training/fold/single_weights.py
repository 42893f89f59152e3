"""Single weights of a layer that do not follow the others, which rounding would hide in what the layer adds up.

Part of the proof of both front ends, for two models of which no exact parameters are known. A fold multiplies the rows
and the columns of a weight; what does so no more closely than rounding is suspicious, and is judged by the outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FoldError
from .verdict import DEPLOYED_FACTOR, Outputs

_FEW, _PART = 8, 64  # rows or columns of which a median is taken; of how many numbers one may be suspicious
_MOST = 2**24  # numbers of a weight that is looked at
_LIKE = 0.8  # of the correlation of two differences that are one and the same
_VISIBLE = 1e-11  # of a channel's scale


@dataclass(frozen=True)
class Suspicion:
    """Some numbers of a parameter that do not follow the others.

    Attributes:
        name: of the parameter.
        where: which they are.
        mended: the parameter in float64, with what the others say in their places.
        got: what it holds.
    """

    name: str
    where: Tensor
    mended: Tensor
    got: Tensor

    def __str__(self) -> str:
        places = self.where.nonzero()
        first = tuple(places[0].tolist())
        count = f"{len(places)} of its {self.where.numel()} numbers"
        return (
            f"{self.name!r} does not follow the original's in {count}, {first} is {float(self.got[first]):.6g} where "
            f"{float(self.mended[first]):.6g} was expected"
        )


def matched(originals: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    """Return name and values of what both models hold under one name, else in one place among those of its shape."""
    same = [(name, originals[name], other) for name, other in others.items() if name in originals]
    same = [(name, one, other) for name, one, other in same if one.shape == other.shape]
    left = [{n: t for n, t in of.items() if n not in {name for name, *_ in same}} for of in (originals, others)]
    for shape in dict.fromkeys(tensor.shape for tensor in left[0].values()):
        ones, twos = ([(n, t) for n, t in of.items() if t.shape == shape] for of in left)
        if len(ones) == len(twos):
            same += [(name, one, other) for (_, one), (name, other) in zip(ones, twos, strict=True)]
    return [(name, one, other) for name, one, other in same if one is not other]


def suspicions(pairs: Sequence[tuple[str, Tensor, Tensor]], roundoff: float) -> Iterator[Suspicion]:
    """Yield the parameters in which single numbers do not follow the others.

    Args:
        pairs: name, parameter of the original and of the other model, of one shape each.
        roundoff: unit roundoff of the parameters.
    """
    for name, one, other in pairs:
        if one.numel() > _MOST or not one.is_floating_point() or not other.is_floating_point():
            continue
        wanted, got = one.detach().double(), other.detach().double()
        for fit in (lambda wanted, _: wanted, _multiplied):
            expected = fit(wanted, got)
            where = (got - expected).abs() > DEPLOYED_FACTOR * roundoff * expected.abs()
            count = int(where.sum())
            if not count:
                break
            if count <= max(1, got.numel() // _PART):
                yield Suspicion(name, where, torch.where(where, expected, got), got)
                break


def require_followed(suspicion: Suspicion, oracle: Outputs, folded: Outputs, mended: Callable[[], Outputs]) -> None:
    """Raise FoldError when two models differ as the suspicious numbers do.

    Args:
        suspicion: what is suspicious.
        oracle: outputs of the original.
        folded: of the other model.
        mended: gives those of the other model with what was expected in place of these numbers.
    """
    differences, effects = [], []
    for groups in zip(oracle, folded, mended(), strict=True):
        for tensors in zip(*groups, strict=False):
            is_one_shape = len({tensor.shape for tensor in tensors}) == 1
            if is_one_shape and tensors[0].numel() and tensors[0].is_floating_point():
                wanted, got, other = (tensor.detach().double() for tensor in tensors)
                scale = _scale(wanted)
                differences.append(((wanted - got) / scale).nan_to_num(0.0, 0.0, 0.0).flatten())
                effects.append(((other - got) / scale).nan_to_num(0.0, 0.0, 0.0).flatten())
    if not effects:
        return
    difference, effect = torch.cat(differences), torch.cat(effects)
    size, part = float(effect.norm()), float(difference.norm())
    along = float(difference @ effect) / max(size * size, 1e-300)
    if bool((effect.abs() > _VISIBLE).any()) and 0.5 < along < 2 and along * size >= _LIKE * part:
        raise FoldError(
            f"the folded model does not compute what the original computes: {suspicion}, and in float64 its outputs "
            "differ by what these numbers make"
        )


def _multiplied(one: Tensor, other: Tensor) -> Tensor:
    """Return the first with its rows and columns multiplied as most of the second's are."""
    if one.ndim < 2 or min(len(one), one[0].numel()) < _FEW:
        return torch.full_like(other, torch.nan)
    ratio = other.flatten(1) / one.flatten(1)
    logarithm, sign = ratio.abs().log(), ratio.sign()
    rows = logarithm.nanmedian(1, keepdim=True).values
    columns = (logarithm - rows).nanmedian(0, keepdim=True).values
    turned = torch.where(sign.nansum(1, keepdim=True) < 0, -1.0, 1.0)
    turned = turned * torch.where((sign * turned).nansum(0, keepdim=True) < 0, -1.0, 1.0)
    return (one.flatten(1) * turned * (rows + columns).exp()).reshape(one.shape)


def _scale(values: Tensor) -> Tensor:
    """Return the largest value of each channel, shaped to divide by."""
    size = values.abs().nan_to_num(0.0, 0.0, 0.0)
    others = [axis for axis in range(values.ndim) if axis != 1]
    return size.amax(others, keepdim=True) if values.ndim > 1 else size.max()
