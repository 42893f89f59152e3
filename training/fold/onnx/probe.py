"""Inputs on which a folded ONNX model is compared with the original: random, signed, of every declared type.

Used by `model_proof`. Free sizes are tried from small to large until the model runs on them, since a network
with five poolings needs an image that survives them, and one that reads a waveform some thousand samples.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...errors import ConfigError
from ..rounding import round_once
from .evaluator import SMALL, Evaluator, Gap
from .protos import FLOAT_TYPES, Dims, Values
from .shapes import declared, infer
from .site_proof import Sites, SiteTrial

_INTEGERS = {getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}
_LARGE = 2**16  # elements of one row from which on a single row is enough work
_LARGEST = 2**22  # elements of one input that are tried for a free size
_USUAL = 64  # sizes up to here, and the next one, are tried in any case
_SIZES = (12, 32, 64, 224, 640, 1600, 16000, 64000)  # tried for each free size that is not the batch

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Probe:
    """One set of inputs, and what the unfolded model makes of them in float64.

    Attributes:
        feeds: inputs, floats as float64 that the declared dtype holds exactly.
        values: those of the wanted values that could be computed.
        unknown: value -> why it could not be computed.
        sizes: the shapes of the inputs, such as "x 2x3x12x12".
        filled: the values of a run that held numbers, kept or not.
        trial: the proof of the sites on these inputs, if there are any.
    """

    feeds: dict[str, Values]
    values: dict[str, Values]
    unknown: dict[str, Gap]
    sizes: str
    filled: frozenset[str] = frozenset()
    trial: SiteTrial | None = None

    def holds(self, names: set[str]) -> int:
        """Return how many of `names` could be computed, and are not empty."""
        return len(names & self.filled)


@dataclass(frozen=True)
class _Inputs:
    """Inputs that are still to be run: numbers, their shapes as text, and how to draw more of the same sizes."""

    feeds: dict[str, Values]
    text: str
    random: Callable[[str], Values | None]


class Prober:
    """Makes inputs for one model.

    Args:
        evaluator: the unfolded model.
        shapes: input -> its whole shape, where the caller says it; the others are chosen here.
        sites: proved on each probe. Where an operation before one is unknown to us, it starts from random numbers of
            its declared shape.

    Raises:
        ConfigError: `shapes` does not fit what the model declares.
    """

    def __init__(self, evaluator: Evaluator, shapes: Shapes | None = None, sites: Sites | None = None):
        self._evaluator, self._sites = evaluator, sites
        self._shapes, self._types = infer(evaluator.model)
        self._shapes |= {value.name: declared(value) for value in evaluator.model.graph.input}
        given = {tensor.name for tensor in evaluator.model.graph.initializer}
        self._inputs = [value.name for value in evaluator.model.graph.input if value.name not in given]
        self._bound: dict[str, int] = {}
        self._size, self._computed = _SIZES[0], 0
        for name, shape in (shapes or {}).items():
            self._bind(name, tuple(shape))

    def probes(self, wanted: set[str]) -> Iterator[Probe]:
        """Yield the first probe on which every wanted value can be computed, else the one with most of them.

        Then yield one of another batch and other free sizes, when there is one on which as much can be computed; these
        differ from each other where the model takes that.

        Args:
            wanted: names of values that the probe has to hold; what the sites read is counted too, and not held.
        """
        names = wanted if self._sites is None else wanted | self._sites.names
        tries: list[tuple[int, Probe]] = []
        for size in self._sizes():
            tries.append((size, self._at(self._inputs_of(size, 2), wanted)))
            repeats = size > _USUAL and tries[-1][1].unknown == tries[0][1].unknown  # no size changes that
            if tries[-1][1].holds(names) == len(names) or repeats:
                break
        size, best = max(tries, key=lambda one: one[1].holds(names))
        del tries
        computed, tried = best.holds(names), {best.sizes}
        self._size, self._computed = size, best.holds(wanted)
        yield best
        del best
        odd = size + size // 2 - 1
        for other, step in ((odd, 2), (odd, 0), (2 * size, 0)) if self._is_free else ():
            inputs = self._inputs_of(other, 3, step)
            if inputs.text not in tried:
                tried.add(inputs.text)
                probe = self._at(inputs, wanted)
                if probe.holds(names) == computed:
                    yield probe
                    return

    def at_sizes(self, sizes: Collection[int], wanted: set[str]) -> Iterator[Probe]:
        """Yield probes with each of `sizes` as the batch, and as every other free size, where as much can be computed.

        Args:
            sizes: after `probes`, whose first size the others keep.
            wanted: as there.
        """
        if not self._is_free:
            return
        shapes, tried = [self._declared(name) for name in self._inputs], set[str]()
        for size, batch in [(self._size, size) for size in sizes] + [(size, 3) for size in sizes]:
            if all(batch * self._elements(shape, size) <= _LARGEST for shape in shapes):
                inputs = self._inputs_of(size, batch)
                if inputs.text not in tried:
                    tried.add(inputs.text)
                    probe = self._at(inputs, wanted)
                    if probe.holds(wanted) >= self._computed:
                        yield probe

    @property
    def _is_free(self) -> bool:
        """True when a size, or the batch, is to be chosen."""
        dims = [dim for name in self._inputs for dim in self._declared(name)]
        return any(isinstance(dim, str) and dim not in self._bound for dim in dims)

    def _sizes(self) -> Iterator[int]:
        """Yield the sizes to try, one when nothing is free but the batch."""
        shapes = [self._declared(name) for name in self._inputs]
        free = [shape for shape in shapes if any(isinstance(d, str) and d not in self._bound for d in shape[1:])]
        for size in _SIZES if free else _SIZES[:1]:
            if size == _SIZES[0] or all(self._elements(shape, size) <= _LARGEST for shape in free):
                yield size

    def _inputs_of(self, size: int, batch: int, step: int = 0) -> _Inputs:
        """Return inputs of this size and batch; each further free size is larger by `step`."""
        rng, sizes = np.random.default_rng(0), {**self._growing(size, step), **self._bound}
        made = {name: self._random(rng, name, sizes, size, batch) for name in self._inputs}
        feeds = {name: value for name, value in made.items() if value is not None}
        sizes |= {f"{name}?{axis}": dim for name, value in feeds.items() for axis, dim in enumerate(value.shape)}
        text = ", ".join(f"{name} {'x'.join(map(str, value.shape)) or 'scalar'}" for name, value in feeds.items())
        return _Inputs(feeds, text, lambda name: self._random(rng, name, sizes, size, batch))

    def _at(self, inputs: _Inputs, wanted: set[str]) -> Probe:
        """Return what the model makes of these inputs, with the proof of the sites."""
        trial = None if self._sites is None else SiteTrial(self._sites, inputs.text)
        values = self._evaluator.run(inputs.feeds, wanted, trial)
        unknown, shapes = dict(self._evaluator.unknown), dict(self._evaluator.shapes)
        if trial is not None and self._sites is not None:
            for name in sorted(self._sites.starts - {*shapes}):
                value = inputs.random(name) if self._types.get(name) in FLOAT_TYPES and name in self._shapes else None
                if value is not None:
                    values[name], shapes[name] = value, value.shape
            trial.finish(values, shapes, unknown)
            values = {name: value for name, value in values.items() if name in wanted or value.size <= SMALL}
        filled = frozenset(name for name, shape in shapes.items() if 0 not in shape)
        return Probe(inputs.feeds, values, unknown, inputs.text, filled, trial)

    def _growing(self, size: int, step: int) -> dict[str, int]:
        """Return a size for each free dimension that is no batch, `size` and `step` more for each further one."""
        shapes = [self._declared(name) for name in self._inputs]
        batches = {shape[0] for shape in shapes if shape}
        free = dict.fromkeys(dim for shape in shapes for dim in shape[1:] if isinstance(dim, str))
        return {dim: size + step * place for place, dim in enumerate(dim for dim in free if dim not in batches)}

    def _bind(self, name: str, shape: tuple[int, ...]) -> None:
        declared = self._declared(name)
        fits = name in self._inputs and len(shape) == len(declared) and min(shape, default=1) > 0
        for dim, size in zip(declared, shape, strict=False):
            expected = dim if isinstance(dim, int) else self._bound.setdefault(dim, size)
            fits = fits and expected == size
        if not fits:
            inputs = ", ".join(f"{one} {list(self._declared(one))}" for one in self._inputs)
            raise ConfigError(f"shape {list(shape)} for the input {name!r} does not fit; the model declares {inputs}")

    def _declared(self, name: str) -> Dims:
        return self._shapes.get(name, ())

    def _elements(self, shape: Dims, size: int) -> int:
        return prod(dim if isinstance(dim, int) else self._bound.get(dim, size) for dim in shape[1:])

    def _random(
        self, rng: np.random.Generator, name: str, sizes: dict[str, int], size: int, batch: int
    ) -> Values | None:
        """Return random values for `name`, None for a type that holds none; `sizes` takes note of the free sizes."""
        shape, kind = self._declared(name), self._types[name]
        rows = (
            batch if self._elements(shape, size) < _LARGE else 1
        )  # rather two, so that they are not taken for channels
        dims = [d if isinstance(d, int) else sizes.setdefault(d, size if i else rows) for i, d in enumerate(shape)]
        if kind in FLOAT_TYPES:
            values = rng.normal(0.0, 1.0, dims) + rng.normal(0.0, 1.0)
            return np.asarray(round_once(np.asarray(values), FLOAT_TYPES[kind]), np.float64)
        if kind == TensorProto.BOOL:
            return np.asarray(rng.integers(0, 2, dims), np.bool_)
        if kind == TensorProto.STRING:
            return np.full(dims, "a")
        if kind not in _INTEGERS:
            return None
        highest = 256 if kind == TensorProto.UINT8 else 2
        return np.asarray(rng.integers(0, highest, dims), helper.tensor_dtype_to_np_dtype(kind))


def stored_form(feeds: Mapping[str, Values], model: onnx.ModelProto) -> dict[str, Values]:
    """Return the float64 feeds in the dtypes that the model declares, which hold them exactly."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    return {name: np.asarray(value, helper.tensor_dtype_to_np_dtype(types[name])) for name, value in feeds.items()}
