"""The two files beside the versions that make a model's folder a Triton model repository as well.

Everything in them is derived from the graph, which stays the one source; ours does not read them.
Source of the fields: Triton's model_config.proto.
"""

import onnx

from foldserve.format.metadata import LABELS, read_labels

from .errors import ArtifactError

CONFIG_NAME = "config.pbtxt"
LABELS_NAME = "labels.txt"
MAX_BATCH_SIZE = 256

_TYPES: dict[int, str] = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
}
_LABELLED = "probabilities"


def companion_files(name: str, model: onnx.ModelProto) -> dict[str, str]:
    """Return file name -> content of what stands beside the versions of model `name`."""
    return {CONFIG_NAME: config(name, model), LABELS_NAME: "".join(f"{label}\n" for label in labels(model))}


def labels(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the class names that the graph's metadata states.

    Raises:
        ArtifactError: there are none, or one does not fit on a line.
    """
    names = read_labels({entry.key: entry.value for entry in model.metadata_props})
    if names is None:
        raise ArtifactError(f"the graph's metadata has no {LABELS}; export it with its labels")
    if any("\n" in name or "\r" in name for name in names):
        raise ArtifactError(f"a label holds a line break, expected one line for each of {list(names)}")
    return names


def config(name: str, model: onnx.ModelProto) -> str:
    """Return the text of config.pbtxt: names, types and dims as the graph states them, without the batch axis."""
    inputs = ",\n".join(_tensor(value) for value in model.graph.input)
    outputs = ",\n".join(_tensor(value) for value in model.graph.output)
    return (
        f'name: "{name}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {MAX_BATCH_SIZE}\n"
        f"input [\n{inputs}\n]\n"
        f"output [\n{outputs}\n]\n"
        # A GPU where there is one, else the CPU; KIND_GPU would not load without.
        "instance_group [ { kind: KIND_AUTO count: 1 } ]\n"
        "dynamic_batching { max_queue_delay_microseconds: 0 }\n"
    )


def _tensor(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _TYPES:
        raise ArtifactError(f"{value.name!r} has ONNX type {tensor.elem_type}, expected uint8, int64 or float32")
    dims = ", ".join(str(dim.dim_value) for dim in tensor.shape.dim[1:])
    labelled = f' label_filename: "{LABELS_NAME}"' if value.name == _LABELLED else ""
    return f'  {{ name: "{value.name}" data_type: {_TYPES[tensor.elem_type]} dims: [ {dims} ]{labelled} }}'
