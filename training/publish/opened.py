"""A source and what is wanted of it -> the network that answers, the pictures or rows that it takes, and examples.

The first half of publishing, before anything is folded; `verify` starts here as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from foldserve.format.image import ANY_SIZE
from foldserve.format.task import CLASSIFY

from ..errors import ConfigError
from ..fold.onnx.files import MOST_BYTES, require_size, weights_bytes
from ..fold.onnx.protos import with_free_sizes
from ..user_model.inputs import make_input, shape_of
from ..user_model.source import Source
from ..user_model.torchscript import converted, is_script
from .examples import (
    Examples,
    PictureInput,
    class_folders,
    made_pictures,
    made_rows,
    picture_examples,
)
from .network import Network, OnnxNetwork, TorchNetwork, as_float32
from .recipes import read_image
from .rows import LABEL, column_names, read_rows, row_examples
from .served_graph import (
    graph_inputs,
    with_current_opset,
    with_portable_locales,
    without_dead_statistics,
    without_zipmaps,
)
from .wanted import Wanted

_ROWS = 2  # of what is only looked at


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network that runs.

    Attributes:
        network: to be published.
        wanted: with what followed from the source and the examples.
        images: how pictures become its input; None for other inputs.
        examples: what the proof runs on.
        names: the served graph's inputs, in the network's order.
        notes: for people.
        classes: as an ONNX graph's ZipMap names them, in the order of the scores; None where it has none.
    """

    network: Network
    wanted: Wanted
    images: PictureInput | None
    examples: Examples
    names: tuple[str, ...]
    notes: tuple[str, ...]
    classes: tuple[str, ...] | None = None


def open_network(source: Source, wanted: Wanted) -> Opened:
    """Return the network of `source` with its examples.

    Raises:
        ConfigError: what is wanted does not fit it, or it is too large for one file.
    """
    model = source.model
    weights = weights_bytes(model) if isinstance(model, onnx.ModelProto) else _float32_bytes(model)
    require_size(source.name, weights, MOST_BYTES)
    if isinstance(wanted.image, partial):  # `weights.transforms` of torchvision, not called
        wanted = replace(wanted, image=wanted.image())
    folders = class_folders(wanted.examples)
    notes = source.notes
    if folders is not None and wanted.labels is None and wanted.task in (None, "classify"):
        wanted = replace(wanted, labels=folders)
        notes = (*notes, f"class names from the folders of the examples: {', '.join(folders[:5])}")
    if isinstance(model, onnx.ModelProto):
        opened = _open_onnx(model, wanted)
    else:
        opened = _open_module(source, wanted)
    return replace(opened, notes=(*notes, *opened.notes))


def _open_onnx(model: onnx.ModelProto, wanted: Wanted) -> Opened:
    model, dead = without_dead_statistics(model)
    notes: tuple[str, ...] = ()
    if dead:
        notes = (f"{dead} norms name statistics of a batch that nothing reads: they take their own, as at rest",)
    model, texts = with_portable_locales(model)
    if texts:
        notes = (
            *notes,
            f"{texts} text operators take the locale C.UTF-8 for en_US.UTF-8: the same letters, everywhere",
        )
    model, classes = without_zipmaps(with_current_opset(with_free_sizes(model)))
    if classes is not None and wanted.labels is None and wanted.task in (None, "classify"):
        wanted = replace(wanted, labels=classes)
        notes = (*notes, f"class names from the model's ZipMap: {', '.join(classes[:5])}")
    model = with_fixed_sizes(model, wanted)
    network = OnnxNetwork(model, wanted.outputs)
    forms = _forms_of(model)
    if wanted.image is None:
        found = _row_examples(wanted, forms, network.fixed_rows)
        opened = _with_rows(network, wanted, found, notes)
    else:
        opened = _with_pictures(network, wanted, forms[network.inputs[0]][0] if len(forms) == 1 else None, notes)
    return replace(opened, classes=None if classes is None else tuple(classes))


def _open_module(source: Source, wanted: Wanted) -> Opened:
    if wanted.image is not None:
        recipe, _ = read_image(wanted.image, _row_shape(source, wanted))
        if recipe.is_free:
            raise ConfigError("--image: height or width -1, any size, is for ONNX files that leave it open")
        example: tuple[Tensor, ...] = (make_input([_ROWS, *recipe.shape], torch.float32, _generator()),)
        if source.example is not None:
            example = source.example
        network, notes = _network(source, wanted, example)
        return _with_pictures(network, wanted, _row_shape(source, wanted), notes)
    example = tuple(value.float() if value.is_floating_point() else value for value in _example(source, wanted))
    network, notes = _network(source, wanted, example)
    forms = {
        name: (tuple(value.shape[1:]), _numpy_dtype(value)) for name, value in zip(network.inputs, example, strict=True)
    }
    found = _row_examples(wanted, forms, network.fixed_rows)
    return _with_rows(network, wanted, found, notes)


def _network(source: Source, wanted: Wanted, example: tuple[Tensor, ...]) -> tuple[TorchNetwork, tuple[str, ...]]:
    """Return the network in float32; a TorchScript program is converted, and has to give the same bits all along."""
    module, notes = as_float32(source.module)
    names = _input_names(wanted), wanted.outputs
    if not is_script(module):
        return TorchNetwork(module, example, *names), notes
    network = TorchNetwork(converted(module, example), example, *names, program=module)
    return network, (*notes, "TorchScript: its operations were converted, and give the same bits on every example")


