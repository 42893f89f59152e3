"""Requests that fail as soon as they arrive are told so a moment later."""

import asyncio

from ..batching.request import Request
from ..errors import ServiceError


class Failures:
    """The requests of one way in that are to be told at the end of this turn of the loop that they failed.

    Told at once, a client that asks again at once is read in the same turn, and a thousand of them keep the loop from
    ever turning: no batch is taken, no timer runs.
    """

    def __init__(self) -> None:
        self._failed: list[tuple[Request, ServiceError]] = []

    def add(self, request: Request, error: ServiceError) -> None:
        """Tell a request soon that it failed."""
        if not self._failed:
            asyncio.get_running_loop().call_soon(self._tell)
        self._failed.append((request, error))

    def _tell(self) -> None:
        failed, self._failed = self._failed, []
        for request, error in failed:
            if not request.is_over:
                request.failed(error)
