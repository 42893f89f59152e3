"""The gRPC port: starts and ends with the application, behind a gate that has the limits of HTTP's connections.

One server a worker; with several workers all take connections from one socket, as those of HTTP.
"""

import asyncio
import logging
import socket
from typing import Any

import grpc

from ...settings import Settings
from ...transport.listener import bind
from .calls import CallHandler
from .descriptors import HEALTH, INFERENCE
from .gate import Gate
from .health import HealthService
from .known_blocks import KnownBlocks
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
        gate: through which connections come in.
        settings: host, `grpc_port` and the limits.

    Attributes:
        port: where it listens once it has started; that of the settings, or a free one where they say 0.
    """

    def __init__(
        self, inference: InferenceService, health: HealthService, calls: CallHandler, gate: Gate, settings: Settings
    ) -> None:
        self.port = 0
        self._gate = gate
        self._settings = settings
        self._handlers = (calls.handlers(INFERENCE, inference), calls.handlers(HEALTH, health))
        self._server: grpc.aio.Server | None = None

    async def start(self, listener: socket.socket | None = None) -> None:
        """Answer.

        Args:
            listener: a socket that listens; None takes the port of the settings.

        Raises:
            OSError: the port cannot be had.
        """
        settings = self._settings
        if listener is None:
            listener = bind(settings.host, settings.grpc_port or 0, "--grpc-port")
        self.port = listener.getsockname()[1]
        self._server = grpc.aio.server(options=_options(settings))
        self._server.add_generic_rpc_handlers(self._handlers)
        try:
            self._server.add_insecure_port(f"unix:{self._gate.inside}")
        except RuntimeError as err:
            raise OSError(f"gRPC cannot listen in {self._gate.folder}") from err
        await self._server.start()
        await self._gate.open(listener)
        _log.info("gRPC listens", extra={"port": self.port})

    async def stop(self) -> None:
        """Refuse new calls, let those that run end, and give the port back."""
        if self._server is not None:
            self._gate.close()
            await asyncio.gather(
                self._server.stop(self._settings.drain_seconds), self._gate.answered(self._settings.drain_seconds)
            )
        self._gate.end()


def _options(settings: Settings) -> list[tuple[str, Any]]:
    """Return the limits that the library of gRPC keeps by itself."""
    metadata_bytes = settings.max_header_bytes + KnownBlocks.MARK_BYTES
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes + AROUND_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.grpc_max_streams),
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes),
        ("grpc.max_connection_idle_ms", settings.keep_alive_seconds * 1000),
        ("grpc.server_handshake_timeout_ms", int(settings.header_seconds * 1000)),
        ("grpc.keepalive_time_ms", _KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_ANSWER_SECONDS * 1000),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        ("grpc.http2.bdp_probe", 0),  # would widen the window by itself
    ]
