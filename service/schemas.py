"""The bodies of requests and answers as pydantic models: what `/docs` shows and what clients may rely on.

They describe; the service itself reads requests with `predict_body`, which says where a mistake stands and takes a
tenth of the time. A test compares the two.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole_number(value: Any) -> Any:
    """Let 3.0 pass as 3, and neither true nor "3"."""
    if isinstance(value, (bool, str)):
        raise ValueError("expected an integer 0-255")
    return value


Pixel = Annotated[int, BeforeValidator(_whole_number), Field(ge=0, le=255)]


class EncodedImage(BaseModel):
    """A PNG or JPEG file of any size and colour."""

    model_config = ConfigDict(extra="forbid", strict=True)

    b64: str = Field(description="the file in base64: standard alphabet, padded, no line breaks")


class PredictRequest(BaseModel):
    """One or several images; each in a form of its own choice."""

    model_config = ConfigDict(extra="forbid")

    instances: list[EncodedImage | list[Pixel] | list[list[Pixel]]] = Field(
        min_length=1,
        description=(
            "Each image is a list of rows, or the same values flat row by row, or an encoded file. Values are integers"
            " 0-255, never inverted; rows and columns are those of the model (28x28 for lenet-bn)."
        ),
    )


Number = float | int | bool | str


class RowsRequest(BaseModel):
    """Rows for a model that takes no pictures."""

    model_config = ConfigDict(extra="forbid")

    instances: list[Number | list[Any] | dict[str, Any]] = Field(
        min_length=1,
        description=(
            "Each row is a list of values, flat or nested as the input has it; a value where a row is one; or an object"
            " of inputs by name, or of columns by name where the model states them."
        ),
    )


class Class(BaseModel):
    """One class and its probability."""

    class_id: int = Field(ge=0, description="index of the class")
    label: str | None = Field(description="name of the class, as the model file has it", examples=["Ankle boot"])
    probability: float = Field(ge=0, le=1)


class _Classified(BaseModel):
    """The most probable class."""

    model_config = ConfigDict(extra="forbid")

    class_id: int = Field(ge=0, description="index of the most probable class")
    label: str | None = Field(description="name of that class, as the model file has it", examples=["Ankle boot"])
    confidence: float = Field(ge=0, le=1, description="probability of that class")


class Prediction(_Classified):
    """What a model that classifies says of one picture or row."""

    probabilities: list[float] = Field(description="probability of each class, in the order of their ids")


class TopPrediction(_Classified):
    """The same with `?top=`."""

    top: list[Class] = Field(description="the most probable classes, the first one first")


class Multilabel(BaseModel):
    """What a model of the task `multilabel` says."""

    model_config = ConfigDict(extra="forbid")

    labels: list[Class] = Field(description="labels whose probability reaches the model's threshold, best first")


class Regression(BaseModel):
    """What a model of the task `regress` says."""

    model_config = ConfigDict(extra="forbid")

    values: list[float]


class Embedding(BaseModel):
    """What a model of the task `embed` says."""

    model_config = ConfigDict(extra="forbid")

    embedding: list[float]


class Tensors(BaseModel):
    """The outputs of any other model as they are, a row of each."""

    model_config = ConfigDict(extra="forbid")

    outputs: dict[str, Any]


class PredictResponse(BaseModel):
    """One prediction for each picture or row, in the order of the request; the model's task decides its form."""

    model: str = Field(examples=["lenet-bn"])
    version: int = Field(examples=[1])
    predictions: list[Prediction | TopPrediction | Multilabel | Regression | Embedding | Tensors]


class ErrorResponse(BaseModel):
    """Why there is no other answer, in one sentence; the shape of every error of every route."""

    error: str = Field(max_length=2048)


class ServedModel(BaseModel):
    """One model that is ready to answer."""

    name: str
    version: int
    labels: list[str]
    task: str = Field(description="what its outputs mean: classify, multilabel, regress, embed or tensors")
    provider: str = Field(description="where it runs: cpu or cuda")
    buckets: list[int] = Field(description="batch sizes that are run; a batch is padded to the next one")
    batch_invariant: bool = Field(description="whether an answer was measured not to depend on who shares its batch")
    verified: bool = Field(description="whether it has golden answers and gave them")
    accuracy: float | None = Field(description="share of right answers that was measured when it was published")
    specialised: bool = Field(description="whether a rewritten graph runs, proven like the published one and faster")
    fallback: str | None = Field(description="why it does not run where it would rather; null when it does")


class ServerMetadata(BaseModel):
    """The service, as the Open Inference Protocol describes a server, and the models that it serves."""

    name: str
    version: str
    extensions: list[str]
    models: list[ServedModel]


class Live(BaseModel):
    """The process answers."""

    live: bool


class Ready(BaseModel):
    """Every model has given the answers that its version folder promises."""

    ready: bool


def parameter(name: str, where: str, description: str, **schema: Any) -> dict[str, Any]:
    """Return the description of a parameter that a route reads itself, from its query or its headers."""
    return {"name": name, "in": where, "description": description, "schema": schema}


DEADLINE = parameter(
    "X-Deadline-Ms",
    "header",
    "Milliseconds within which an answer is of use; later ones are refused with 503 or 504.",
    type="integer",
    minimum=1,
)
