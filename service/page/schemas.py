"""What the routes of this room answer, as pydantic models: what `/docs` shows of them and what clients may rely on."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..schemas import Embedding, Multilabel, Prediction, Regression, Tensors, TopPrediction


class GoldenProof(BaseModel):
    """How closely a version gave its golden answers, on the device and in the batches that it runs in here."""

    rows: int = Field(description="how many golden inputs there are")
    agreeing: int = Field(description="how many got the golden answer: all, but those that this decoder changes")
    largest_error: float = Field(description="largest deviation of a value, relative to its output's largest |value|")
    errors: dict[str, float] = Field(description="the same for each float output")
    tolerance: float = Field(description="what it may be on this device")


class PublishedProof(BaseModel):
    """What was measured where the version was published, as its manifest states it; the form is that of its maker."""

    created: str | None = Field(description="when it was published")
    accuracy: dict[str, Any] | None = Field(description="right answers on data that it was not trained on")
    parity: dict[str, Any] | None = Field(description="how each form agrees with the unfolded network in float64")
    proof: dict[str, Any] | None = Field(description="the same for a network of somebody's own")
    fold: dict[str, Any] | None = Field(description="how many norms were folded and stayed, and the fold's own proof")


class VersionProof(BaseModel):
    """A version: what it does, what it was proved to do and how closely, and how a picture becomes its input."""

    name: str
    version: int
    task: str = Field(description="what its outputs mean: classify, multilabel, regress, embed or tensors")
    threshold: float | None = Field(description="of multilabel: the least probability of a label that is given")
    columns: list[str] | None = Field(description="names of the values of a row, where they have names")
    recipe: dict[str, Any] | None = Field(description="how a picture becomes a row; null where it takes no pictures")
    provider: str = Field(description="where it runs: cpu or cuda")
    fallback: str | None = Field(description="why it does not run where it would rather; null when it does")
    specialised: bool = Field(description="whether a rewritten graph runs, proven like the published one and faster")
    batch_invariant: bool = Field(description="whether an answer was measured not to depend on who shares its batch")
    sha256: str = Field(description="of model.onnx")
    verified: bool = Field(description="whether it has golden answers and gave them")
    accuracy: float | None = Field(description="share of right answers that was measured when it was published")
    golden: GoldenProof | None = Field(description="null where the version has no golden answers")
    published: PublishedProof | None = Field(description="null where the version has no manifest")


class Sample(BaseModel):
    """A golden input: a picture as a file, or a row as `/predict` takes it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="for people")
    media_type: Literal["image/png", "image/jpeg"] | None = Field(description="of the picture; null for a row")
    b64: str | None = Field(description="the picture, in base64; null for a row")
    instance: Any = Field(description="an instance of the body of `/predict`: the picture or the row")
    expected: Prediction | TopPrediction | Multilabel | Regression | Embedding | Tensors = Field(
        description="what the unfolded network says in float64, in the form of an answer of `/predict?top=5`"
    )


class Samples(BaseModel):
    """Golden inputs of a version, with what the trained network says to them."""

    model: str
    version: int
    rows: int = Field(description="how many golden inputs there are; as many are given as take a mebibyte")
    samples: list[Sample]
