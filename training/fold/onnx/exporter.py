"""Turns a folded PyTorch network of the user's own into ONNX, and checks that the exporter kept its numbers.

The end of `python -m training fold package.module:factory --export`. LeNet's self-describing model file has an exporter
of its own; this one adds no names, labels or preprocessing.
"""

import warnings
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ...errors import ExportError
from ..api import Folded

_TOLERANCE = 1e-4  # of the largest |output|: float32 in two runtimes; a wrong export is off by far more


def export_folded(folded: Folded, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """Return the folded network as one ONNX model with a dynamic batch axis where the network allows one.

    Args:
        folded: what `fold` returned; when norms stayed, the exporter's own folding is switched off.
        inputs: what `fold` was called with, first axis the batch.

    Raises:
        ExportError: the exporter failed, or onnxruntime's outputs differ from PyTorch's.
    """
    model = _export(folded.model, inputs, optimize=not folded.report.refused)
    onnx.checker.check_model(model, full_check=True)
    _require_same_outputs(folded.model, model, inputs)
    return model


def _export(module: nn.Module, inputs: tuple[Tensor, ...], *, optimize: bool) -> onnx.ModelProto:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    problem: Exception | None = None
    for shapes in (tuple({0: "batch"} if value.ndim else {} for value in inputs), None):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program: Any = torch.onnx.export(
                    module, inputs, dynamo=True, optimize=optimize, dynamic_shapes=shapes, verbose=False
                )
            break
        except Exception as err:  # the exporter's errors share no base; the second try has a fixed batch
            problem = err
    else:
        first = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise ExportError(f"the folded network cannot be exported: {first}") from problem
    ClearMetadataAndDocStringPass()(program.model)  # source paths of this machine
    for value in program.model.graph.inputs:
        value.metadata_props.clear()
    result: onnx.ModelProto = program.model_proto
    return result


def _require_same_outputs(module: nn.Module, model: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: value.numpy() for i, value in zip(session.get_inputs(), inputs, strict=True)}
    found = session.run(None, feeds)
    with torch.no_grad():
        result = module(*inputs)
    expected = [value for value in torch.utils._pytree.tree_leaves(result) if isinstance(value, Tensor)]
    for one, other in zip(expected, found, strict=True):
        largest = float(one.abs().max().item())
        error = float(np.max(np.abs(one.numpy() - other))) if one.numel() else 0.0
        if not error <= _TOLERANCE * max(largest, 1e-30):
            raise ExportError(f"the exported network differs by {error:.2e} on outputs up to {largest:.2e}")
