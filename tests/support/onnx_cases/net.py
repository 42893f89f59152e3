"""What the ONNX cases of the scoreboard are written with: a model under construction, and a case with its verdict.

The models are built from nothing but numpy; channels have scales of both signs, means far from zero and variances over
several decades, so that no mistake is small.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper

FOLD = "fold"


@dataclass
class Net:
    """A model under construction: nodes in order, initializers, graph inputs and outputs."""

    opset: int = 20
    dtype: type[np.floating] = np.float32
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[tuple[str, int | None]] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    extra_opsets: tuple[tuple[str, int], ...] = ()

    def input(self, name: str, *dims: int | str) -> str:
        """Declare a graph input and return its name."""
        self.inputs.append(helper.make_tensor_value_info(name, type_number(self.dtype), list(dims)))
        return name

    def constant(self, name: str, *shape: int, scale: float = 1.0) -> str:
        """Add a random initializer and return its name."""
        return self.put(name, self.rng.normal(0, scale, shape).astype(self.dtype))

    def put(self, name: str, values: npt.ArrayLike, dtype: type | None = None) -> str:
        """Add an initializer with these values and return its name."""
        self.tensors[name] = np.asarray(values, dtype)
        return name

    def node(self, op: str, inputs: list[str], output: str = "", n_outputs: int = 1, **attributes: object) -> str:
        """Add a node and return the name of its first output."""
        output = output or f"{op.lower()}{len(self.nodes)}"
        outputs = [output] + [f"{output}_{i}" for i in range(1, n_outputs)]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{len(self.nodes)}", **attributes))
        return output

    def statistics(self, prefix: str, channels: int, dtype: type[np.floating] | None = None) -> list[str]:
        """Scale of both signs, bias, mean and variance of a norm, as initializers."""
        kind = dtype or self.dtype
        gamma = self.rng.uniform(0.5, 1.5, channels) * self.rng.choice([-1, 1], channels)
        gamma[0], gamma[-1] = -abs(gamma[0]), abs(gamma[-1])
        values = [gamma, self.rng.normal(0, 1, channels), self.rng.normal(0, 2, channels)]
        values.append(10.0 ** self.rng.uniform(-1, 1, channels))
        names = [f"{prefix}_{part}" for part in ("scale", "bias", "mean", "var")]
        kinds = [self.dtype, self.dtype, kind, kind]
        for name, value, one in zip(names, values, kinds, strict=True):
            self.tensors[name] = value.astype(one)
        return names

    def norm(self, x: str, channels: int, output: str = "", prefix: str = "", **attributes: object) -> str:
        """Add a BatchNormalization with random statistics and return its output."""
        prefix = prefix or f"bn{len(self.nodes)}"
        return self.node("BatchNormalization", [x, *self.statistics(prefix, channels)], output, **attributes)

    def output(self, name: str, rank: int | None = None) -> None:
        """Declare a graph output; `rank` serves where inference cannot tell it."""
        self.outputs.append((name, rank))

    def model(self, ir_version: int = 10) -> onnx.ModelProto:
        """The finished model; output shapes are filled in by ONNX's inference."""
        kind = type_number(self.dtype)
        tensors = [numpy_helper.from_array(values, name) for name, values in self.tensors.items()]
        outputs = [helper.make_tensor_value_info(name, kind, None) for name, _ in self.outputs]
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, v) for d, v in self.extra_opsets)]
        graph = helper.make_graph(self.nodes, "case", self.inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=opsets, producer_name="folding-cases")
        model.ir_version = ir_version
        inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.output}
        for value, (name, rank) in zip(model.graph.output, self.outputs, strict=True):
            shape = inferred[name].type.tensor_type
            dims = [d.dim_value or d.dim_param or None for d in shape.shape.dim] if shape.HasField("shape") else None
            dims = dims if dims is not None else [None] * (rank or 0)
            value.CopyFrom(helper.make_tensor_value_info(name, kind, dims))
        return model


@dataclass(frozen=True)
class Case:
    """One model and the verdict that is right for it.

    Attributes:
        name: unique, and short enough for a table.
        build: makes the model.
        verdict: "fold", or the code of the refusal that our fold has to give.
        left: how many BatchNormalization nodes a right fold leaves.
        tolerance: of outputs against the float64 oracle, relative to the largest.
        options: arguments for our own fold, beside the model.
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    verdict: str = FOLD
    left: int = 0
    tolerance: float = 1e-4
    options: dict[str, str] = field(default_factory=dict)


def type_number(dtype: type) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
