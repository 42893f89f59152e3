"""The bodies of the protocol as pydantic models: what `/docs` shows of them.

They describe; `request` and `response` read and write. Members that the protocol leaves open are left open here.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Parameters = dict[str, str | int | float | bool]


class InputTensor(BaseModel):
    """One input: its values as JSON, or the number of bytes that stand for it behind the JSON."""

    name: str
    shape: list[int] = Field(description="sizes of all axes, the batch first")
    datatype: str = Field(description="as in the model's metadata, nothing is cast; BYTES for PNG or JPEG files")
    parameters: Parameters | None = Field(None, description="binary_data_size: bytes of this input behind the JSON")
    data: list[Any] | None = Field(None, description="row-major values, flat or nested; not together with binary data")


class RequestedOutput(BaseModel):
    """One output that is wanted."""

    name: str
    parameters: Parameters | None = Field(
        None, description="binary_data: as bytes behind the JSON; classification: k largest values as text"
    )


class InferenceRequest(BaseModel):
    """Inputs for one inference, each with the same number of rows."""

    id: str | None = Field(None, description="is sent back with the answer")
    parameters: Parameters | None = Field(
        None, description="binary_data_output: all outputs as bytes; timeout: microseconds, 0 for none"
    )
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = Field(None, description="all outputs where none is named")


class OutputTensor(BaseModel):
    """One output."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = None
    data: list[Any] | None = Field(None, description="row-major values, flat")


class InferenceResponse(BaseModel):
    """The requested outputs, in their order."""

    id: str | None = None
    model_name: str
    model_version: str
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """Name, datatype and shape of an input or output; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str] = Field(description="digest, device, buckets, labels and so on, as text")


class ModelReady(BaseModel):
    """Whether a model answers."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    ready: bool


class ModelList(BaseModel):
    """Names of the models that are served."""

    models: list[str]
