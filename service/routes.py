"""Every route, each a few lines: HTTP in, HTTP out.

Bodies are read by `bodies` and answers written by `answers`; the parts that do the work (registry, metrics, settings)
are given to the application by `create_app` and found on its state.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from foldserve.format.image import ImageSpec

from . import schemas
from .bodies.answers import predictions_json
from .bodies.bodies import EMPTY_BODY, Images, Limits, is_quick, media_type, read_images
from .bodies.budget import BodyBudget, Share
from .bodies.receive import receive_body
from .errors import InvalidInput, NotReady, Unsupported, UnsupportedMediaType, clip
from .inference import answer, count
from .live.model import Model
from .live.registry import Registry
from .live.versions import version_number
from .metrics import Metrics
from .openapi import PREDICT, PREDICT_DESCRIPTION
from .request_context import RequestContext
from .schemas import errors
from .settings import Settings
from .tensors import TensorSpec
from .v2.metadata import EXTENSIONS

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
    responses=errors(400, 404, 413, 415, 500, 501, 503, 504),
)
async def predict(request: Request) -> Response:
    """Classify the images in the body."""
    context: RequestContext = request.state.context
    model = _chosen(request)
    spec, labels = _classifier(model)
    deadline = context.deadline()
    budget: BodyBudget = request.app.state.body_budget
    with budget.hold() as share, model.in_use():
        images = await _read_images(request, spec, share)
        found = await answer(request.app.state.registry, model, {spec.input: images}, deadline, context)
    started = time.perf_counter()
    body = predictions_json(model.name, model.version, labels, found.outputs)
    count(model, found, context, time.perf_counter() - started)
    return Response(body, media_type="application/json")


@router.get("/v2", tags=["service"], summary="Name, version and models", responses=errors(500))
@router.get("/v2/", include_in_schema=False)
async def server_metadata(request: Request) -> schemas.ServerMetadata:
    """Describe the service and what it serves."""
    served = [_served(model) for model in request.app.state.registry.models()]
    return schemas.ServerMetadata(
        name=request.app.title, version=request.app.version, extensions=list(EXTENSIONS), models=served
    )


@router.get("/v2/health/live", tags=["health"], summary="Whether the process answers", responses=errors(500))
async def live() -> schemas.Live:
    """Answer: a process that cannot is dead."""
    return schemas.Live(live=True)


@router.get("/v2/health/ready", tags=["health"], summary="Whether models answer rightly", responses=errors(500, 503))
async def ready(request: Request) -> schemas.Ready:
    """Answer 200 once every model has given its golden answers, else 503 with the reason."""
    _ready_registry(request)
    return schemas.Ready(ready=True)


@router.get(
    "/metrics",
    tags=["health"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={**errors(500), 200: {"content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Give every metric in Prometheus' text format."""
    found: Metrics = request.app.state.metrics
    await found.others_have_counted()
    return Response(found.exposition(), media_type=found.content_type)


@router.get("/", include_in_schema=False)
async def index() -> Response:
    """Lead a browser to the page where the service can be tried."""
    return RedirectResponse("docs")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Show the description; everything on the page comes from this service."""
    return FileResponse(STATIC / "docs.html", headers=DOCS_HEADERS)


def _ready_registry(request: Request) -> Registry:
    """Return the registry, or refuse with the reasons why it cannot answer."""
    registry: Registry = request.app.state.registry
    if not registry.ready:
        raise NotReady(f"not ready: {'; '.join(registry.reasons)}")
    return registry


def _chosen(request: Request) -> Model:
    """Return the model, and the version of it, that the query names."""
    query = request.query_params
    for parameter in query:  # a misspelt or forgotten label must not be answered by another version
        if parameter not in ("model", "version", "label") or len(query.getlist(parameter)) > 1:
            raise InvalidInput(f"query: {clip(parameter)!r} came, expected model, version and label, each at most once")
        if not query[parameter]:
            raise InvalidInput(f"query: {parameter} came empty, expected a value, or none of it")
    name, version, label = query.get("model"), query.get("version"), query.get("label")
    if version is not None and label is not None:
        raise InvalidInput("query: both version and label came, expected at most one of them")
    return _ready_registry(request).get(name, version_number(version), label)


def _classifier(model: Model) -> tuple[ImageSpec, tuple[str, ...]]:
    """Return the image that a model takes and its labels, for models that have both."""
    outputs = {spec.name for spec in model.engine.outputs}
    if model.image is None or model.labels is None or not {"probabilities", "class_id"} <= outputs:
        raise Unsupported(
            f"model {model.name!r} takes {_tensors(model.engine.inputs)} and gives {_tensors(model.engine.outputs)}, "
            "expected one that says how an image becomes its input and gives class_id and probabilities with labels: "
            f"ask it at /v2/models/{model.name}/infer"
        )
    return model.image, model.labels


def _tensors(specs: Sequence[TensorSpec]) -> str:
    """Return inputs or outputs as a message names them; the first few of many."""
    named = [f"{spec.name[:40]!r} ({spec.datatype} of {['rows', *spec.row_shape]})" for spec in specs[:4]]
    return ", ".join(named) + (f" and {len(specs) - 4} more" if len(specs) > 4 else "")


def _served(model: Model) -> schemas.ServedModel:
    """Return what `/v2` says of one model."""
    engine = model.engine
    return schemas.ServedModel(
        name=model.name,
        version=model.version,
        labels=list(model.labels or ()),
        provider=engine.device.provider,
        buckets=list(engine.buckets),
        batch_invariant=engine.batch_invariant,
        verified=model.is_verified,
        specialised=engine.rewrite is not None,
        fallback=engine.device.fallback_reason,
    )


async def _read_images(request: Request, spec: ImageSpec, share: Share) -> Images:
    """Return the images of the body; what would hold up the event loop is read in a thread."""
    settings: Settings = request.app.state.settings
    content_type = request.headers.get("content-type")
    if content_type is None and not await _read_body(request, share):
        raise InvalidInput(EMPTY_BODY)
    kind = media_type(content_type)
    body = await _read_body(request, share)
    limits = Limits(rows=settings.max_rows, pixels=settings.max_image_pixels)
    started = time.perf_counter()
    if is_quick(body, kind):
        images = read_images(body, content_type, spec, limits)
    else:
        images = await asyncio.to_thread(read_images, body, content_type, spec, limits)
    request.state.context.stages["parse"] = time.perf_counter() - started
    return images


async def _read_body(request: Request, share: Share) -> bytes:
    """Return the whole body, which must not be compressed."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding: {clip(encoding)!r}, expected none: send the body as it is"
        raise UnsupportedMediaType(message, "identity")
    return await receive_body(request, share)
