"""A user's model as a graph of aten operations with ranks, axes and owners known: `torch.export`, read under no_grad.

First step of the PyTorch front end. It tells the later steps about a node (its arguments by name, what else reads
it, whether it is a constant and which, which module it belongs to) and decides nothing about folding.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.utils.prune import BasePruningMethod
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves, tree_map

from ...errors import FoldError
from ..core import Array
from ..failures import failure, machine_failure
from ..refusals import Refusal, RefusalCode
from .circumstances import PLAIN, Circumstance, hide_tracing
from .float64 import Inputs, run_in_float64
from .process_state import quiet, same_random_state

_UNSEEN_VALUES = (
    "torch.export cannot see where the forward takes a tensor of the model from: it reads one as `.data`, in "
    "torch.vmap or through NumPy; expected the parameter or buffer itself, with `.detach()` where its gradient is "
    "not wanted"
)
_READS_ONLY_METADATA = {
    "aten::sym_size",
    "aten::sym_stride",
    "aten::sym_numel",
    "aten::sym_storage_offset",
    "aten::_assert_tensor_metadata",
    "aten::new_zeros",
    "aten::new_ones",
    "aten::new_empty",
    "aten::new_full",
    "prim::device",
    "prim::dtype",
}


@dataclass
class TorchGraph:
    """The exported program of one model, with what folding needs to know of it.

    Attributes:
        program: what `torch.export` returned.
        exact: float64 values of parameters that an earlier fold rounded, by qualified name.
        hooked: paths of modules with forward hooks of the user's.
        noted: names of tensors that hold what an earlier call left, and are no constants.
        circumstance: in which it was read, in words; "" for the plain one.
    """

    program: ExportedProgram
    exact: Mapping[str, Array] = field(default_factory=dict)
    hooked: frozenset[str] = frozenset()
    noted: frozenset[str] = frozenset()
    circumstance: str = ""
    _constants: dict[Node, Tensor] = field(default_factory=dict, repr=False)
    _is_constant: dict[Node, bool] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.tensors: dict[str, Tensor] = {**self.program.state_dict, **self.program.constants}
        specs = self.program.graph_signature.input_specs
        self._targets = {s.arg.name: s.target for s in specs if s.kind is not InputKind.USER_INPUT and s.target}
        self._mutated = {*self.program.graph_signature.buffers_to_mutate.values(), *self.noted, *self._written()}
        self.user_inputs = [
            n for n in self.nodes if n.op == "placeholder" and n.name not in self._targets and is_tensor(n)
        ]
        self.outputs = set(self.program.graph.output_node().all_input_nodes)
        self.order = {node: position for position, node in enumerate(self.nodes)}

    def _written(self) -> set[str]:
        """Return the names of the tensors that an operation writes into."""
        first = [node.args[0] for node in self.nodes if node.op == "call_function" and is_in_place(node) and node.args]
        return {self._targets[one.name] for one in first if isinstance(one, Node) and one.name in self._targets}

    @property
    def nodes(self) -> list[Node]:
        """All nodes in the order of evaluation."""
        return list(self.program.graph.nodes)

    def target(self, node: Node) -> str | None:
        """Return the qualified name of the parameter, buffer or constant that this node stands for."""
        return self._targets.get(node.name) if node.op == "placeholder" else None

    @cached_property
    def _output_numbers(self) -> dict[Node, set[int]]:
        """For each node the numbers of the model's tensor outputs that depend on it."""
        numbers: dict[Node, set[int]] = {node: set() for node in self.nodes}
        by_name = {node.name: node for node in self.nodes}
        names = self.program.graph_signature.user_outputs
        tensors = [by_name[name] for name in names if isinstance(name, str) and is_tensor(by_name.get(name))]
        for number, node in enumerate(tensors):
            numbers[node].add(number)
        for node in reversed(self.nodes):
            for source in node.all_input_nodes:
                if node.op != "output":
                    numbers[source] |= numbers[node]
        return numbers

    def outputs_of(self, node: Node) -> set[int]:
        """Return the numbers of the model's tensor outputs that depend on the node."""
        return self._output_numbers[node]

    def readers(self, node: Node) -> list[Node]:
        """Return the nodes that read the values of `node`; reading its shape does not count."""
        return [user for user in node.users if not _reads_only_metadata(user, node)]

    def is_constant(self, node: Node) -> bool:
        """True when the node's value does not depend on the model's inputs."""
        if node not in self._is_constant:
            if node.op == "placeholder":
                known = self.target(node) in self.tensors and self.target(node) not in self._mutated
            else:
                known = node.op == "call_function" and operation(node) != "" and not _draws_random_numbers(node)
                known = known and all(self.is_constant(source) for source in node.all_input_nodes)
            self._is_constant[node] = known
        return self._is_constant[node]

    def constant(self, node: Node) -> Tensor:
        """Return the float64 value of a constant node, on the CPU; parameters are widened anew each time."""
        target = self.target(node)
        if target is not None:
            known = self.exact.get(target)
            value = self.tensors[target].detach().cpu() if known is None else torch.from_numpy(known)
            return value.double() if value.is_floating_point() else value
        if node not in self._constants:
            args = torch.fx.node.map_arg(node.args, self.constant)
            kwargs = torch.fx.node.map_arg(node.kwargs, self.constant)
            self._constants[node] = run_in_float64(lambda: node.target(*args, **kwargs), ())  # type: ignore[operator]
        return self._constants[node]

    def magnitude(self, node: Node, dtype: torch.dtype) -> Tensor:
        """Return the absolute values of a constant node in a dtype, a stored parameter's without widening it first."""
        target = self.target(node)
        value = self.constant(node) if target is None or target in self.exact else self.tensors[target].detach().cpu()
        return value.to(dtype).abs() if value.is_floating_point() else value

    def roots(self, constant: Node) -> list[Node]:
        """Return the parameters and buffers that a constant is computed from."""
        if constant.op == "placeholder":
            return [constant]
        return list(dict.fromkeys(root for source in constant.all_input_nodes for root in self.roots(source)))

    def unexpanded(self, node: Node) -> Node | None:
        """Return the constant that this node only repeats along other axes, None when it is something else."""
        while operation(node) in {"aten::expand", "aten::expand_as", "aten::broadcast_to"}:
            node = node.all_input_nodes[0]
            if self.is_constant(node):
                return node
        return None

    def require_single_reader(self, node: Node, reader: Node) -> None:
        """Raise Refusal unless `reader` alone reads `node`: multi-use, or graph-output when the caller gets it."""
        if node in self.outputs:
            raise Refusal(RefusalCode.GRAPH_OUTPUT, f"the value '{node.name}' that would change is an output")
        others = [user.name for user in self.readers(node) if user is not reader]
        if others:
            raise Refusal(RefusalCode.MULTI_USE, f"the value '{node.name}' is also read by {', '.join(others[:3])}")


