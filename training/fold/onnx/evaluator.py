"""Runs an ONNX graph in float64, every float tensor and every cast widened, keeping only the values that are wanted.

Used by `pair`, `site_proof` and `constants`. It is not onnxruntime, on purpose: that has no double convolution, and the
deployed model is measured with it. An operation that cannot be run here makes its results unknown, not the whole
evaluation.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from ..core import Array
from ..tiled import give_memory_back
from .kernels import KERNELS
from .protos import (
    FLOAT_TYPES,
    Values,
    attributes,
    boxed,
    captures,
    first_line,
    is_boxed,
    label,
    operation,
    subgraphs,
    to_array,
    widened,
)
from .randomness import PLAIN_DRAWS, draw, draws_of, draws_unseen, with_plain_draws
from .reference_operations import REFERENCE_OPERATIONS

_Precision = type[np.floating[Any]] | None  # of a run on magnitudes; None for an ordinary one
_SUM_OF_MAGNITUDES = {"Sub": "Add", "Neg": "Identity"}
_LARGE = 2**23  # bytes of a value; before another one comes, the system gets back what is free
SMALL = 64  # values up to this many elements are kept anyway: they are shapes, which any part of the graph may read


class Cause(StrEnum):
    """Why a value cannot be computed."""

    RANDOM = "random"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


@dataclass(frozen=True)
class Gap:
    """A node that could not be run.

    Attributes:
        node: what the report calls it.
        reason: one sentence.
        cause: whether it draws numbers, is not known here, or does not fit the values that it got.
    """

    node: str
    reason: str
    cause: Cause


def why_unknown(name: str, unknown: Mapping[str, Gap]) -> str:
    """Return why a value could not be computed."""
    gap = unknown.get(name)
    return "nothing makes it" if gap is None else f"{gap.node!r}: {gap.reason}"


class Watcher(Protocol):
    """Takes values as soon as they are computed, so that not all have to be held until the end of a run."""

    @property
    def names(self) -> AbstractSet[str]:
        """The values that it reads."""

    def reached(self, values: Mapping[str, Values]) -> AbstractSet[str]:
        """Return those of `names` that it no longer needs, when one more of them is among `values`."""


class Evaluator:
    """One model and how to compute any of its values; plain draws are the same in every run.

    Attributes:
        model: without local functions, random operations written as plain draws.
        inputs: names of the graph's inputs.
        constants: the values that follow from initializers alone.
        unknown: value -> why it could not be computed, from the last run.
        shapes: of the values of the last run, whether they were kept or not.
    """

    def __init__(self, model: onnx.ModelProto, exact: Mapping[str, Array] | None = None):
        model = with_plain_draws(_without_functions(model))
        self.model = model
        self.unknown: dict[str, Gap] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.inputs = [value.name for value in model.graph.input]
        self._exact = exact or {}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        nodes: list[NodeProto] = list(model.graph.node)
        self._producers = {name: node for node in nodes for name in node.output if name}
        self.constants = _constants(nodes, self._initializers)
        self.nodes = self._with_constants_late(nodes)
        self._places = {id(node): place for place, node in enumerate(self.nodes)}
        self._runners: dict[int, ReferenceEvaluator] = {}
        self._draws = {name: number for number, name in enumerate(draws_of(model))}

    def run(
        self, feeds: Mapping[str, Values], keep: Iterable[str], watcher: Watcher | None = None
    ) -> dict[str, Values]:
        """Return the values named in `keep`, and the small ones on the way, as far as they could be computed.

        Args:
            feeds: values that are given, graph inputs or any others; what makes them is not run.
            keep: names of values.
            watcher: what it read and has not let go at the end is returned as well.
        """
        return self._run(feeds, keep, None, watcher)

    def magnitude(self, feeds: Mapping[str, Values], result: str) -> Values | None:
        """Return `result` with every number replaced by its magnitude: the A of the error bound.

        It is a yardstick, for which float32 is fine enough and far faster; where that overflows, float64 is used.
        """
        for precision in (np.float32, np.float64):
            magnitudes = {n: _magnitude(v, precision) for n, v in feeds.items()}
            size = self._run(magnitudes, [result], precision).get(result)
            if size is not None and np.all(np.isfinite(size)):
                return size
        return None

    def _run(
        self, feeds: Mapping[str, Values], keep: Iterable[str], absolute: _Precision, watcher: Watcher | None = None
    ) -> dict[str, Values]:
        wanted, watched = set(keep), set() if watcher is None else set(watcher.names)
        nodes = self.needed(wanted | watched, set(feeds))
        last = {name: i for i, node in enumerate(nodes) for name in reads(node)}
        live: dict[str, Values] = dict(feeds)
        unknown: dict[str, Gap] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for i, node in enumerate(nodes):
            if any(live[name].nbytes > _LARGE for name in reads(node) if name in live):
                give_memory_back()
            self._run_node(node, live, unknown, absolute)
            shapes |= {name: live[name].shape for name in node.output if name in live}
            done = set(reads(node))
            if watcher is not None and watched.intersection(node.output):
                let_go = watcher.reached(live)
                watched -= let_go
                done |= let_go
            for name in done - wanted - watched:
                if last.get(name, i) <= i and name in live and live[name].size > SMALL:
                    del live[name]
        for name in (wanted | watched) - set(live):
            if name in self._initializers:
                live[name] = self._constant(name, absolute)
        shapes |= {name: value.shape for name, value in live.items()}
        if any(8 * prod(shape) > _LARGE for shape in shapes.values()):
            give_memory_back()
        self.unknown, self.shapes = unknown, shapes
        return live

    def _run_node(
        self, node: NodeProto, live: dict[str, Values], unknown: dict[str, Gap], absolute: _Precision
    ) -> None:
        gap = next((unknown[name] for name in reads(node) if name in unknown), None)
        results: list[Values] = []
        try:
            if gap is None:
                results = self._results(node, self._read(node, live, absolute), absolute)
        except Exception as err:  # whatever the operation tripped over: its results are unknown, which the caller sees
            cause = Cause.UNSUPPORTED if isinstance(err, NotImplementedError) else Cause.FAILED
            gap = Gap(label(node), first_line(err), Cause.RANDOM if draws_unseen(node) else cause)
        if gap is not None:
            unknown.update({name: gap for name in node.output if name})
            return
        for name, value in zip(node.output, results, strict=False):
            if name:  # a Constant of floats, or a window of a sound, is float32 whatever reads it
                live[name] = widened(boxed(value)) if absolute is None else boxed(value)

    def _results(self, node: NodeProto, values: dict[str, Values], absolute: _Precision) -> list[Values]:
        number = self._draws.get(node.output[0])
        if number is not None:
            results = [draw(node, values[node.input[0]] if node.input else None, number)]
        elif absolute is not None and operation(node) in _SUM_OF_MAGNITUDES:
            added = helper.make_node(_SUM_OF_MAGNITUDES[node.op_type], node.input, node.output)
            results = run_node(added, values, self.model)
        else:
            results = run_node(node, values, self.model, self._runners)
        is_new = number is not None or node.op_type in ("Constant", "ConstantOfShape")
        if absolute is not None and is_new:
            return [_magnitude(result, absolute) for result in results]
        return results

    def _read(self, node: NodeProto, live: Mapping[str, Values], absolute: _Precision) -> dict[str, Values]:
        """Return what the node reads; the weights of a product, which widens them by itself, in their own dtype."""
        narrow: dict[str, Values] = {}
        if absolute is None and operation(node) in ("Gemm", "MatMul"):
            stored = [self._initializers.get(n) for n in node.input[:2] if n not in live and n not in self._exact]
            weights = [tensor for tensor in stored if tensor is not None]
            narrow = {tensor.name: to_array(tensor) for tensor in weights} if len(weights) == 1 else {}
        return {name: narrow[name] if name in narrow else self._value(name, live, absolute) for name in reads(node)}

    def _value(self, name: str, live: Mapping[str, Values], absolute: _Precision) -> Values:
        if name not in live and name not in self._exact and name not in self._initializers:
            raise NotImplementedError(f"{name!r} has no value")
        return live[name] if name in live else self._constant(name, absolute)

    def _constant(self, name: str, absolute: _Precision) -> Values:
        value = self._exact[name] if name in self._exact else widened(to_array(self._initializers[name]))
        return value if absolute is None else _magnitude(value, absolute)

    def _with_constants_late(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """Return the nodes in the graph's order, but weights that are computed right before what reads them first."""
        late = {place for place, node in enumerate(nodes) if self.constants & {*node.output}}
        makers = {name: place for place in late for name in nodes[place].output if name}
        order: list[int] = []
        for place in [place for place in range(len(nodes)) if place not in late]:
            pending, before = [place], list[int]()
            while pending:
                found = {makers[name] for name in reads(nodes[pending.pop()]) if name in makers} & late
                late -= found
                before += found
                pending += found
            order += [*sorted(before), place]
        return [nodes[place] for place in [*order, *sorted(late)]]

    def dims(self, name: str) -> list[int] | None:
        """Return the shape of an initializer, None for any other value."""
        return list(self._initializers[name].dims) if name in self._initializers else None

    def needed(self, wanted: set[str], given: set[str]) -> list[NodeProto]:
        """Return the nodes that lead to `wanted` without what leads to `given`, in the graph's order."""
        needed: dict[int, NodeProto] = {}
        pending = [name for name in wanted if name not in given]
        while pending:
            node = self._producers.get(pending.pop())
            if node is None or self._places[id(node)] in needed:
                continue
            needed[self._places[id(node)]] = node
            pending += [name for name in reads(node) if name not in given]
        return [needed[place] for place in sorted(needed)]


