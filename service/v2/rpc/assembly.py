"""Builds the parts of the gRPC port of one application, and gives them to one another."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...processes.open_connections import OpenConnections
from ...processes.workers import private_folder
from ...settings import Settings
from ...transport.guard import Guard
from ...transport.limits import connection_limits
from .calls import CallHandler
from .gate import ROUTE, Gate, Lane, Outside
from .health import HealthService
from .known_blocks import KnownBlocks
from .server import GrpcServer
from .service import InferenceService
from .wire import AROUND_BYTES


def grpc_server(
    parts: Any,
    name: str,
    version: str,
    blocks: KnownBlocks,
    open_lane: Callable[[Outside], Lane],
    open_connections: OpenConnections | None = None,
) -> GrpcServer:
    """Return the server of an application, not started yet.

    Args:
        parts: the application's `state`.
        name: of the service, for its metadata.
        version: of the service.
        blocks: told of the metadata of every call.
        open_lane: makes each connection's way past the library.
        open_connections: of all workers at the port; None where there is only this one.

    Raises:
        OSError: there is no place for a folder.
    """
    settings: Settings = parts.settings
    limits = replace(
        connection_limits(settings),
        connections=settings.grpc_max_connections,
        connections_per_address=settings.grpc_max_connections_per_address,
    )
    guard = Guard(limits, functools.partial(parts.metrics.observe_request, ROUTE, "unknown"), open_connections)
    folder = private_folder(None if parts.workers is None else parts.workers.folder)
    gate = Gate(folder, guard, parts.body_budget, settings.max_body_bytes + AROUND_BYTES, parts.error_log, open_lane)
    inference = InferenceService(
        parts.registry, parts.control, settings, parts.error_log, parts.decoding, name, version
    )
    calls = CallHandler(
        parts.access,
        settings,
        parts.metrics,
        parts.error_log,
        parts.body_budget,
        gate.address,
        limits.proxies,
        parts.access_log,
        parts.tracing,
        blocks,
    )
    return GrpcServer(inference, HealthService(parts.registry), calls, gate, settings)