def hooked_modules(model: nn.Module) -> frozenset[str]:
    """Return the paths of modules with forward hooks; those that compute weights do not count."""
    paths = set()
    for path, module in model.named_modules(remove_duplicate=False):
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        if not all(computes_weight(hook) for hook in hooks):
            paths.add(path)
    return frozenset(paths)


def computes_weight(hook: Any) -> bool:
    """True for the hooks of the old weight_norm and spectral_norm, and of pruning, which make weights only."""
    return isinstance(hook, BasePruningMethod) or type(hook).__name__ in {"WeightNorm", "SpectralNorm"}


def module_stack(node: Node) -> list[str]:
    """Return the paths of the modules that the node was called in, outermost first."""
    return [str(entry[0]).split("@")[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]


def module_path(node: Node) -> str:
    """Return the path of the innermost module that the node was called in, "" for the model itself."""
    return (module_stack(node) or [""])[-1]


def call_key(node: Node) -> tuple[str, ...]:
    """Return what tells one call of a module from another call of the same module."""
    return tuple((node.meta.get("nn_module_stack") or {}).keys())


def operation(node: Node) -> str:
    """Return the operation's name, such as "aten::conv2d"; "" for what is not an operation on tensors."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function":
        return ""
    return str(schema.name) if schema is not None else getattr(node.target, "__name__", str(node.target))


def is_in_place(node: Node) -> bool:
    """True when the operation writes into its first argument."""
    name = operation(node)
    return name.endswith("_") and not name.endswith("__")


def arguments(node: Node) -> dict[str, Any]:
    """Return all arguments of an operation by the names of its schema, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    values = {a.name: (a.default_value if a.has_default_value() else None) for a in schema.arguments}
    values.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    values.update(node.kwargs)
    return values


def is_tensor(node: Any) -> bool:
    """True when the node's value is one tensor."""
    return isinstance(node, Node) and isinstance(node.meta.get("val"), Tensor)


def shape(node: Node) -> tuple[Any, ...]:
    """Return the sizes of the node's value: integers, or symbols for dynamic axes."""
    return tuple(node.meta["val"].shape)


def dtype(node: Node) -> torch.dtype:
    """Return the dtype of the node's value."""
    value = node.meta["val"].dtype
    assert isinstance(value, torch.dtype)
    return value


def same(left: Any, right: Any) -> bool:
    """True when two sizes are equal for every input, not only for the sample."""
    return bool(statically_known_true(left == right))


def same_shape(one: Node, other: Node) -> bool:
    """True when two nodes have equal shapes for every input."""
    left, right = shape(one), shape(other)
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))