def _float32_bytes(module: nn.Module) -> int:
    """Return the bytes of a network's weights in a graph: floats of any precision as float32, shared ones once."""
    tensors = dict.fromkeys((*module.parameters(), *module.buffers()))
    return sum(tensor.numel() * (4 if tensor.is_floating_point() else tensor.element_size()) for tensor in tensors)


def _with_pictures(network: Network, wanted: Wanted, shape: Any, notes: tuple[str, ...]) -> Opened:
    if len(network.inputs) != 1:
        raise ConfigError(f"--image: the network takes {', '.join(network.inputs)}; pictures go into one input")
    known = shape if shape is not None and all(shape) else None
    recipe, normalisation = read_image(wanted.image, known)
    images = PictureInput(
        recipe=recipe,
        normalisation=normalisation,
        name=network.inputs[0],
        transforms=wanted.image if callable(wanted.image) else None,
    )
    if wanted.examples is None:
        found = made_pictures(images)
    else:
        found = picture_examples(wanted.examples, images, wanted.labels)
    return Opened(network=network, wanted=wanted, images=images, examples=found, names=(recipe.input,), notes=notes)


def _with_rows(network: Network, wanted: Wanted, found: Examples, notes: tuple[str, ...]) -> Opened:
    columns = wanted.columns if wanted.columns is not None else column_names(wanted.examples)
    wanted = replace(wanted, columns=columns)
    return Opened(network=network, wanted=wanted, images=None, examples=found, names=network.inputs, notes=notes)


def _row_examples(wanted: Wanted, forms: Mapping[str, Any], fixed_rows: int | None) -> Examples:
    if wanted.examples is None:
        free = [name for name, (shape, _) in forms.items() if not all(shape)]
        if free:
            raise ConfigError(
                f"input {free[0]!r} has sizes that the graph leaves open; say them with --input, or give examples"
            )
        return made_rows(forms)
    return row_examples(wanted.examples, forms, wanted.labels, have_classes=wanted.chosen_task == CLASSIFY)


def _example(source: Source, wanted: Wanted) -> tuple[Tensor, ...]:
    """Return example inputs: those that were given, those of an exported program, or the first rows of the examples."""
    if wanted.inputs and all(isinstance(value, Tensor) for value in wanted.inputs):
        return tuple(wanted.inputs)
    if wanted.inputs:
        return tuple(_from_spec(spec) for spec in wanted.inputs)
    if source.example is not None:
        return source.example
    given = read_rows(wanted.examples)
    if given is None:
        raise ConfigError(
            "the shapes of the inputs are not known; give rows with --examples, or the shape of each input, in "
            "order, with --input, such as --input 1,3,224,224 (in Python examples= and inputs=)"
        )
    arrays = (
        [rows for name, rows in given.items() if name != LABEL]
        if isinstance(given, Mapping)
        else list(given)
        if isinstance(given, tuple)
        else [given]
    )
    return tuple(torch.as_tensor(np.asarray(array)[:_ROWS]) for array in arrays)


def _from_spec(spec: str) -> Tensor:
    shape, dtype = shape_of(spec.rpartition("=")[2])
    return make_input([max(_ROWS, shape[0]), *shape[1:]], dtype, _generator())


def _input_names(wanted: Wanted) -> list[str]:
    specs = [spec for spec in wanted.inputs if isinstance(spec, str) and "=" in spec]
    return [spec.partition("=")[0] for spec in specs] if len(specs) == len(wanted.inputs) else []


def _row_shape(source: Source, wanted: Wanted) -> tuple[int, ...] | None:
    if wanted.inputs:
        first = wanted.inputs[0]
        return tuple(first.shape[1:]) if isinstance(first, Tensor) else tuple(shape_of(first.rpartition("=")[2])[0][1:])
    return None if source.example is None else tuple(source.example[0].shape[1:])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _numpy_dtype(value: Tensor) -> np.dtype[Any]:
    if value.dtype in (torch.float64, torch.float16, torch.bfloat16):
        return np.dtype(np.float32)
    return np.dtype(value.numpy().dtype)


def _forms_of(model: onnx.ModelProto) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape of a row, 0 for a size that is open, and the type of each input."""
    forms = {}
    for value in graph_inputs(model):
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        forms[value.name] = _sizes(value), dtype
    return forms


def with_fixed_sizes(model: onnx.ModelProto, wanted: Wanted) -> onnx.ModelProto:
    """Return the model with the sizes that `--input` or the pictures give to the open axes behind the batch."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    values = graph_inputs(changed)
    shapes = [shape_of(spec.rpartition("=")[2])[0][1:] for spec in wanted.inputs if isinstance(spec, str)]
    if shapes and len(shapes) != len(values):
        names = ", ".join(value.name for value in values)
        raise ConfigError(f"--input: got {len(shapes)} shapes, expected {len(values)}, for {names}")
    if not shapes and wanted.image is not None and len(values) == 1:
        shapes = [list(read_image(wanted.image, None if _is_open(values[0]) else _sizes(values[0]))[0].shape)]
    for value, shape in zip(values, shapes, strict=False):
        dims = value.type.tensor_type.shape.dim[1:]
        if len(dims) != len(shape) or any(
            d.dim_value > 0 and size != d.dim_value for d, size in zip(dims, shape, strict=True)
        ):
            raise ConfigError(f"input {value.name!r}: rows of {tuple(shape)} do not fit {_sizes(value)}")
        for dim, size in zip(dims, shape, strict=True):
            if size != ANY_SIZE:  # which stays as it is
                dim.dim_value = size
    return changed


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(max(0, dim.dim_value) for dim in value.type.tensor_type.shape.dim[1:])


def _is_open(value: onnx.ValueInfoProto) -> bool:
    return not all(_sizes(value))
