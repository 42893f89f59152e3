"""The two files beside the versions that make a model's folder a Triton model repository as well.

Everything in them is derived from the graph, which stays the one source; ours does not read them.
Source of the fields: Triton's model_config.proto.
"""

import onnx

from foldserve.format.metadata import read_labels

from .errors import ArtifactError

CONFIG_NAME = "config.pbtxt"
LABELS_NAME = "labels.txt"
MAX_BATCH_SIZE = 256

_TYPES: dict[int, str] = {
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.UINT16: "TYPE_UINT16",
    onnx.TensorProto.UINT32: "TYPE_UINT32",
    onnx.TensorProto.UINT64: "TYPE_UINT64",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.INT16: "TYPE_INT16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.STRING: "TYPE_STRING",
}
_LABELLED = "probabilities"


def companion_files(name: str, model: onnx.ModelProto) -> dict[str, str]:
    """Return file name -> content of what stands beside the versions of model `name`."""
    names = labels(model)
    files = {CONFIG_NAME: config(name, model)}
    return files if names is None else {**files, LABELS_NAME: "".join(f"{label}\n" for label in names)}


def labels(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Return the class names that the graph's metadata states, None where it states none.

    Raises:
        ArtifactError: one does not fit on a line.
    """
    names = read_labels({entry.key: entry.value for entry in model.metadata_props})
    if names is None:
        return None
    if any("\n" in name or "\r" in name for name in names):
        raise ArtifactError(f"a label holds a line break, expected one line for each of {list(names)}")
    return names


def config(name: str, model: onnx.ModelProto) -> str:
    """Return the text of config.pbtxt: names, types and dims as the graph states them, without the batch axis."""
    rows = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value  # 0: any number, as Triton batches
    has_labels = labels(model) is not None
    inputs = ",\n".join(_tensor(value, bool(rows), has_labels) for value in model.graph.input)
    outputs = ",\n".join(_tensor(value, bool(rows), has_labels) for value in model.graph.output)
    return (
        f'name: "{name}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {0 if rows else MAX_BATCH_SIZE}\n"
        f"input [\n{inputs}\n]\n"
        f"output [\n{outputs}\n]\n"
        # A GPU where there is one, else the CPU; KIND_GPU would not load without.
        "instance_group [ { kind: KIND_AUTO count: 1 } ]\n"
        + ("" if rows else "dynamic_batching { max_queue_delay_microseconds: 0 }\n")
    )


def _tensor(value: onnx.ValueInfoProto, is_fixed: bool, has_labels: bool) -> str:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _TYPES:
        raise ArtifactError(f"{value.name!r} has ONNX type {tensor.elem_type}, which Triton and we cannot serve")
    sizes = tensor.shape.dim if is_fixed else tensor.shape.dim[1:]
    dims = ", ".join(str(dim.dim_value or -1) for dim in sizes)
    form = f"dims: [ {dims} ]" if dims else "dims: [ 1 ] reshape: { shape: [ ] }"
    labelled = f' label_filename: "{LABELS_NAME}"' if value.name == _LABELLED and has_labels else ""
    return f'  {{ name: "{value.name}" data_type: {_TYPES[tensor.elem_type]} {form}{labelled} }}'
