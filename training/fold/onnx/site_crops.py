"""Small random maps on which a fold is proved, where the operations between its ends do the same at every place.

Used by `site_proof`; `training.fold.crops` says how small they may be, and why. Random numbers see more than what the
network makes: no earlier Relu has set a channel of them to zero.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import NodeProto

from ..crops import Shape, cropped, reach_of
from .evaluator import Evaluator, reads
from .protos import Values, attributes, operation

# fmt: off
_ANYWHERE = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Concat", "Conv", "ConvTranspose", "Div", "Dropout", "Identity",
    "MaxPool", "Mul", "Neg", "Relu", "Sub", "Sum",
})
# fmt: on
_WINDOWS = frozenset({"AveragePool", "Conv", "ConvTranspose", "MaxPool"})


@dataclass(frozen=True)
class Crop:
    """The ends of a stretch of a graph that can be proved on small maps.

    Attributes:
        sources: names of the values that it reads, constants left out.
        reach: how many places away its operations look, at most.
        stride: of all its operations together, one after the other.
    """

    sources: tuple[str, ...]
    reach: int
    stride: int

    def samples(self, shapes: Mapping[str, Shape]) -> Iterator[dict[str, Values]]:
        """Yield random values of the sources, float64: on small maps, then on whole ones for what is told a size.

        Args:
            shapes: of the sources.
        """
        whole = [shapes[name] for name in self.sources]
        small = cropped(whole, self.reach, self.stride)
        yield self._random(small)
        if small != whole:
            yield self._random(whole)

    def _random(self, shapes: Sequence[Shape]) -> dict[str, Values]:
        rng = np.random.default_rng(len(self.sources))
        return {name: rng.standard_normal(shape) for name, shape in zip(self.sources, shapes, strict=True)}


def crop_of(evaluators: Collection[Evaluator], result: str, inputs: Collection[str]) -> Crop | None:
    """Return how the stretch from `inputs` to `result` can be cropped in these graphs, None when it cannot."""
    sources, reach, stride = dict[str, None](), 0, 1
    for evaluator in evaluators:
        nodes = [node for node in evaluator.needed({result}, {*inputs}) if not evaluator.constants & {*node.output}]
        reaches = [_reach(evaluator, node) for node in nodes]
        if None in reaches:
            return None
        reach = max(reach, sum(one for one in reaches if one is not None))
        stride = max(stride, prod(max(attributes(node).get("strides", (1,))) for node in nodes))
        known = evaluator.constants.union(*(node.output for node in nodes))
        sources |= dict.fromkeys(name for node in nodes for name in reads(node) if name not in known)
    return Crop(tuple(sources), reach, stride) if sources else None


def _reach(evaluator: Evaluator, node: NodeProto) -> int | None:
    """Return how many places away the operation looks, None where the size of the map may have a part in it."""
    fields = attributes(node)
    if operation(node) not in _ANYWHERE or (operation(node) == "Concat" and fields["axis"] != 1):
        return None
    if operation(node) not in _WINDOWS:
        return 0
    dims = evaluator.dims(node.input[1]) if len(node.input) > 1 else None
    kernel = fields.get("kernel_shape") or (None if dims is None else dims[2:])
    if kernel is None:
        return None
    return reach_of(kernel, *(fields.get(name, ()) for name in ("strides", "dilations", "pads")))
