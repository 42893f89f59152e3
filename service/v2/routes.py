"""The routes of the protocol over HTTP, each a few lines; `/v2` itself and its health stand with the service's own.

Bodies are read by `request` and written by `response`; what holds for gRPC too stands in `inference`.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ..bodies.budget import BodyBudget, Share
from ..bodies.compression import compress, wanted_coding
from ..bodies.predict_body import expected_pixels
from ..bodies.receive import receive_inflated
from ..decoding import decode
from ..inference import answer, count, served_model
from ..live.model import Model
from ..live.registry import Registry
from ..request_context import RequestContext
from ..schemas import DEADLINE, parameter
from ..settings import Settings
from . import schemas
from .metadata import model_config, model_metadata
from .readers import Readers
from .request import InferRequest, header_length, is_quick
from .response import InferResponse, format_response

HEADER_LENGTH = "Inference-Header-Content-Length"

QUICK_VALUES = 4_096  # written as JSON within a millisecond; more of them in a thread

_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
_INFER_PARAMETERS = [
    parameter(
        HEADER_LENGTH,
        "header",
        "Bytes of JSON before the binary tensors; 0 where the body is nothing but the only input.",
        type="integer",
        minimum=0,
    ),
    DEADLINE,
]

_INFER: dict[str, Any] = {
    "summary": "Ask a model",
    "response_model": schemas.InferenceResponse,
    "responses": {
        200: {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "headers": {
                HEADER_LENGTH: {
                    "description": "Bytes of JSON before the binary tensors, where there are any.",
                    "schema": {"type": "integer", "minimum": 0},
                }
            },
        }
    },
    "openapi_extra": {"requestBody": _BODY, "parameters": _INFER_PARAMETERS},
}

router = APIRouter(prefix="/v2/models", tags=["open inference protocol"])


@router.get("", summary="Names of the models")
async def list_models(request: Request) -> schemas.ModelList:
    """List what is served."""
    return schemas.ModelList(models=sorted({model.name for model in _registry(request).models()}))


@router.get("/stats", summary="Statistics of all models")
async def statistics_of_all(request: Request) -> dict[str, Any]:
    """Count requests, rows and batches, and the time they took."""
    return await _statistics(request, _registry(request).all_versions())


@router.get("/{model}", summary="What a model takes and gives")
@router.get("/{model}/versions/{version}", summary="What a version takes and gives")
@router.get("/{model}/labels/{label}", summary="What the version under a label takes and gives")
async def metadata_of_model(
    request: Request, model: str, version: str | None = None, label: str | None = None
) -> schemas.ModelMetadata:
    """Describe inputs and outputs; the batch is the first axis of each."""
    served = _model(request, model, version, label)
    return schemas.ModelMetadata(**model_metadata(served, sorted(_registry(request).tables[served.name].loaded)))


@router.get("/{model}/ready", summary="Whether a model answers")
@router.get("/{model}/versions/{version}/ready", summary="Whether a version answers")
@router.get("/{model}/labels/{label}/ready", summary="Whether the version under a label answers")
async def model_ready(
    request: Request, model: str, version: str | None = None, label: str | None = None
) -> schemas.ModelReady:
    """Answer 200 for a model that has given its golden answers."""
    request.app.state.registry.check_wanted()
    return schemas.ModelReady(name=_model(request, model, version, label).name, ready=True)


@router.get("/{model}/config", summary="Configuration in Triton's form")
@router.get("/{model}/versions/{version}/config", summary="Configuration of a version in Triton's form")
async def config_of_model(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Describe how a model is batched and where it runs."""
    settings: Settings = request.app.state.settings
    return model_config(_model(request, model, version), settings.max_rows)


@router.get("/{model}/stats", summary="Statistics of a model")
@router.get("/{model}/versions/{version}/stats", summary="Statistics of a version")
async def statistics_of_model(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Count requests, rows and batches of one model, and the time they took."""
    served = _model(request, model, version)
    loaded = _registry(request).tables[served.name].loaded
    return await _statistics(request, [served] if version else [loaded[number] for number in sorted(loaded)])


@router.post("/{model}/infer", **_INFER)
@router.post("/{model}/versions/{version}/infer", **_INFER)
@router.post("/{model}/labels/{label}/infer", **_INFER)
async def infer(request: Request, model: str, version: str | None = None, label: str | None = None) -> Response:
    """Answer with the outputs, as JSON or as bytes behind it; any number of rows up to the limit.

    `.../{model}/versions/{version}/infer` and `.../{model}/labels/{label}/infer` ask another version than the latest.

    The body is JSON, or JSON followed by the bytes of its tensors, or the bytes of the only input. It may be
    compressed with gzip or deflate.
    """
    context: RequestContext = request.state.context
    served = _model(request, model, version, label)
    budget: BodyBudget = request.app.state.body_budget
    with budget.hold(context.caller.address or "") as share, served.in_use():
        infer_request = await _read(request, served, share)
        deadline = context.deadline(infer_request.timeout_seconds)
        result = await answer(_registry(request), served, infer_request.inputs, deadline, context)
    response = await _format(served, infer_request, result.outputs)
    count(served, result, context)
    headers = {} if response.header_length is None else {HEADER_LENGTH: str(response.header_length)}
    body = response.body
    coding = wanted_coding(request.headers.get("accept-encoding"), len(body))
    if coding is not None:
        body = await asyncio.to_thread(compress, body, coding)
        headers |= {"Content-Encoding": coding, "Vary": "Accept-Encoding"}
    return Response(body, headers=headers, media_type=response.content_type)


def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


def _model(request: Request, name: str, version: str | None, label: str | None = None) -> Model:
    return served_model(_registry(request), name, version, label)


async def _statistics(request: Request, models: list[Model]) -> dict[str, Any]:
    await _registry(request).others_have_counted()
    return {"model_stats": [model.statistics.to_json(model.name, model.version) for model in models]}


async def _read(request: Request, model: Model, share: Share) -> InferRequest:
    """Return the request in the body; what would hold up the event loop is read in a thread."""
    readers: Readers = request.app.state.readers
    length = header_length(request.headers.get(HEADER_LENGTH))
    body = await receive_inflated(request, share, request.app.state.settings.max_body_bytes)
    context: RequestContext = request.state.context
    reader = readers.of(model)
    if not reader.holds_pictures(body, length):
        return await context.parse(reader.read, body, length, is_quick=is_quick(body, length))
    return await decode(
        request,
        lambda job: reader.read(body, length, job.beat),
        pixels=expected_pixels(body, "application/json"),
        size=len(body),
        deadline=context.deadline(),
    )


async def _format(model: Model, request: InferRequest, outputs: Any) -> InferResponse:
    """Return the answer; many values as JSON are written in a thread."""
    arguments = (model.name, model.version, request, outputs, model.class_names)
    if sum(outputs[wanted.name].size for wanted in request.outputs if not wanted.binary) <= QUICK_VALUES:
        return format_response(*arguments)
    return await asyncio.to_thread(format_response, *arguments)