def _constants(nodes: Iterable[NodeProto], initializers: Iterable[str]) -> set[str]:
    """Return the names of initializers and of all that is made of them alone."""
    constants = {*initializers}
    for node in nodes:
        if constants.issuperset(reads(node)) and operation(node) not in PLAIN_DRAWS:
            constants.update(name for name in node.output if name)
    return constants


def _magnitude(value: Values, precision: type[np.floating[Any]]) -> Values:
    """Return floats without their sign, rounded first, so that no third copy of a large value is made."""
    return np.asarray(np.abs(value.astype(precision, copy=False))) if value.dtype.kind == "f" else value


def run_node(
    node: NodeProto,
    values: dict[str, Values],
    model: onnx.ModelProto,
    runners: dict[int, ReferenceEvaluator] | None = None,
) -> list[Values]:
    """Return the results of one node in float64.

    Args:
        node: any; its bodies read from `values` as well.
        values: what it reads, floats as float64.
        model: its operator sets and functions say what the node means.
        runners: keeps what was made to run a node, by its `id`, for the next time.

    Raises:
        NotImplementedError: it draws random numbers.
        Exception: whatever the operation meets.
    """
    if draws_unseen(node) or _is_training(node, values):
        raise NotImplementedError(f"{node.op_type} draws random numbers")
    if operation(node) in KERNELS and len([name for name in node.output if name]) == 1:
        inputs = [values[name] if name else None for name in node.input]
        result = KERNELS[node.op_type](inputs, attributes(node))
        if result is not None:
            return [result]
    runner = None if runners is None else runners.get(id(node))
    if runner is None:
        runner = _runner(node, list(values), model)
        if runners is not None:
            runners[id(node)] = runner
    values = {name: value.item() if is_boxed(value) else value for name, value in values.items()}
    with np.errstate(all="ignore"), contextlib.redirect_stdout(None):
        return list(runner.run(None, values))


