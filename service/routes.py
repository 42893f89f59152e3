"""Every route, each a few lines: HTTP in, HTTP out.

What `/predict` does with a body stands in `asking`; the parts that do the work (registry, metrics, settings) are given
to the application by `create_app` and stand on its state.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from foldserve.format.task import CLASSIFY, MULTILABEL

from . import schemas
from .asking import ask
from .bodies.answers import predictions_json
from .errors import InvalidInput, clip
from .inference import served_model
from .live.model import Model
from .metrics import Metrics
from .openapi import PREDICT, PREDICT_DESCRIPTION
from .page.site import page
from .tensors import Array
from .v2.metadata import EXTENSIONS

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
)
async def predict(request: Request) -> Response:
    """Answer for each picture or row in the body, in the form of the model's task."""
    model, top = _chosen(request)

    def write(outputs: Mapping[str, Array]) -> bytes:
        return predictions_json(model.name, model.version, model.task, model.class_names, outputs, top)

    return await ask(request, model, write)


@router.get("/v2", tags=["service"], summary="Name, version and models")
@router.get("/v2/", include_in_schema=False)
async def server_metadata(request: Request) -> schemas.ServerMetadata:
    """Describe the service and what it serves."""
    served = [_served(model) for model in request.app.state.registry.models()]
    return schemas.ServerMetadata(
        name=request.app.title, version=request.app.version, extensions=list(EXTENSIONS), models=served
    )


@router.get("/v2/health/live", tags=["health"], summary="Whether the process answers")
async def live() -> schemas.Live:
    """Answer: a process that cannot is dead."""
    return schemas.Live(live=True)


@router.get("/v2/health/ready", tags=["health"], summary="Whether models answer rightly")
async def ready(request: Request) -> schemas.Ready:
    """Answer 200 once every model has given its golden answers, else 503 with the reason."""
    request.app.state.registry.check_wanted()
    return schemas.Ready(ready=True)


@router.get(
    "/metrics",
    tags=["health"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Give every metric in Prometheus' text format."""
    all_metrics: Metrics = request.app.state.metrics
    await all_metrics.others_have_counted()
    return Response(all_metrics.exposition(), media_type=all_metrics.content_type)


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """Show the page where the service can be tried; without it, lead a browser to the description."""
    return page() if request.app.state.settings.page else RedirectResponse("docs")


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
