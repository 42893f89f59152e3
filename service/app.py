"""`create_app(settings)`: builds the parts, gives them to one another, and turns every error into one shape.

The end of the flow: repository, engine and batcher live in the registry, which is loaded before the first request and
drained after the last one. Keeps no state outside the application it returns, so that two can live in one process.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException

from service.answers import error_json
from service.budget import BodyBudget
from service.errors import ServiceError
from service.metrics import Metrics
from service.observe import Observe, Trace, failure_sentence
from service.openapi import describe
from service.registry import Registry
from service.routes import STATIC, router
from service.settings import Settings

logger = logging.getLogger(__name__)

# With a provider configured in the environment, FastAPI would hand it the bodies of requests.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

DESCRIPTION = "Serves models that were trained, folded and proven equal before they were published."


def create_app(settings: Settings) -> FastAPI:
    """Return an application that serves the models under `settings.models_dir`.

    Nothing is loaded yet: that happens when a server starts the application's lifespan, and a model that cannot be
    loaded, or does not give its golden answers, ends the start.
    """
    metrics = Metrics()
    app = FastAPI(
        title="foldserve",
        version=_release(),
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's own page loads its scripts from a third party
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,  # the names that generated clients will have
        lifespan=_lifespan,
        exception_handlers={
            ServiceError: _answer_service_error,
            HTTPException: _answer_http_error,
            RequestValidationError: _answer_validation_error,
        },
        telemetry=NO_TELEMETRY,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.registry = Registry(settings, metrics)
    app.state.body_budget = BodyBudget(settings.max_buffered_bytes)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(Observe, metrics=metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load before the first request, drain after the last one."""
    registry: Registry = app.state.registry
    started = time.perf_counter()
    try:
        await registry.load()
    except ServiceError as err:
        app.state.start_failure = str(err)
        raise
    served = [f"{model.name}/{model.version}" for model in registry.models()]
    logger.info("ready", extra={"models": served, "seconds": round(time.perf_counter() - started, 3)})
    try:
        yield
    finally:
        await registry.close()
        logger.info("stopped")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the description, with examples for the models that are served at this moment."""
    models = [(model.name, model.image) for model in app.state.registry.models() if model.image is not None]
    return describe(app, models)


async def _answer_service_error(request: Request, err: ServiceError) -> Response:
    """Answer with the sentence, status and headers of one of our own errors; of a failure only the log learns more."""
    trace: Trace = request.state.trace
    fields = {"request_id": trace.request_id, "status": err.status, "reason": str(err)}
    if err.status == 500:
        logger.error("request failed", exc_info=err, extra=fields)
        return _error(500, failure_sentence(trace), dict(err.headers))
    if err.status > 500:
        logger.warning("request refused", extra=fields)
    return _error(err.status, str(err), dict(err.headers))


async def _answer_http_error(request: Request, err: HTTPException) -> Response:
    """Answer for the framework: unknown paths, wrong methods, bodies that it refuses by itself."""
    headers = dict(err.headers or {})
    path = request.scope["path"][:200]
    if err.status_code == 404:
        return _error(404, f"nothing is served at {path!r}; /docs lists what is", headers)
    if err.status_code == 405:
        allowed = headers.setdefault("Allow", "GET")
        return _error(405, f"{request.method} is not possible at {path!r}, expected {allowed}", headers)
    return _error(err.status_code, str(err.detail), headers)


async def _answer_validation_error(request: Request, err: RequestValidationError) -> Response:
    """Answer 400 where FastAPI would answer 422; names the first place only, and never what stood there."""
    first = err.errors()[0]
    return _error(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", {})


def _error(status: int, message: str, headers: dict[str, str]) -> Response:
    """Return `{"error": message}`, the shape of every error."""
    return Response(error_json(message), status, headers, media_type="application/json")


def _release() -> str:
    """Return the version of the installed distribution; a source tree that nobody installed has none."""
    try:
        return metadata.version("foldserve")
    except metadata.PackageNotFoundError:
        return "0+source"
