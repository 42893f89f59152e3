"""`create_app(settings)`: builds the parts and gives them to one another.

The end of the flow: repository, engine and batcher live in the registry, which is loaded before the first request and
drained after the last one. Keeps no state outside the application it returns, so that two can live in one process.
"""

import asyncio
import functools
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from foldserve import __version__

from .access import Access
from .access_log import AccessLog
from .access_middleware import AccessMiddleware
from .bodies import decoder
from .bodies.budget import BodyBudget
from .bodies.limits import Limits
from .bodies.work_queue import WorkQueue
from .compat.torchserve import router as torchserve_router
from .compat.v1 import router as v1_router
from .cores import available_cores
from .error_answers import ErrorLog
from .errors import InvalidInput, MethodNotAllowed, ProviderUnavailable, ServiceError, nothing_served
from .lane.fast_lane import LANE, FastLane
from .live.canary import Canary
from .live.control import ModelControl
from .live.live_models import LiveModels
from .live.memory import give_back
from .live.registry import Registry
from .metrics import Metrics
from .openapi import describe
from .page.routes import router as page_router
from .page.samples import SampleBook
from .page.site import PREFIX, PageFiles, WholeFiles
from .processes.open_connections import OpenConnections
from .processes.server import LEAVE
from .processes.signals import reloading
from .processes.watchdog import Watchdog
from .processes.workers import Workers
from .request_middleware import UNKNOWN_ROUTE, RequestMiddleware
from .routes import STATIC, router
from .settings import Settings
from .tracing import Tracing
from .transport.connection import GUARD
from .transport.guard import Guard
from .transport.limits import connection_limits
from .v2.readers import Readers
from .v2.repository import router as repository_router
from .v2.routes import router as v2_router

logger = logging.getLogger(__name__)

# With a provider configured in the environment, FastAPI would hand it the bodies of requests.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

_STILL_SECONDS = 5.0  # of a decoder, where nothing ends a process that hangs
_DECODER = "pictures "  # no model has a space in its name
_LATE_SECONDS = 1.0  # after which what the first request seldom needs is imported

DESCRIPTION = "Serves models that were trained, folded and proven equal before they were published."