def _is_training(node: NodeProto, values: Mapping[str, Values]) -> bool:
    is_dropout = operation(node) == "Dropout" and len(node.input) > 2 and node.input[2] in values
    return is_dropout and bool(np.any(values[node.input[2]]))


def _without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its local functions written out: the reference would run a norm in them in its own way."""
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except Exception:  # the inliner is C++, its errors share no base; the reference runs functions, too
        return model


def reads(node: NodeProto) -> list[str]:
    """Return the values that the node reads, in its bodies too."""
    return [name for name in (*node.input, *sorted(captures(node))) if name]


def _runner(node: NodeProto, names: list[str], model: onnx.ModelProto) -> ReferenceEvaluator:
    """Return ONNX's reference implementation of a graph of this one node, which reads `names`."""
    wide = NodeProto()
    wide.CopyFrom(node)
    _widen(wide)
    inputs = [helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(names)]
    outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name]
    graph = helper.make_graph([wide], "node", inputs, outputs)
    single = helper.make_model(graph, opset_imports=model.opset_import, functions=_wide_functions(model))
    return ReferenceEvaluator(single, new_ops=REFERENCE_OPERATIONS)


def _wide_functions(model: onnx.ModelProto) -> Sequence[onnx.FunctionProto]:
    functions = []
    for function in model.functions:
        copy = onnx.FunctionProto()
        copy.CopyFrom(function)
        for node in copy.node:
            _widen(node)
        functions.append(copy)
    return functions


def _widen(node: NodeProto) -> None:
    """Turn every float that the node carries in its attributes into a double, in its bodies too."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _widen_tensor(attribute.t)
        is_target = (node.op_type, attribute.name) in (("Cast", "to"), ("EyeLike", "dtype"))
        if is_target and attribute.i in FLOAT_TYPES:
            attribute.i = TensorProto.DOUBLE
    for body in subgraphs(node):
        for tensor in body.initializer:
            _widen_tensor(tensor)
        for inner in body.node:
            _widen(inner)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOAT_TYPES:
        tensor.CopyFrom(numpy_helper.from_array(widened(to_array(tensor)), tensor.name))