def _reads_only_metadata(user: Node, node: Node) -> bool:
    """True when the user reads shape, dtype or device alone; folding changes none of them."""
    name = operation(user)
    if name in {"aten::view_as", "aten::reshape_as", "aten::expand_as", "aten::type_as"}:
        return user.args[0] is not node
    return user.op == "call_function" and (name in _READS_ONLY_METADATA or name.endswith("_like"))


def _draws_random_numbers(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def read(
    model: nn.Module,
    example_inputs: Inputs,
    dynamic: Any,
    circumstance: Circumstance = PLAIN,
    *,
    hides_tracing: bool = False,
) -> ExportedProgram:
    """Return the graph of `model`, a copy that may be spoiled, for inputs of the shapes of `example_inputs`.

    Args:
        model: in eval mode.
        example_inputs: positional arguments of its forward, or a mapping of keyword arguments.
        dynamic: True for a dynamic first axis of every tensor, False for none, else `torch.export`'s dynamic_shapes.
        circumstance: in which it is called.
        hides_tracing: let the model see no sign of torch.export.

    Raises:
        FoldError: `torch.export` cannot read the model or the inputs do not fit; says what it tripped over.
    """
    given = dict(example_inputs) if isinstance(example_inputs, Mapping) else example_inputs
    attempts: list[tuple[Inputs, Any]] = [(given, dynamic or None)]
    if dynamic is True:
        inputs = _batch_of_two(given)
        attempts = [(inputs, _dynamic_batch(model, inputs)), (given, None)]
    model.register_forward_hook(_plain_outputs)
    if hides_tracing:
        hide_tracing(model)
    for number, (sample, shapes) in enumerate(attempts, start=1):
        try:
            with quiet(), torch.no_grad(), same_random_state(), circumstance.entered():
                views = circumstance.prepared(_views(sample))
                program = torch.export.export(model, *_split(views), dynamic_shapes=shapes, strict=False)
                if number == len(attempts) or sample is given or _agrees(program, model, given):
                    return program
        except Exception as err:  # torch.export raises nearly every type there is
            if number == len(attempts):
                raise _unreadable(err) from err
    raise AssertionError("unreachable")


def _split(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs as positional arguments and keyword arguments."""
    return (inputs, {}) if isinstance(inputs, tuple) else ((), dict(inputs))


def _views(inputs: Inputs) -> Inputs:
    """Return the inputs as tensors of their own with the same values: torch.export marks those that it gets."""
    views: Inputs = tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, inputs)
    return views


def _agrees(program: ExportedProgram, model: nn.Module, inputs: Inputs) -> bool:
    """True when the program, read from a batch of two, computes what the model computes for its batch of one."""
    args, kwargs = _split(inputs)
    runnable: nn.Module = program.module(check_guards=False)
    pairs = zip(tree_leaves(runnable(*args, **kwargs)), tree_leaves(model(*args, **kwargs)), strict=True)
    return all(_is_close(one, other) for one, other in pairs if isinstance(other, Tensor))


def _is_close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-2, atol=1e-2, equal_nan=True)


def _plain_outputs(_: nn.Module, __: Any, output: Any) -> Any:
    """Return a data class that torch.export does not know as a dict of its fields, anything else as it is."""
    unknown = is_dataclass(output) and not isinstance(output, type) and type(output) not in SUPPORTED_NODES
    return {one.name: getattr(output, one.name) for one in fields(output)} if unknown else output


def _dynamic_batch(model: nn.Module, inputs: Inputs) -> Any:
    """Return `torch.export`'s dynamic_shapes for a dynamic first axis; a forward(*args) takes them as one argument."""

    def spec(value: Any) -> Any:
        return {0: Dim.AUTO} if isinstance(value, Tensor) and value.ndim > 1 else None

    expected, (args, kwargs) = signature(model.forward), _split(inputs)
    given: Any = inputs
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in expected.parameters.values()):
        with suppress(TypeError):  # they do not fit, which torch.export says
            given = dict(expected.bind(*args, **kwargs).arguments)
    return tree_map(spec, given)


def _batch_of_two(inputs: Inputs) -> Inputs:
    """Return the inputs with a first axis of one doubled: torch.export takes a size of one for a constant."""
    tensors = [v for v in tree_leaves(inputs) if isinstance(v, Tensor) and v.ndim > 1]
    if not tensors or any(v.shape[0] != 1 for v in tensors):
        return inputs

    def double(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim > 1 else value

    doubled: Inputs = tree_map(double, inputs)
    return doubled


def _unreadable(err: Exception) -> FoldError:
    kind, message = type(err).__name__, " ".join(str(err).split())[:400]
    if machine_failure(err):
        return FoldError(failure("reading the model with torch.export", err))
    if "fake tensor in the exported program" in message:
        return FoldError(_UNSEEN_VALUES)
    # the last sign: a module raised when it was called, and its caller went on, which torch.export cannot follow
    signs = (
        "DataDependent",
        "data-dependent",
        "GuardOn",
        "bool(",
        "dynamic control flow",
        "Unexpected key _export_root",
    )
    if any(sign in kind + message for sign in signs):
        return Refusal(
            RefusalCode.CONTROL_FLOW,
            f"torch.export cannot read the model: {kind}: {message}; fold each part that has no such choice by "
            "itself, or an ONNX export of the model with fold_onnx",
        )
    returned = re.search(r"Found <class '(.*?)'> in output", message)
    if returned:
        return FoldError(
            f"torch.export cannot read a model that returns a {returned[1]}; expected tensors, in tuples, lists, dicts "
            "or data classes: wrap the model in a module whose forward returns those"
        )
    if "Unsupported input type" in message:
        return FoldError(
            f"torch.export cannot read the model: {message.partition('. ')[0]}; expected tensors, numbers and texts, "
            "in tuples, lists or dicts: wrap the model in a module whose forward takes those"
        )
    if "dynamic_shapes" in message or "Constraints violated" in message:
        return FoldError(
            f"torch.export cannot read the model with these dynamic sizes: {kind}: {message}; expected `dynamic` as "
            "torch.export takes dynamic_shapes, for sizes that the model accepts, or dynamic=False"
        )
    return FoldError(
        f"torch.export cannot read the model, though it runs: {kind}: {message}; leave out of the forward what "
        "torch.export cannot follow, or fold an ONNX export of the model with fold_onnx"
    )
