"""TorchServe's routes: `POST /predictions/{model}` and `GET /ping`.

A body is what its bytes say, since `curl -T picture.jpg` names no type. An answer has the shape that TorchServe's own
handlers give: for one picture the five best classes, `{"label": probability}`; for any other task what `/predict` gives
for the row. Errors have the shape of all errors here.
Source: TorchServe, inference API and image_classifier handler.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from foldserve.format.picture_types import picture_type
from foldserve.format.task import CLASSIFY

from ..asking import ask
from ..bodies.answers import predictions_of
from ..inference import served_model
from ..live.model import Model
from ..live.registry import Registry
from ..tensors import Array

TOP = 5

router = APIRouter(tags=["TorchServe"])

_ANY = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"*/*": _ANY}}}
_ASK: dict[str, Any] = {"summary": "Ask a model", "openapi_extra": _BODY}


@router.post("/predictions/{model}", **_ASK)
@router.put("/predictions/{model}", **_ASK)  # curl -T sends PUT unless it is told otherwise
@router.post("/predictions/{model}/{version}", **_ASK)
@router.put("/predictions/{model}/{version}", **_ASK)
async def torchserve_predictions(request: Request, model: str, version: str | None = None) -> Response:
    """Answer for a picture or for rows, as TorchServe does."""
    registry: Registry = request.app.state.registry
    served = served_model(registry, model, version)
    return await ask(request, served, lambda outputs: _write(served, outputs), guess_type)


@router.get("/ping", summary="Whether the service is healthy")
async def torchserve_ping(request: Request) -> dict[str, str]:
    """Say that every model answers; anything else is 503 with the reason."""
    registry: Registry = request.app.state.registry
    registry.check_wanted()
    return {"status": "Healthy"}


def guess_type(content_type: str | None, body: bytes) -> str:
    """Return what a body is, by its bytes; only a form has to say so, since its boundary stands in the header."""
    if (content_type or "").lower().startswith("multipart/form-data"):
        return str(content_type)
    if body.lstrip()[:1] == b"{":
        return "application/json"
    return picture_type(body) or "application/octet-stream"


def _write(model: Model, outputs: Mapping[str, Array]) -> bytes:
    top = TOP if model.task.name == CLASSIFY else None
    rows = list(predictions_of(model.name, model.task, model.class_names, outputs, top))
    shaped = [_best(row) if "top" in row else next(iter(row.values())) for row in rows]
    return orjson.dumps(shaped[0] if len(shaped) == 1 else shaped, option=orjson.OPT_SERIALIZE_NUMPY)


def _best(row: Mapping[str, Any]) -> dict[str, Any]:
    return {entry["label"] or str(entry["class_id"]): entry["probability"] for entry in row["top"]}
