"""Every tool of the folding scoreboard behind one signature, and the judge of what it did.

A tool takes a model of the case lists and returns the outputs that its result computes, with how much of a norm is
left in it. Each tool runs in a process of its own, which calls `judge_onnx` or `judge_torch`.
"""

import copy
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.fold_cases import Case as TorchCase
from tests.support.onnx_cases import Case as OnnxCase

Outputs = list[np.ndarray]
ROWS = 3  # batch of the ONNX cases: a number that is no channel count of theirs
NORM_OPS_ONNX = ("BatchNormalization", "Sub", "Div", "Mul", "Sqrt", "Reciprocal")
NORM_OPS_ATEN = ("batch_norm", "instance_norm", "sub", "div", "mul", "rsqrt", "sqrt", "reciprocal")


@dataclass(frozen=True)
class Verdict:
    """What a tool did with a case: "right", "alone", "WRONG", "raised" or "INVALID", its error and the details."""

    kind: str
    error: float = 0.0
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return asdict(self)


# ONNX ----------------------------------------------------------------------------------------------------------------


def run_onnx(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Outputs:
    """Outputs of onnxruntime with its own optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _run_session(model, options, feeds)


def _run_session(model: onnx.ModelProto, options: ort.SessionOptions, feeds: dict[str, np.ndarray]) -> Outputs:
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {name: value for name, value in feeds.items() if name in names})


def _ours(model: onnx.ModelProto, options: dict[str, str]) -> onnx.ModelProto:
    from foldserve.training.fold.onnx.api import fold_onnx

    return fold_onnx(model, **options).model


def _onnxscript(model: onnx.ModelProto, options: dict[str, str]) -> onnx.ModelProto:
    """The optimizer that torch.onnx.export runs unasked, with its rewrite rules."""
    import onnx_ir
    from onnxscript import optimizer, rewriter

    graph = onnx_ir.serde.deserialize_model(model)
    optimizer.optimize_ir(graph)
    return onnx_ir.serde.serialize_model(rewriter.rewrite(graph))


def _onnxoptimizer(model: onnx.ModelProto, options: dict[str, str]) -> onnx.ModelProto:
    import onnxoptimizer

    return onnxoptimizer.optimize(model)


def _onnxsim(model: onnx.ModelProto, options: dict[str, str]) -> onnx.ModelProto:
    import onnxsim

    simplified, is_checked = onnxsim.simplify(model)
    if not is_checked:
        raise RuntimeError("onnxsim's own check failed")
    return simplified


def _onnxslim(model: onnx.ModelProto, options: dict[str, str]) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(model)


def _onnxruntime(model: onnx.ModelProto, options: dict[str, str]) -> onnx.ModelProto:
    """The graph as onnxruntime's basic level, part of its default level, leaves it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = os.path.join(folder, "optimized.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


ONNX_TOOLS: dict[str, tuple[str, Callable[[onnx.ModelProto, dict[str, str]], onnx.ModelProto]]] = {
    "foldserve": ("foldserve.training.fold", _ours),
    "onnxscript": ("onnxscript", _onnxscript),
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "onnxoptimizer": ("onnxoptimizer", _onnxoptimizer),
    "onnxsim": ("onnxsim", _onnxsim),
    "onnxslim": ("onnxslim", _onnxslim),
}


def onnx_feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Random inputs for a case; initializers that are inputs as well keep their values."""
    rng = np.random.default_rng(11)
    given = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in given:
            continue
        tensor = value.type.tensor_type
        shape = [dim.dim_value or ROWS for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        values = rng.normal(0.4, 1.5, shape)
        feeds[value.name] = np.asarray(values > 0 if dtype == np.bool_ else values, dtype)
    return feeds


def judge_onnx(tool: str, case: OnnxCase) -> Verdict:
    """Return what `tool` made of `case`, against a float64 evaluation of the untouched model."""
    model = case.build()
    feeds = onnx_feeds(model)
    expected = _where_it_runs(_oracle(model, feeds), model, feeds)
    given = onnx.ModelProto()
    given.CopyFrom(model)
    try:
        with _silence():
            result = ONNX_TOOLS[tool][1](given, case.options)
    except Exception as err:
        return Verdict("raised", detail=_first_line(err))
    try:
        found = run_onnx(result, feeds)
        if tool != "onnxruntime" and _is_checked(model):  # what onnxruntime saves has its own operators
            onnx.checker.check_model(result, full_check=True)
    except Exception as err:
        if not _runs(model, feeds):
            return Verdict("alone", detail="the model itself does not run")
        return Verdict("INVALID", detail=_first_line(err))
    if case.verdict == "overridable" and any(t.name not in _input_names(result) for t in _overridable(model)):
        return Verdict("WRONG", float("inf"), "an initializer that callers may replace is gone")
    is_folded = _norm_ops(result) < _norm_ops(model)
    return _judge(found, expected, case.tolerance, is_folded)


def _oracle(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Outputs | None:
    """Outputs in float64, or onnxruntime's where an operator is not known; None when neither runs."""
    from foldserve.training.fold.onnx.evaluator import Evaluator

    wide = {name: np.asarray(v, np.float64) if v.dtype.kind == "f" else v for name, v in feeds.items()}
    names = [value.name for value in model.graph.output]
    values = Evaluator(model).run(wide, names)
    if all(name in values for name in names):
        return [values[name] for name in names]
    try:
        return run_onnx(model, feeds)
    except Exception:
        return None


def _where_it_runs(expected: Outputs | None, model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Outputs | None:
    """Blank out what leaves the range of the model's own dtype: no tool can be judged by it."""
    try:
        plain = run_onnx(model, feeds)
    except Exception:
        return expected
    pairs = zip(expected or [], plain, strict=False)
    return None if expected is None else [np.where(np.isfinite(found), one, np.nan) for one, found in pairs]


def _runs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> bool:
    try:
        run_onnx(model, feeds)
    except Exception:
        return False
    return True


def _is_checked(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:
        return False
    return True


def _norm_ops(model: onnx.ModelProto) -> int:
    nodes = [*_nodes_within(model.graph.node), *(n for f in model.functions for n in _nodes_within(f.node))]
    norms = sum(node.op_type == "BatchNormalization" for node in nodes)
    by_hand = sum(node.op_type in NORM_OPS_ONNX[1:] for node in nodes)
    return norms * 100 + by_hand  # arithmetic that a fold leaves for a constant folder is no norm


def _nodes_within(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes_within(attribute.g.node)


def _overridable(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    names = _input_names(model)
    return [tensor for tensor in model.graph.initializer if tensor.name in names]


def _input_names(model: onnx.ModelProto) -> set[str]:
    return {value.name for value in model.graph.input}


# PyTorch -------------------------------------------------------------------------------------------------------------


class _Counting(TorchDispatchMode):
    """Counts the operations of a norm while a model runs."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = getattr(getattr(func, "overloadpacket", func), "__name__", str(func))
        self.found["norm" if "batch_norm" in name else name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def norms(self) -> int:
        by_hand = sum(count for name, count in self.found.items() if name in NORM_OPS_ATEN)
        return self.found["norm"] * 100 + by_hand


Runner = Callable[[Tensor], Any]


def _fold_torch(model: nn.Module, x: Tensor, case: TorchCase) -> Runner:
    from foldserve.training.fold.api import fold

    return fold(model, (x,), **dict(case.options)).model


def _fx_fuse(model: nn.Module, x: Tensor, case: TorchCase) -> Runner:
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


def _fuse_modules(model: nn.Module, x: Tensor, case: TorchCase) -> Runner:
    """The names are given as a careful reader of the module list would: each layer with the norm right behind it."""
    from torch.ao.quantization import fuse_modules

    named = [(name, type(module).__name__) for name, module in model.named_children()]
    layers = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear")
    pairs = [[a, b] for (a, one), (b, two) in pairwise(named) if one in layers and "BatchNorm" in two]
    return fuse_modules(model, pairs) if pairs else model


def _torchao(model: nn.Module, x: Tensor, case: TorchCase) -> Runner:
    """The folding that `prepare_pt2e` does to an exported model."""
    from torchao.quantization.pt2e.utils import _fuse_conv_bn_

    module = torch.export.export(model, (x,)).module()
    _fuse_conv_bn_(module)
    return module


def _inductor_graph(model: nn.Module, x: Tensor, freezing: bool) -> Runner:
    """The graph that inductor's passes leave, run by eager kernels instead of generated code."""
    import torch._inductor.config as config
    from torch._inductor.compile_fx import compile_fx

    def keep(graph: torch.fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
        def call(values: list[Any]) -> Any:
            return graph(*values)

        call._boxed_call = True  # type: ignore[attr-defined]  # takes its arguments as one list
        return call

    def keep_counted(graph: torch.fx.GraphModule, inputs: Sequence[Any], **more: Any) -> Any:
        run_counted.norms += _graph_norms(graph)  # type: ignore[attr-defined]
        return keep(graph, inputs, **more)

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        return compile_fx(graph, inputs, inner_compile=keep_counted)

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)

    def run_counted(value: Tensor) -> Any:
        with config.patch(freezing=freezing):
            return compiled(value)

    run_counted.norms = 0  # type: ignore[attr-defined]
    return run_counted


def _graph_norms(graph: torch.fx.GraphModule) -> int:
    """Subtractions of a mean that are left: freezing merges a norm's other constants even where nothing is folded."""
    names = [getattr(getattr(n.target, "overloadpacket", None), "__name__", "") for n in graph.graph.nodes]
    return sum("batch_norm" in name or name == "sub" for name in names)


def _inductor(model: nn.Module, x: Tensor, case: TorchCase) -> Runner:
    return _inductor_graph(model, x, freezing=True)


def _exporter(model: nn.Module, x: Tensor, case: TorchCase) -> Runner:
    """`torch.onnx.export` with its defaults, run by onnxruntime without further optimisations."""
    program = torch.onnx.export(model, (x,), verbose=False)
    proto = program.model_proto

    def call(value: Tensor) -> Any:
        names = [i.name for i in proto.graph.input]
        return [torch.from_numpy(out) for out in run_onnx(proto, {names[0]: value.numpy()})]

    call.model = proto  # type: ignore[attr-defined]
    return call


TORCH_TOOLS: dict[str, tuple[str, Callable[[nn.Module, Tensor, TorchCase], Runner]]] = {
    "foldserve": ("foldserve.training.fold", _fold_torch),
    "fx fuse": ("torch", _fx_fuse),
    "ao.fuse_modules": ("torch", _fuse_modules),
    "torchao": ("torchao", _torchao),
    "inductor freezing": ("torch", _inductor),
    "torch.onnx.export": ("onnxscript", _exporter),
}


def judge_torch(tool: str, case: TorchCase) -> Verdict:
    """Return what `tool` made of `case`, against the untouched model in float64 where it can be widened."""
    torch.manual_seed(1)
    x = torch.randn(case.shape)
    with torch.no_grad():
        model = case.build()
        expected = _torch_oracle(model, x)
        before = _norms_of(model, x) if tool != "inductor freezing" else _norms_of(_inductor_graph(model, x, False), x)
        given = copy.deepcopy(model)
        torch._dynamo.reset()  # what the run above, under a counting mode, made it give up on
        try:
            with _silence():
                result = TORCH_TOOLS[tool][1](given, x, case)
                found = _leaves(result(x.clone()))
        except Exception as err:
            return Verdict("raised", detail=_first_line(err))
        proto = getattr(result, "model", None) if tool == "torch.onnx.export" else None
        after = _norm_ops(proto) if proto is not None else _norms_of(result, x)
    tolerance = 2e-2 if "float16" in case.name else 1e-3
    return _judge(found, expected, tolerance, after < before)


def _torch_oracle(model: nn.Module, x: Tensor) -> Outputs:
    try:
        return _leaves(copy.deepcopy(model).double()(x.double()))
    except Exception:  # statistics in plain tensors, or casts in forward: float32 tells a wrong fold well enough
        return _leaves(copy.deepcopy(model)(x.clone()))


def _norms_of(model: Runner, x: Tensor) -> int:
    if hasattr(model, "norms"):  # compiled: a counting mode would keep it from running as such
        if not model.norms:
            model(x.clone())
        return int(model.norms)
    model = copy.deepcopy(model) if isinstance(model, nn.Module) else model
    torch._dynamo.reset()
    with _Counting() as counting:
        model(x.clone())
    return counting.norms


def _leaves(value: Any) -> Outputs:
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return [tensor.detach().numpy() for tensor in tensors]


# Both ----------------------------------------------------------------------------------------------------------------


def _judge(found: Outputs, expected: Outputs | None, tolerance: float, is_folded: bool) -> Verdict:
    if expected is None:
        return Verdict("right" if is_folded else "alone", detail="nothing to compare with")
    if [value.shape for value in found] != [value.shape for value in expected]:
        return Verdict("WRONG", float("inf"), "other shapes")
    error = max((_relative(one, other) for one, other in zip(found, expected, strict=True)), default=0.0)
    if not error <= tolerance:
        return Verdict("WRONG", error, f"off by {error:.2g} of the largest output")
    return Verdict("right" if is_folded else "alone", error)


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    largest = float(np.abs(expected[finite]).max())
    difference = float(np.abs(np.asarray(found, np.float64) - expected)[finite].max())
    return difference / largest if largest > 0 else difference


class _silence:  # noqa: N801 - reads as a verb where it is used
    """Keeps what tools print out of the results."""

    def __enter__(self) -> None:
        self._sink = open(os.devnull, "w")
        self._both = (redirect_stdout(self._sink), redirect_stderr(self._sink))
        for one in self._both:
            one.__enter__()

    def __exit__(self, *why: object) -> None:
        for one in self._both:
            one.__exit__(None, None, None)
        self._sink.close()


def _first_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {lines[0] if lines else ''}"[:160]
