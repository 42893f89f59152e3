"""PyTorch network -> ONNX model, without a trace of the machine that exported it.

`export_module` is the one exporter: `training.model_file` gives it the served network, and `export_folded` the result
of `fold` for the command's `--export`, whose outputs it compares. It adds no names, labels or preprocessing.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ...errors import ExportError, FoldError
from ..api import Folded
from .protos import check
from .runtime import outputs_of

BATCH_AXIS = "batch"
_TOLERANCE = 1e-4  # of the largest |output|: float32 in two runtimes; a wrong export is off by far more
_REGISTRATION_LOGGER = "torch.onnx._internal.exporter._registration"


def export_module(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    optimize: bool = True,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Return `module` as one ONNX model, the same for the same weights on any path and in any process.

    Args:
        module: in eval mode.
        inputs: positional arguments, first axis the batch; it becomes the dynamic axis "batch" where `module` allows.
        optimize: let the exporter tidy constants; not where a norm is left, which it would fold by its own rules.
        opset: None takes the exporter's own.
        input_names: None takes those of the arguments of `forward`.
        output_names: None takes names of the exporter's.

    Raises:
        ExportError: `module` cannot be captured for such inputs, or ONNX's check objects to what was made.
    """
    options = {
        "dynamo": True,
        "optimize": optimize,
        "opset_version": opset,
        "input_names": input_names,
        "output_names": output_names,
        "external_data": False,
        "verbose": False,
    }
    program = _captured(module, inputs, options)
    model = _without_traces_of_the_machine(program)
    _release_weights(program)
    require_valid(model)
    return model


def export_folded(folded: Folded, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """Return the folded network as ONNX, with onnxruntime's outputs compared with PyTorch's.

    Args:
        folded: what `fold` returned; when norms stayed, the exporter's own folding is switched off.
        inputs: what `fold` was called with, first axis the batch.

    Raises:
        ExportError: as `export_module`, or the outputs differ.
    """
    model = export_module(folded.model, inputs, optimize=not folded.report.refused)
    _require_same_outputs(folded.model, model, inputs)
    return model


def require_valid(model: onnx.ModelProto) -> None:
    """Raise ExportError when ONNX's own full check objects to an exported `model`."""
    try:
        check(model, "the exported model")
    except FoldError as err:
        raise ExportError(str(err)) from err


def _captured(module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
    """Return the exporter's program, with a fixed batch when the network does not allow a dynamic one."""
    problem: Exception | None = None
    for shapes in (tuple({0: BATCH_AXIS} if value.ndim else {} for value in inputs), None):
        try:
            with torch.no_grad(), _quiet_exporter():
                return torch.onnx.export(module, inputs, dynamic_shapes=shapes, **options)
        except Exception as err:  # the exporter's errors share no base
            problem = problem or err
    reason = next(iter(str(problem.__cause__ or problem).split("\n")), "") if problem else ""
    shapes_given = ", ".join(str(tuple(value.shape)) for value in inputs)
    raise ExportError(f"the network cannot be exported for inputs of shape {shapes_given}: {reason}") from problem


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back what PyTorch's exporter says about itself: its own deprecations, and torchvision not being there."""
    logger = logging.getLogger(_REGISTRATION_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # where graphs are printed that failed
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _without_traces_of_the_machine(program: Any) -> onnx.ModelProto:
    """Return the program's model without source paths and versions, which would give each machine its own bytes."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(program.model)  # in bodies as well
    model: onnx.ModelProto = program.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    model.producer_name, model.producer_version, model.domain = "foldserve", "", ""
    graph.name = "network"
    return model


def _release_weights(program: Any) -> None:
    """Let go of the program's tensors: rules of the exporter's optimizer keep the last graph that they have seen."""
    for value in program.model.graph.initializers.values():
        value.const_value = None


def _require_same_outputs(module: nn.Module, model: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> None:
    names = [value.name for value in model.graph.input]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    exported = outputs_of(model, feeds).values()
    with torch.no_grad():
        result = module(*inputs)
    expected = [value for value in torch.utils._pytree.tree_leaves(result) if isinstance(value, Tensor)]
    for one, other in zip(expected, exported, strict=True):
        largest = float(one.abs().max().item())
        error = float(np.max(np.abs(one.numpy() - other))) if one.numel() else 0.0
        if not error <= _TOLERANCE * max(largest, 1e-30):
            raise ExportError(f"the exported network differs by {error:.2e} on outputs up to {largest:.2e}")
