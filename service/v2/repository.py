"""The repository extension over HTTP, and what goes beyond it: labels, rollback, shadow.

The calls themselves stand in `foldserve.service.live.control`; whether they are there at all is decided by
`foldserve.service.access`.
"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ..bodies.budget import BodyBudget
from ..bodies.json_body import parse_json
from ..bodies.receive import receive_inflated
from ..errors import InvalidInput, Unsupported, clip
from ..live.control import ModelControl, body_version
from ..live.state import LATEST
from ..request_context import Caller, RequestContext
from . import repository_schemas as schemas

MAX_BYTES = 65_536  # a control call names a version and a label
_STATE: dict[int | str, dict[str, Any]] = {200: {"model": schemas.ModelState}}
_DONE: dict[int | str, dict[str, Any]] = {200: {"content": {}, "description": "Done; the body is empty."}}

router = APIRouter(prefix="/v2/repository", tags=["repository"])


@router.post(
    "/index",
    summary="Every version and its state",
    responses={200: {"model": list[schemas.IndexRow]}},
    openapi_extra=schemas.json_body(schemas.IndexRequest),
)
async def index(request: Request) -> list[dict[str, Any]]:
    """List all versions, on disk or in memory, with the reason where one does not serve."""
    ready_only = (await _body(request)).get("ready", False)
    if not isinstance(ready_only, bool):
        raise InvalidInput("ready: expected true or false")
    return await _control(request).index(ready_only=ready_only)


@router.get("/models/{model}", summary="Labels, versions and history of a model", responses=_STATE)
async def show_model(request: Request, model: str) -> dict[str, Any]:
    """Show where each label points, how it got there, and what a comparison shows."""
    return await _control(request).show(model)


@router.post(
    "/models/{model}/load",
    summary="Load a version",
    responses=_DONE,
    openapi_extra=schemas.json_body(schemas.LoadRequest),
    response_class=Response,
)
async def load_model(request: Request, model: str) -> Response:
    """Load the newest version, or the one in `version`, beside what serves; refused ones are tried again."""
    body = await _body(request)
    _refuse_files(body)
    await _control(request).load(model, body_version(body), _caller(request))
    return Response(status_code=200)


@router.post(
    "/models/{model}/unload",
    summary="Unload a model",
    responses=_DONE,
    openapi_extra=schemas.json_body(schemas.UnloadRequest),
    response_class=Response,
)
async def unload_model(request: Request, model: str) -> Response:
    """Let a model answer nothing any more until it is loaded again."""
    await _body(request)
    await _control(request).unload(model, _caller(request))
    return Response(status_code=200)


@router.post(
    "/models/{model}/promote",
    summary="Point a label at a version",
    responses=_STATE,
    openapi_extra=schemas.json_body(schemas.PromoteRequest),
)
async def promote_model(request: Request, model: str) -> dict[str, Any]:
    """Point `label` (`latest` where none is named) at `version`, once that is loaded and proved."""
    body = await _body(request)
    await _control(request).promote(model, body_version(body), body.get("label", LATEST), _caller(request))
    return await _control(request).show(model)


@router.post(
    "/models/{model}/rollback",
    summary="Point a label back",
    responses=_STATE,
    openapi_extra=schemas.json_body(schemas.RollbackRequest),
)
async def rollback_model(request: Request, model: str) -> dict[str, Any]:
    """Point `label` at the version it pointed at before; `latest` stays there until the next promote."""
    body = await _body(request)
    await _control(request).rollback(model, body.get("label", LATEST), _caller(request))
    return await _control(request).show(model)


@router.post(
    "/models/{model}/shadow",
    summary="Compare a version with live inputs",
    responses=_STATE,
    openapi_extra=schemas.json_body(schemas.ShadowRequest),
)
async def shadow_model(request: Request, model: str) -> dict[str, Any]:
    """Give `version` a copy of live inputs for `seconds`; its answers are compared and never sent."""
    body = await _body(request)
    version, seconds = body_version(body), body.get("seconds", 600)
    if version is None or isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise InvalidInput('shadow: expected {"version": <number>, "seconds": <number>}')
    await _control(request).shadow(model, version, float(seconds), _caller(request))
    return await _control(request).show(model)


@router.delete("/models/{model}/shadow", summary="End a comparison", responses=_STATE)
async def end_shadow_of_model(request: Request, model: str) -> dict[str, Any]:
    """End the comparison; its version leaves unless a label points at it."""
    await _control(request).end_shadow(model, _caller(request))
    return await _control(request).show(model)


def _control(request: Request) -> ModelControl:
    control: ModelControl = request.app.state.control
    return control


def _caller(request: Request) -> Caller:
    context: RequestContext = request.scope["state"]["context"]
    return context.caller


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON object in a small body; none at all counts as an empty one."""
    budget: BodyBudget = request.app.state.body_budget
    with budget.hold(_caller(request).address or "") as share:
        data = await receive_inflated(request, share, MAX_BYTES)
    if not data.strip():
        return {}
    body = parse_json(data)
    if not isinstance(body, dict) or not isinstance(body.get("parameters"), dict | None):
        raise InvalidInput("body: expected a JSON object, and an object under its key parameters")
    return body


def _refuse_files(body: dict[str, Any]) -> None:
    """Refuse a model within the call: models are loaded from the models folder, with their manifest."""
    for name in body.get("parameters") or {}:
        if name == "config" or name.startswith("file:"):
            raise Unsupported(f"parameters.{clip(name)}: a model is loaded from the models folder, not from a request")
