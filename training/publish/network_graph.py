"""The network alone, folded, as an ONNX graph whose weights are those of the source or their exact folds, bit for bit.

The middle of publishing: after the network was opened, before `served_graph` adds what surrounds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from foldserve.format.image_options import Normalisation

from ..errors import ConfigError, ExportError, FoldError
from ..fold import Folded, fold, fold_onnx
from ..fold.onnx.exporter import export_module
from ..fold.pytorch.float64 import full_copy
from ..fold.report import Report
from ..fold.rounding import round_once
from ..model_file import same_bits
from .network import Array, OnnxNetwork, TorchNetwork
from .served_graph import PREFIX

OPSET = 20


@dataclass(frozen=True, kw_only=True)
class NetworkGraph:
    """A network as a graph.

    Attributes:
        model: its inputs and outputs are those of the network, in order.
        report: every norm, folded or not; None where nothing could be folded, and `notes` say why.
        takes_pixels: the normalisation of the input is in its weights.
        notes: for people.
    """

    model: onnx.ModelProto
    report: Report | None
    takes_pixels: bool
    notes: tuple[str, ...] = ()


def graph_of_module(network: TorchNetwork, example: tuple[Tensor, ...], wanted: Normalisation | None) -> NetworkGraph:
    """Return a PyTorch network as a graph, its norms and the normalisation of its pixels folded where that is exact.

    Args:
        network: to export.
        example: what it takes, two rows or more.
        wanted: normalisation of pixels to be folded into it; None for none.

    Raises:
        ExportError: torch.export cannot read the network; the message says where, and names the other way.
    """
    folded, takes_pixels, notes = _folded(network, example, wanted)
    if folded is None:
        module, report = network.module, None
    else:
        _require_same_weights(network.module, folded.model, folded.exact)
        module, report = full_copy(folded.model), folded.report  # of which no float64 values are kept
        del folded
    has_norms = report is None or bool(report.refused)
    model = _exported(network, module, example, optimize=not has_norms)
    _require_weights_in(model, module)
    return NetworkGraph(model=model, report=report, takes_pixels=takes_pixels, notes=notes)


def _folded(
    network: TorchNetwork, example: tuple[Tensor, ...], wanted: Normalisation | None
) -> tuple[Folded | None, bool, tuple[str, ...]]:
    dynamic = network.fixed_rows is None
    notes: tuple[str, ...] = ()
    if wanted is not None and not wanted.is_identity:
        mean, std = _number(wanted.mean), _number(wanted.std)
        options: dict[str, Any] = {"dynamic": dynamic, "padding": "exact"}
        try:
            with_input = fold(
                network.module, example, **options, input_scale=wanted.scale, input_mean=mean, input_std=std
            )
            return with_input, True, ()
        except FoldError as err:
            notes = (f"mean and standard deviation stay as arithmetic before the network: {_short(err)}",)
    try:
        return fold(network.module, example, dynamic=dynamic, padding="exact"), False, notes
    except FoldError as err:
        return None, False, (*notes, f"nothing was folded: {_short(err)}")


def _number(values: tuple[float, ...]) -> float | tuple[float, ...]:
    return values[0] if len(set(values)) == 1 else values


def _short(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]


def _exported(
    network: TorchNetwork, module: nn.Module, example: tuple[Tensor, ...], *, optimize: bool
) -> onnx.ModelProto:
    try:
        return export_module(
            module,
            example,
            opset=OPSET,
            optimize=optimize,
            input_names=[f"{PREFIX}{name}" for name in network.inputs],
            output_names=[f"{PREFIX}{name}" for name in network.outputs],
        )
    except ExportError as err:
        raise ExportError(
            f"{err}{_line_of(err)}; mend that line, or export the network to ONNX by another way and publish the file: "
            "foldserve publish NETWORK.onnx"
        ) from err


def _line_of(err: BaseException) -> str:
    """Return where in the user's code an export ended, from the deepest frame that is neither torch's nor ours."""
    place = ""
    seen: BaseException | None = err
    while seen is not None:
        for line in str(seen).splitlines():
            text = line.strip()
            inside = any(part in text for part in ("/torch/", "/foldserve/", "/training/fold/", "<frozen"))
            if text.startswith('File "') and ", line " in text and not inside:
                place = text
        seen = seen.__cause__ or seen.__context__
    return f" (at {place})" if place else ""


def graph_of_onnx(network: OnnxNetwork, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> NetworkGraph:
    """Return an ONNX model with its norms folded where that is exact.

    Args:
        network: that was opened.
        model: the same, its preprocessing already before it.
        shapes: input -> its whole shape in the proof of the fold.
    """
    try:
        folded = fold_onnx(model, padding="exact", input_shapes=dict(shapes))
    except (FoldError, ConfigError) as err:
        pixels = any(node.name.startswith(PREFIX) for node in model.graph.node)
        return NetworkGraph(
            model=model, report=None, takes_pixels=not pixels, notes=(f"nothing was folded: {_short(err)}",)
        )
    _require_initializers(network.model, folded.model, folded.exact)
    own = tuple(site for site in folded.report.refused if not site.node.startswith(PREFIX))
    report = replace(folded.report, refused=own)
    left = any(node.name.startswith(f"{PREFIX}mul") for node in folded.model.graph.node)
    note = ("mean and standard deviation stay as arithmetic before the network",) if left else ()
    return NetworkGraph(model=folded.model, report=report, takes_pixels=not left, notes=note)


def _require_same_weights(source: nn.Module, folded: nn.Module, exact: Mapping[str, Array]) -> None:
    """Raise ExportError unless every weight of `folded` is the source's own, or a proved fold rounded once."""
    before, after = source.state_dict(), folded.state_dict()
    for name, tensor in after.items():
        if name in exact:
            right = torch.from_numpy(round_once(exact[name], str(tensor.dtype).removeprefix("torch.")))
        elif name in before and tensor.is_floating_point():
            right = before[name]
        else:
            continue
        if not same_bits(tensor.detach().cpu().numpy(), right.detach().cpu().reshape(tensor.shape).numpy()):
            raise ExportError(f"the folded network holds another value for {name!r} than what was proved")


def _require_weights_in(model: onnx.ModelProto, module: nn.Module) -> None:
    """Raise ExportError when the graph holds, under the name of a weight, other bits than the network."""
    got = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in module.state_dict().items():
        if name in got and not same_bits(tensor.detach().cpu().numpy(), numpy_helper.to_array(got[name])):
            raise ExportError(f"the graph holds another value for {name!r} than the network; it was changed on the way")


def _require_initializers(source: onnx.ModelProto, folded: onnx.ModelProto, exact: Mapping[str, Array]) -> None:
    before = {tensor.name: tensor for tensor in source.graph.initializer}
    for tensor in folded.graph.initializer:
        if tensor.name in before and tensor.name not in exact:
            one, other = numpy_helper.to_array(before[tensor.name]), numpy_helper.to_array(tensor)
            if not same_bits(one, other):
                raise ExportError(f"the folded graph holds another value for {tensor.name!r} than the source")
