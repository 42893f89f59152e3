"""Further inputs on which two models are compared: those that show what inputs of the usual size and kind do not.

Used by `agreement`. Values come from the inputs that were given; rows of embeddings, which no value of a picture can
name, from the tables of both models.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .float64 import Inputs

_TIMES = 8
_MOST_TABLES = 4
_LARGEST = 8.0  # powers of ten by which values grow and shrink, as far as their dtype holds them


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """Return the tensors among inputs, in their order."""
    leaves = tree_leaves(inputs if isinstance(inputs, tuple) else dict(inputs))
    return [value for value in leaves if isinstance(value, Tensor)]


def other_values(inputs: Inputs) -> Iterator[Inputs]:
    """Yield the inputs with values of other sizes: up to a hundred times, and to a hundred million times as large.

    Then with tiny ones, and with those of one sign.
    """
    if not any(one.is_floating_point() for one in tensors_of(inputs)):
        return
    yield _changed(inputs, _larger)
    yield _changed(inputs, _huge)
    yield _changed(inputs, lambda value, _: value * 1e-5)
    yield _changed(inputs, lambda value, _: value.abs())
    yield _changed(inputs, lambda value, _: -value.abs())


def more(inputs: Inputs, most: int) -> Iterator[Inputs]:
    """Yield the inputs with eight times as many rows, and with as many places more along each other axis.

    A forward that takes rows or places by their number, such as `x[9:]`, asks nothing about sizes.

    Args:
        inputs: as given.
        most: elements of what is yielded.
    """
    tensors = tensors_of(inputs)
    for axis in range(max((tensor.ndim for tensor in tensors), default=0)):
        if axis != 1 and _TIMES * sum(one.numel() for one in tensors) <= most:
            yield _mapped(inputs, partial(_repeated, axis=axis))


def rows_of_tables(original: nn.Module, folded: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
    """Yield inputs whose whole numbers name the rows of the models' embeddings that tell most, and others.

    A row tells most where it follows the other rows of its table least, from the one model to the other. All rows are
    named where the inputs hold so many numbers.
    """
    places = [one.numel() for one in tensors_of(inputs) if _is_index(one)]
    if not places or not max(places):
        return
    tables, others = _tables(original), _tables(folded)
    sizes = dict.fromkeys(len(one) for one in [*tables, *others])
    for size in list(sizes)[:_MOST_TABLES]:
        one, other = ([t for t in of if len(t) == size] for of in (tables, others))
        pairs = [pair for pair in zip(one, other, strict=False) if pair[0].shape == pair[1].shape]
        orders = [_by_doubt(*pair) for pair in pairs]
        orders.append(torch.randperm(size, generator=torch.Generator().manual_seed(3)))
        orders.append(torch.arange(size - 1, -1, -1))
        for order in orders:
            yield _mapped(inputs, partial(_named, order=order))
            if order is not orders[-1]:  # one after the other they might add up to the same
                yield _mapped(inputs, partial(_named, order=order, is_each_alone=True))


def _by_doubt(one: Tensor, other: Tensor) -> Tensor:
    """Return the numbers of the rows, first those that are least what the others make of them, column by column."""
    one, other = one.detach().double(), other.detach().double()
    mean, wanted = one.mean(0), other.mean(0)
    spread = (one - mean).square().mean(0).clamp(min=1e-300)
    slope = ((one - mean) * (other - wanted)).mean(0) / spread
    scale = (other - wanted).abs().mean(0).clamp(min=1e-300)
    return ((other - wanted - slope * (one - mean)).abs() / scale).amax(1).argsort(descending=True)


def _tables(model: nn.Module) -> list[Tensor]:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return [one.weight for one in model.modules() if isinstance(one, kinds) and one.weight.layout is torch.strided]


def _is_index(value: Tensor) -> bool:
    return value.dtype in (torch.int64, torch.int32) and value.numel() > 1


def _named(value: Tensor, order: Tensor, *, is_each_alone: bool = False) -> Tensor:
    """Return the numbers in the place of whole numbers, in their order; or each in all places of a row."""
    if not _is_index(value):
        return value
    count = len(value) if is_each_alone else value.numel()
    rows = order.repeat(-(-count // len(order)))[:count].to(value.dtype).to(value.device)
    return (rows.reshape(-1, *[1] * (value.ndim - 1)) if is_each_alone else rows.reshape(value.shape)).expand_as(value)


def _repeated(value: Tensor, axis: int) -> Tensor:
    is_long = value.ndim > max(axis, 1) and value.layout is torch.strided
    return torch.cat([value] * _TIMES, axis) if is_long else value


def _larger(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return values up to a hundred times as large, of either sign, some zero."""
    powers, signs = (torch.rand(value.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return value.double() * (100.0**powers * torch.where(signs < 0.5, -1.0, 1.0) * (powers < 0.9)).to(value.device)


def _huge(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return values up to a hundred million times as large, in a narrow dtype up to the root of its largest number."""
    largest = min(_LARGEST, float(torch.tensor(torch.finfo(value.dtype).max).double().log10()) / 2)
    powers = torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value.device)
    return value.double() * 10.0 ** (largest * powers)


def _changed(inputs: Inputs, change: Callable[[Tensor, torch.Generator], Tensor]) -> Inputs:
    """Return the inputs with every floating-point value changed."""
    generator = torch.Generator().manual_seed(2)
    return _mapped(inputs, lambda one: change(one, generator).to(one.dtype) if one.is_floating_point() else one)


def _mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    mapped: Inputs = tree_map(
        lambda value: change(value) if isinstance(value, Tensor) else value,
        inputs if isinstance(inputs, tuple) else dict(inputs),
    )
    return mapped
