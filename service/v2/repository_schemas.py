"""The bodies of the repository calls as pydantic models: what `/docs` shows of them.

They describe; `repository` reads and `live.control` answers. A test compares the two.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

VersionNumber = Annotated[int, Field(ge=1, description="number of a version")]
Parameters = Annotated[
    dict[str, Any],
    Field(description="`version` as Triton has it; a model within the call (`config`, `file:...`) is refused"),
]
Label = Annotated[
    str,
    Field("latest", pattern=r"^[A-Za-z][A-Za-z0-9_.\-]{0,63}$", description="the label that moves"),
]


class IndexRequest(BaseModel):
    """Which versions to list."""

    ready: bool = Field(False, description="only those that answer")


class LoadRequest(BaseModel):
    """What to load; the newest version where none is named."""

    version: VersionNumber | None = None
    parameters: Parameters | None = None


class UnloadRequest(BaseModel):
    """Nothing is read of it."""

    parameters: Parameters | None = None


class PromoteRequest(BaseModel):
    """Where to point a label; `latest` may be left to the newest version, any other label may not."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["version"], "properties": {"version": {"type": "integer"}}},
                {"properties": {"label": {"const": "latest"}}},
            ]
        }
    )

    version: VersionNumber | None = None
    label: Label = "latest"


class RollbackRequest(BaseModel):
    """Which label to point back."""

    label: Label = "latest"


class ShadowRequest(BaseModel):
    """Which version to compare with live inputs, and how long."""

    version: VersionNumber
    seconds: float = Field(600, gt=0, le=30 * 24 * 3600)


class IndexRow(BaseModel):
    """One version, on disk or in memory."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    state: str = Field(description="READY, LOADING or UNAVAILABLE")
    reason: str = Field(description="why it does not serve, or what is to be known of one that does")
    labels: list[str] | None = Field(None, description="of one that serves: those that point at it")
    verified: bool | None = Field(None, description="of one that serves: whether it gave its golden answers")
    accuracy: float | None = Field(None, description="share of right answers, where it was measured")


class Move(BaseModel):
    """A label that was moved, by whom and from where."""

    at: float = Field(description="seconds since 1970")
    label: str
    action: str
    source: int | None
    target: int | None
    key: str | None
    address: str | None


class ModelState(BaseModel):
    """Labels, versions, history and comparison of one model."""

    name: str
    latest: int | None
    pinned: bool = Field(description="whether `latest` stays where an operator put it")
    labels: dict[str, int]
    versions: list[IndexRow]
    shadow: dict[str, Any] | None = Field(description="the comparison with a candidate, where there is one")
    history: list[Move]
    state_lost: str | None = Field(None, description="why decisions cannot be written now")


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route with a small JSON body, which may be left out."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


BODIES = (IndexRequest, LoadRequest, UnloadRequest, PromoteRequest, RollbackRequest, ShadowRequest)
