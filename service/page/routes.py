"""The routes of this room: what is known of a version, something to try it with, and what it sees of a picture."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ..asking import read_inputs
from ..bodies.budget import BodyBudget
from ..errors import InvalidInput
from ..inference import served_model
from ..live.model import Model
from ..openapi import PREDICT
from ..request_context import RequestContext
from . import schemas
from .proof import version_proof
from .samples import SampleBook

_JSON_OF_ONE = {"schema": {"$ref": "#/components/schemas/PredictRequest"}}
_PREVIEW: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": PREDICT["requestBody"]["content"] | {"application/json": _JSON_OF_ONE},
    }
}
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}

router = APIRouter(prefix="/v2/models", tags=["page"])


@router.get("/{model}/versions/{version}/proof", summary="What was proved of a version, and how closely")
async def proof_of_model(request: Request, model: str, version: str) -> schemas.VersionProof:
    """Give accuracy, agreement with the trained network, task and picture recipe."""
    return version_proof(_model(request, model, version))


@router.get(
    "/{model}/versions/{version}/samples",
    summary="Golden inputs to try a version with",
    response_model=schemas.Samples,
)
async def samples_of_model(request: Request, model: str, version: str) -> Response:
    """Give golden inputs as pictures or rows, with what the trained network says to them."""
    book: SampleBook = request.app.state.samples
    return Response(await book.of(_model(request, model, version)), media_type="application/json")


@router.post(
    "/{model}/versions/{version}/preview",
    summary="What a version sees of a picture",
    openapi_extra=_PREVIEW,
    response_class=Response,
    responses=_PNG,
)
async def preview_of_model(request: Request, model: str, version: str) -> Response:
    """Give the pixels that the first picture in the body becomes by the model's recipe, as a PNG; asks no model."""
    served = _model(request, model, version)
    if served.image is None:
        raise InvalidInput(f"model {served.name!r} takes no pictures, so that there is none to be shown")
    context: RequestContext = request.state.context
    budget: BodyBudget = request.app.state.body_budget
    with budget.hold(context.caller.address or "") as share, served.in_use():
        inputs = await read_inputs(request, served, share, context.deadline())
        from foldserve.pictures.encode import as_png  # its library takes long to import

        png = await asyncio.to_thread(as_png, inputs[served.image.input][0], served.image)
    return Response(png, media_type="image/png")


def _model(request: Request, name: str, version: str) -> Model:
    return served_model(request.app.state.registry, name, version)
