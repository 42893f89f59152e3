"""Every route, each a few lines: HTTP in, HTTP out.

Bodies are read by `predict_body` and answers written by `answers`; the parts that do the work (registry, metrics,
settings) are given to the application by `create_app` and stand on its state.
"""

import asyncio
import re
import time
from dataclasses import replace
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from foldserve.format.image import ImageRecipe
from foldserve.format.task import CLASSIFY, MULTILABEL

from . import schemas
from .bodies.answers import predictions_json
from .bodies.budget import BodyBudget, Share
from .bodies.instances import Images
from .bodies.limits import QUICK_BYTES, Limits
from .bodies.predict_body import EMPTY_BODY, expected_pixels, holds_files, is_quick, media_type, read_images
from .bodies.receive import receive_body
from .bodies.work_queue import WorkQueue
from .errors import InvalidInput, UnsupportedMediaType, clip
from .inference import answer, count, served_model
from .live.model import Model
from .metrics import Metrics
from .openapi import PREDICT, PREDICT_DESCRIPTION
from .predict_rows import read_rows
from .request_context import RequestContext
from .schemas import error_responses
from .settings import Settings
from .tensors import Array
from .v2.metadata import EXTENSIONS

QUICK_ROWS = 512  # written as JSON within a millisecond or two; more of them in a thread

_QUERY = ("model", "version", "label", "top")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")

STATIC = Path(__file__).parent / "static"

# Swagger UI writes style attributes and draws with data: images; scripts come from this service alone.
DOCS_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter()


@router.post(
    "/predict",
    tags=["predict"],
    description=PREDICT_DESCRIPTION,
    openapi_extra=PREDICT,
    response_model=schemas.PredictResponse,
    responses=error_responses(400, 404, 413, 415, 500, 501, 503, 504),
)
async def predict(request: Request) -> Response:
    """Answer for each picture or row in the body, in the form of the model's task."""
    context: RequestContext = request.state.context
    model, top = _chosen(request)
    deadline = context.deadline()
    budget: BodyBudget = request.app.state.body_budget
    with budget.hold(context.caller.address or "") as share, model.in_use():
        inputs = await _read_inputs(request, model, share, deadline)
        result = await answer(request.app.state.registry, model, inputs, deadline, context)
    arguments = (model.name, model.version, model.task, model.class_names, result.outputs, top)
    if len(next(iter(inputs.values()))) <= QUICK_ROWS:
        body = predictions_json(*arguments)
    else:
        body = await asyncio.to_thread(predictions_json, *arguments)
    count(model, result, context)
    return Response(body, media_type="application/json")


@router.get("/v2", tags=["service"], summary="Name, version and models", responses=error_responses(500))
@router.get("/v2/", include_in_schema=False)
async def server_metadata(request: Request) -> schemas.ServerMetadata:
    """Describe the service and what it serves."""
    served = [_served(model) for model in request.app.state.registry.models()]
    return schemas.ServerMetadata(
        name=request.app.title, version=request.app.version, extensions=list(EXTENSIONS), models=served
    )


@router.get("/v2/health/live", tags=["health"], summary="Whether the process answers", responses=error_responses(500))
async def live() -> schemas.Live:
    """Answer: a process that cannot is dead."""
    return schemas.Live(live=True)


@router.get(
    "/v2/health/ready", tags=["health"], summary="Whether models answer rightly", responses=error_responses(500, 503)
)
async def ready(request: Request) -> schemas.Ready:
    """Answer 200 once every model has given its golden answers, else 503 with the reason."""
    request.app.state.registry.check_ready()
    return schemas.Ready(ready=True)


