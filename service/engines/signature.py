"""Read what a session states about its model: inputs, outputs, class names and the image it takes.

Everything is read from the graph and its metadata; a model that carries none of ours is served as plain tensors.
Refuses what the batcher could not serve, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnxruntime

from foldserve.format.errors import FormatError
from foldserve.format.image import ImageRecipe
from foldserve.format.metadata import IMAGE, LABELS, read_image, read_labels
from foldserve.format.task import COLUMNS, Task, read_task

from ..errors import ArtifactInvalid
from ..tensors import TensorSpec

_ORT_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
} | {f"tensor({sign}int{bits})": f"{sign}int{bits}".upper() for sign in ("u", "") for bits in (8, 16, 32, 64)}


@dataclass(frozen=True, slots=True)
class Signature:
    """Names, shapes and types from the graph, class names, image and task from its metadata."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    class_names: tuple[str, ...] | None
    image: ImageRecipe | None
    task: Task

    @property
    def is_free(self) -> bool:
        """Whether rows of different requests may differ in their shape."""
        return any(spec.is_free for spec in self.inputs)

    @property
    def fixed_rows(self) -> int | None:
        """The only batch size that the graph takes, or None when its first axis is free."""
        return next((spec.shape[0] for spec in self.inputs if spec.shape[0] is not None), None)


def read_signature(session: onnxruntime.InferenceSession, max_free_axis: int = 1) -> Signature:
    """Read the signature of a session.

    Args:
        session: of the model.
        max_free_axis: how large an axis behind the batch may be where the graph leaves it free.

    Raises:
        ArtifactInvalid: a tensor has no batch axis or a type that HTTP cannot carry, or the metadata contradicts the
            graph. What an output declares for its batch is no reason: exporters write 1 there
            for graphs that take any number, and every answer is compared with the number of rows.
    """
    inputs = tuple(_spec("input", node, max_free_axis) for node in session.get_inputs())
    outputs = tuple(_spec("output", node, max_free_axis) for node in session.get_outputs())
    if not inputs:
        raise ArtifactInvalid("the model takes no input; there is nothing to batch")
    rows = {spec.shape[0] for spec in inputs}
    if len(rows - {None}) > 1:
        raise ArtifactInvalid(f"inputs differ in their first axis ({rows}), expected the batch in all")
    if None not in rows and (other := {spec.shape[0] for spec in outputs} - rows - {None}):
        raise ArtifactInvalid(
            f"inputs and outputs differ in their first axis ({rows | other}), expected the batch in all"
        )
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    try:
        task = _task(metadata, inputs, outputs)
        return Signature(inputs, outputs, metadata, _class_names(metadata, outputs), _image(metadata, inputs), task)
    except FormatError as err:
        raise ArtifactInvalid(str(err)) from err


def _spec(kind: str, node: Any, max_free_axis: int) -> TensorSpec:
    # paddle2onnx writes -1 for what others leave out.
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape or ())
    if node.type not in _ORT_DATATYPES:
        raise ArtifactInvalid(f"{kind} {node.name!r} is a {node.type}, expected one of {sorted(_ORT_DATATYPES)}")
    if not shape:
        raise ArtifactInvalid(f"{kind} {node.name!r} has shape {node.shape}, expected the batch as its first axis")
    return TensorSpec(node.name, _ORT_DATATYPES[node.type], shape, max_free_axis)


def _class_names(metadata: Mapping[str, str], outputs: tuple[TensorSpec, ...]) -> tuple[str, ...] | None:
    class_names = read_labels(metadata)
    if class_names is not None and not any(spec.shape[1:] == (len(class_names),) for spec in outputs):
        shapes = {spec.name: spec.shape for spec in outputs}
        raise FormatError(f"{LABELS} names {len(class_names)} classes, no output has so many: {shapes}")
    return class_names


def _task(metadata: Mapping[str, str], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Task:
    task = read_task(metadata, [spec.name for spec in outputs])
    shapes = [spec.row_shape for spec in inputs]
    if task.columns is not None and shapes != [(len(task.columns),)]:
        raise FormatError(f"{COLUMNS} names {len(task.columns)} values of a row, the graph takes rows of {shapes}")
    return task


def _image(metadata: Mapping[str, str], inputs: tuple[TensorSpec, ...]) -> ImageRecipe | None:
    image = read_image(metadata)
    taken = {spec.name: (spec.datatype, spec.declared_row_shape) for spec in inputs}
    if image is not None and taken.get(image.input) != ("UINT8", image.shape):
        raise FormatError(
            f"{IMAGE} states input {image.input!r} of UINT8 {image.shape} ({image.layout}), the graph takes {taken}"
        )
    return image
