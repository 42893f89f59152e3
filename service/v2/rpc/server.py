"""The gRPC port: starts and ends with the application, under the limits that connections of HTTP have.

One server a worker; with several workers they share the port, and the kernel spreads the connections.
"""

import logging
from typing import Any

import grpc

from ...settings import Settings
from .calls import CallHandler
from .descriptors import HEALTH, INFERENCE
from .health import HealthService
from .service import InferenceService
from .wire import AROUND_BYTES

_log = logging.getLogger(__name__)

_WINDOW_BYTES = 65_536  # of a call that are taken from the connection before its message is wanted
_KEEPALIVE_SECONDS = 60  # after which a silent client has to answer a ping
_KEEPALIVE_ANSWER_SECONDS = 20


class GrpcServer:
    """Serves one application's models.

    Args:
        inference: the calls of the protocol.
        health: the calls of the health service.
        calls: what surrounds each of them.
        settings: host, `grpc_port` and the limits.

    Attributes:
        port: where it listens once it has started; that of the settings, or a free one where they say 0.
    """

    def __init__(
        self, inference: InferenceService, health: HealthService, calls: CallHandler, settings: Settings
    ) -> None:
        self.port = 0
        self._settings = settings
        self._handlers = (calls.handlers(INFERENCE, inference), calls.handlers(HEALTH, health))
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Take the port and answer.

        Raises:
            OSError: the port cannot be had.
        """
        settings = self._settings
        server = grpc.aio.server(options=_options(settings))
        server.add_generic_rpc_handlers(self._handlers)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self.port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as err:
            raise OSError(f"cannot listen on {host}:{settings.grpc_port} for gRPC; choose another --grpc-port") from err
        await server.start()
        self._server = server
        _log.info("gRPC listens", extra={"port": self.port})

    async def stop(self) -> None:
        """Refuse new calls, let those that run end, and give the port back."""
        if self._server is not None:
            await self._server.stop(self._settings.drain_seconds)


def _options(settings: Settings) -> list[tuple[str, Any]]:
    """Return the limits that the library of gRPC keeps by itself."""
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes + AROUND_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.grpc_max_streams),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.max_connection_idle_ms", settings.keep_alive_seconds * 1000),
        ("grpc.server_handshake_timeout_ms", int(settings.header_seconds * 1000)),
        ("grpc.keepalive_time_ms", _KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_ANSWER_SECONDS * 1000),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        ("grpc.http2.bdp_probe", 0),  # would widen the window by itself
        ("grpc.so_reuseport", int(settings.workers > 1)),
    ]