@router.get(
    "/metrics",
    tags=["health"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={**error_responses(500), 200: {"content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Give every metric in Prometheus' text format."""
    all_metrics: Metrics = request.app.state.metrics
    await all_metrics.others_have_counted()
    return Response(all_metrics.exposition(), media_type=all_metrics.content_type)


@router.get("/", include_in_schema=False)
async def index() -> Response:
    """Lead a browser to the page where the service can be tried."""
    return RedirectResponse("docs")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Show the description; everything on the page comes from this service."""
    return FileResponse(STATIC / "docs.html", headers=DOCS_HEADERS)


def _chosen(request: Request) -> tuple[Model, int | None]:
    """Return the model, and the version of it, that the query names, and how many classes it asks for."""
    query = request.query_params
    for parameter in query:  # a misspelt or forgotten label must not be answered by another version
        if parameter not in _QUERY or len(query.getlist(parameter)) > 1:
            expected = f"expected {', '.join(_QUERY[:-1])} and {_QUERY[-1]}, each at most once"
            raise InvalidInput(f"query: got {clip(parameter)!r}, {expected}")
        if not query[parameter]:
            raise InvalidInput(f"query: {parameter} is empty, expected a value, or no such parameter")
    name, version, label = query.get("model"), query.get("version"), query.get("label")
    if version is not None and label is not None:
        raise InvalidInput("query: got both version and label, expected at most one of them")
    model = served_model(request.app.state.registry, name, version, label)
    return model, _top(query.get("top"), model)


def _top(text: str | None, model: Model) -> int | None:
    """Return how many classes of each row are asked for; None where that is left to the model."""
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise InvalidInput(f"query: top is {clip(text)!r}, expected a whole number from 1 up")
    if model.task.name not in (CLASSIFY, MULTILABEL):
        raise InvalidInput(f"query: got top, but model {model.name!r} gives no classes; its task is {model.task.name}")
    return int(text)


def _served(model: Model) -> schemas.ServedModel:
    """Return what `/v2` says of one model."""
    engine = model.engine
    return schemas.ServedModel(
        name=model.name,
        version=model.version,
        labels=list(model.class_names or ()),
        task=model.task.name,
        provider=engine.device.provider,
        buckets=list(engine.buckets),
        batch_invariant=engine.batch_invariant,
        verified=model.is_verified,
        accuracy=model.artifact.accuracy,
        specialised=engine.rewrite is not None,
        fallback=engine.device.fallback_reason,
    )


async def _read_inputs(request: Request, model: Model, share: Share, deadline: float) -> dict[str, Array]:
    """Return the inputs in the body by name; what would hold up the event loop is read in a thread."""
    settings: Settings = request.app.state.settings
    content_type = request.headers.get("content-type")
    if content_type is not None:
        media_type(content_type)  # refused before its body is received
    body = await _read_body(request, share)
    if content_type is None and not body:
        raise InvalidInput(EMPTY_BODY)
    limits = Limits(settings.max_rows, settings.max_image_pixels, settings.max_image_scans)
    if model.image is not None:
        return {model.image.input: await _read_images(request, body, model.image, limits, deadline)}
    context: RequestContext = request.state.context
    specs, columns = model.engine.inputs, model.task.columns
    return await context.parse(read_rows, body, content_type, specs, columns, limits, is_quick=len(body) <= QUICK_BYTES)


async def _read_images(request: Request, body: bytes, spec: ImageRecipe, limits: Limits, deadline: float) -> Images:
    """Return the images of a body; files are admitted as work, since to decode one can take seconds."""
    content_type = request.headers.get("content-type")
    kind = media_type(content_type)
    context: RequestContext = request.state.context
    is_quickly_read = is_quick(body, kind)
    if is_quickly_read or (kind == "application/json" and not holds_files(body)):
        return await context.parse(read_images, body, content_type, spec, limits, is_quick=is_quickly_read)
    decoding: WorkQueue = request.app.state.decoding
    started, leaving = time.perf_counter(), asyncio.create_task(_client_leaves(request))
    try:
        return await decoding.run(
            lambda job: read_images(body, content_type, spec, replace(limits, beat=job.beat)),
            pixels=expected_pixels(body, kind),
            size=len(body),
            deadline=deadline,
            is_gone=leaving.done,
        )
    finally:
        leaving.cancel()
        context.stages["decode"] = time.perf_counter() - started


async def _client_leaves(request: Request) -> None:
    """Wait until the client of a request, whose whole body was received, has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, share: Share) -> bytes:
    """Return the whole body, which must not be compressed."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding: {clip(encoding)!r}, expected none: send the body as it is"
        raise UnsupportedMediaType(message, "identity")
    return await receive_body(request, share, request.app.state.settings.max_body_bytes)
