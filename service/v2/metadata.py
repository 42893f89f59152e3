"""What the protocol says of a server and of a model that is loaded: metadata and configuration.

Everything is read from the engine, which read it from the graph. HTTP and gRPC give the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from ..tensors import TensorSpec

if TYPE_CHECKING:
    from ..live.model import Model

PLATFORM = "onnxruntime_onnx"  # what Triton calls it
BACKEND = "onnxruntime"
_CONFIGURED = {"BYTES": "STRING"}  # where a configuration has a name of its own

_PICTURES = "PNG or JPEG files as BYTES [N] in place of the pixels, in JSON as base64"

# Only what is honoured: clients choose their way by this list.
EXTENSIONS = ("classification", "binary_tensor_data", "model_repository", "model_configuration", "statistics")


def model_metadata(model: "Model", versions: Sequence[int]) -> dict[str, Any]:
    """Return name, versions, inputs and outputs; the batch is part of each shape, as -1.

    Args:
        model: one version of it.
        versions: all of its versions that are served.
    """
    return {
        "name": model.name,
        "versions": [str(version) for version in versions],
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in model.engine.inputs],
        "outputs": [_tensor(spec) for spec in model.engine.outputs],
        "properties": _properties(model),
    }


def model_config(model: "Model", max_rows: int) -> dict[str, Any]:
    """Return the configuration as Triton writes it in JSON; `dims` leave the batch out.

    Args:
        model: one version of it.
        max_rows: rows in one request; more than the largest bucket are split.
    """
    engine = model.engine
    is_cuda = engine.device.provider == "cuda"
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "version_policy": model.artifact.version_policy.as_dict(),
        "max_batch_size": max_rows if model.artifact.max_batch_size is None else max(1, model.artifact.max_batch_size),
        "input": [_configured(spec) | {"format": _format(model, spec)} for spec in engine.inputs],
        "output": [_configured(spec) | {"label_filename": ""} for spec in engine.outputs],
        "instance_group": [{"name": model.name, "kind": "KIND_GPU" if is_cuda else "KIND_CPU", "count": 1}],
        "default_model_filename": model.artifact.model_path.name,
        "dynamic_batching": {"preferred_batch_size": list(engine.buckets), "max_queue_delay_microseconds": 0},
        "response_cache": {"enable": False},
        "model_transaction_policy": {"decoupled": False},
        "parameters": {name: {"string_value": value} for name, value in _properties(model).items()},
    }


def _properties(model: "Model") -> dict[str, str]:
    """Return what else is worth knowing, as text."""
    engine = model.engine
    properties = {
        "sha256": model.artifact.sha256,
        "provider": engine.device.provider,
        "buckets": ",".join(map(str, engine.buckets)),
        "batch_invariant": str(engine.batch_invariant).lower(),
        "verified": str(model.is_verified).lower(),
    }
    if model.artifact.side_files:
        properties["side_files"] = orjson.dumps(model.artifact.side_files).decode()
    if model.image is not None:
        properties["image"] = orjson.dumps(model.image.as_dict()).decode()
        properties["layout"] = model.image.layout
        properties["pictures"] = _PICTURES
    if model.class_names is not None:
        properties["labels"] = orjson.dumps(model.class_names).decode()
    return properties


def _format(model: "Model", spec: TensorSpec) -> str:
    """Return in Triton's terms how an input's axes lie, where the model says that it takes pictures there."""
    is_image = model.image is not None and model.image.input == spec.name
    return f"FORMAT_N{model.image.layout}" if is_image and model.image else "FORMAT_NONE"


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.declared_row_shape]}


def _configured(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": f"TYPE_{_CONFIGURED.get(spec.datatype, spec.datatype)}",
        "dims": list(spec.declared_row_shape),
    }
