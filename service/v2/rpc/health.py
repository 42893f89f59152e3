"""The standard health service of gRPC, `grpc.health.v1.Health`, on the readiness of the registry."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ...errors import NotFound
from ...live.registry import Registry
from ...request_context import RequestContext
from .descriptors import HEALTH, INFERENCE

_POLL_SECONDS = 1.0


class HealthService:
    """The calls of `Health`, by their names.

    Args:
        registry: the models; they decide whether the service is ready.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def Check(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Answer with the status now; an empty name means the whole server."""
        if request.service not in ("", INFERENCE.service):
            raise NotFound(f"service {request.service[:80]!r} is not one of this server")
        status = "SERVING" if self._registry.wants_requests else "NOT_SERVING"
        return HEALTH.messages["HealthCheckResponse"](status=status)

    async def Watch(self, request: Any, context: RequestContext) -> AsyncIterator[Any]:  # noqa: N802
        """Say the status now and whenever it changes."""
        last = None
        while True:
            current = await self.Check(request, context)
            if current != last:
                yield current
                last = current
            await asyncio.sleep(_POLL_SECONDS)