def create_app(
    settings: Settings,
    workers: Workers | None = None,
    grpc_listener: socket.socket | None = None,
    models: LiveModels | None = None,
) -> FastAPI:
    """Return an application that serves the models under `settings.models_dir`.

    Nothing is loaded yet: that happens when a server starts the application's lifespan, and a model that cannot be
    loaded, or does not give its golden answers, ends the start.

    Args:
        settings: every knob.
        workers: what this process shares with others that serve the same port; None when it is alone.
        grpc_listener: a socket that listens for gRPC; None takes the port of the settings, if they name one.
        models: whose loading may have begun; None makes them.
    """
    models = models or LiveModels.of(settings, workers)
    metrics = models.metrics
    app = FastAPI(
        title="foldserve",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's own page loads its scripts from a third party
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        exception_handlers={
            HTTPException: _refuse_as_http_does,
            RequestValidationError: _refuse_parameter,
        },
        telemetry=NO_TELEMETRY,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.workers = workers
    app.state.place = models.place
    app.state.registry = models.registry
    app.state.reconciler = models.reconciler
    app.state.decoding = WorkQueue(
        settings.decode_threads or max(1, available_cores() // settings.workers),
        settings.max_decode_bytes,
        settings.max_decode_pixels,
        lambda reason: metrics.refused_decodings.labels(reason).inc(),
        prepare=decoder.load,
        tidy=give_back,
    )
    app.state.body_budget = BodyBudget(settings.max_buffered_bytes)
    shared = workers.folder if workers is not None else None
    app.state.access = Access(settings.keys_file, settings.closed_scopes, settings.key_rate, shared, metrics)
    app.state.control = ModelControl(app.state.registry, app.state.reconciler, promotes_new=settings.promote_new)
    app.state.grpc = None
    app.state.grpc_listener = grpc_listener
    app.state.readers = Readers(Limits.of(settings))
    app.state.error_log = ErrorLog()
    app.state.access_log = AccessLog(settings.access_log_rate)
    app.state.tracing = Tracing()
    app.state.samples = SampleBook()
    for part in (router, v2_router, page_router, repository_router, v1_router, torchserve_router):
        # Not by `include_router`, which builds each route a second time, on the loop, when a request first comes by.
        app.router.routes += part.routes
    if settings.page:
        app.mount(PREFIX, PageFiles(), name="page")
    app.mount("/static", WholeFiles(directory=STATIC), name="static")
    app.add_middleware(AccessMiddleware, access=app.state.access)
    app.add_middleware(  # added last, so outermost
        RequestMiddleware,
        metrics=metrics,
        error_log=app.state.error_log,
        default_timeout_seconds=settings.default_timeout_seconds,
        access_log=app.state.access_log,
        tracing=app.state.tracing,
    )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Load before the first request, drain after the last one."""
    registry: Registry = app.state.registry
    started = time.perf_counter()
    try:
        if app.state.settings.otlp_endpoint is not None:  # first, since it may be that its library is not installed
            app.state.tracing.start(app.state.settings.otlp_endpoint, app.state.settings.otlp_share, app.version)
        await app.state.reconciler.start()
        await _start_grpc(app)
    except (ServiceError, OSError) as err:
        app.state.start_failure = str(err)
        if app.state.workers is None or app.state.workers.is_first("start-failure"):
            logger.error("%s", err)
        raise
    except Exception as err:
        app.state.start_failure = str(err)
        logger.exception("the start failed")
        raise
    names = [f"{model.name}/{model.version}" for model in registry.models()]
    unverified = [f"{model.name}/{model.version}" for model in registry.models() if not model.is_verified]
    fields = {"models": names, "unverified": unverified} if unverified else {"models": names}
    logger.info("ready", extra={**fields, "seconds": round(time.perf_counter() - started, 3)})
    settings: Settings = app.state.settings
    metrics: Metrics = app.state.metrics
    loop = asyncio.get_running_loop()
    late = loop.call_later(_LATE_SECONDS, loop.run_in_executor, None, decoder.load)
    app.state.access.follow()
    canary = asyncio.create_task(Canary(registry, settings.canary_seconds).run())
    decoding: WorkQueue = app.state.decoding
    decoder_watch = asyncio.create_task(_doubt_a_still_decoder(registry, decoding, settings))
    async with Watchdog(settings.hang_seconds, lambda: registry.running_batches() | decoding.running()).watch():
        try:
            parts = app.state
            lane = FastLane(
                registry, settings, metrics, parts.body_budget, parts.readers, parts.error_log, parts.access,
                parts.access_log, parts.tracing,
            )  # fmt: skip
            lane.decoding = decoding
            refused = functools.partial(metrics.observe_request, UNKNOWN_ROUTE, "unknown")
            with reloading(functools.partial(_reload, app)):
                guard = Guard(connection_limits(settings), refused, _open_connections(app, "http"))
                yield {GUARD: guard, LANE: lane, LEAVE: registry.leave}
        finally:
            canary.cancel()
            decoder_watch.cancel()
            decoding.close()
            app.state.access.close()
            late.cancel()
            if app.state.grpc is not None:
                await app.state.grpc.stop()
            await app.state.reconciler.stop()
            metrics.bring_up_to_date()
            await asyncio.to_thread(app.state.tracing.stop)
        logger.info("stopped")


def _open_connections(app: FastAPI, door: str) -> OpenConnections | None:
    """Return how many connections the workers have at a door; None where there are no others."""
    workers: Workers | None = app.state.workers
    return None if workers is None else OpenConnections(workers.folder / f"connections-{door}", app.state.place)


async def _doubt_a_still_decoder(registry: Registry, decoding: WorkQueue, settings: Settings) -> None:
    """Turn ready false while a decoder stands still, until it moves; the watchdog ends the process some time later."""
    limit = settings.hang_seconds / 2 or _STILL_SECONDS
    is_still = False
    while True:
        await asyncio.sleep(min(1.0, limit / 2))
        if decoding.stands_still(limit) != is_still:
            is_still = not is_still
            registry.doubt(_DECODER, f"a picture has been decoded for {limit:g} s" if is_still else None)


def _reload(app: FastAPI) -> None:
    """Read again what operators change: keys, decisions and new versions; the log file follows by itself."""
    logger.info("reloading")
    app.state.access.reload()
    app.state.reconciler.poll_now()


async def _start_grpc(app: FastAPI) -> None:
    """Open the gRPC port where the settings name one; only then is its library needed.

    Raises:
        OSError: the port cannot be had.
        ProviderUnavailable: the library is not installed.
    """
    settings: Settings = app.state.settings
    if settings.grpc_port is None:
        return
    try:
        from .lane.rpc.calls import CallLane
        from .lane.rpc.connection import CallConnection
        from .v2.rpc.assembly import grpc_server
        from .v2.rpc.known_blocks import KnownBlocks
    except ImportError as err:
        raise ProviderUnavailable(f"--grpc-port needs the extra grpc: pip install 'foldserve[grpc]' ({err})") from err
    parts, blocks = app.state, KnownBlocks()
    lane = CallLane(
        parts.registry, settings, parts.metrics, parts.readers, parts.error_log, parts.access, parts.access_log,
        parts.tracing, blocks, parts.body_budget,
    )  # fmt: skip
    connections = _open_connections(app, "grpc")
    server = grpc_server(parts, app.title, app.version, blocks, functools.partial(CallConnection, lane), connections)
    await server.start(app.state.grpc_listener)
    app.state.grpc = server


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the description, with examples for the models that are served at this moment."""
    models = [(model.name, model.image) for model in app.state.registry.models() if model.image is not None]
    return describe(app, models)


async def _refuse_as_http_does(request: Request, err: HTTPException) -> NoReturn:
    """Raise our error for one of the framework: an unknown path, a wrong method, a body that it refuses by itself."""
    place = repr(request.scope["path"][:200])
    if err.status_code == 404:
        raise nothing_served(place) from err
    if err.status_code == 405:
        allowed = _methods(request)
        message = f"{request.method[:20]} is not possible at {place}, expected {', '.join(allowed)}"
        raise MethodNotAllowed(message, allowed) from err
    raise InvalidInput(str(err.detail)) from err


def _methods(request: Request) -> tuple[str, ...]:
    """Return every method that a path takes, whichever routes take them; HEAD stands beside GET, as for the files."""
    app: FastAPI = request.app
    tried = [(method, {**request.scope, "method": method}) for method in ("GET", "POST", "PUT", "PATCH", "DELETE")]
    routes = [route for route in app.router.routes if not isinstance(route, Mount)]
    taken = [method for method, scope in tried if any(route.matches(scope)[0] is Match.FULL for route in routes)]
    return ("GET", "HEAD", *taken[1:]) if "GET" in taken or not taken else tuple(taken)


async def _refuse_parameter(request: Request, err: RequestValidationError) -> NoReturn:
    """Raise a 400 where FastAPI would answer 422; it names the first place only, and never what stood there."""
    first = err.errors()[0]
    raise InvalidInput(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from err
