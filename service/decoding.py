"""Decoding the pictures of a request over HTTP: admitted as work, and given up when the client has gone."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from .bodies.work_queue import Job, WorkQueue
from .request_context import RequestContext

T = TypeVar("T")


async def decode(request: Request, read: Callable[[Job], T], *, pixels: int, size: int, deadline: float) -> T:
    """Return what `read` makes of the body of a request, in a thread, once it is admitted.

    Args:
        request: whose whole body was received.
        read: gets the job, whose `beat` it calls while it decodes.
        pixels: that it is expected to decode.
        size: bytes that it holds meanwhile.
        deadline: on the clock of `time.perf_counter`.

    Raises:
        ServiceError: what `read` raises, or the work was not admitted, or not done in time.
    """
    queue: WorkQueue = request.app.state.decoding
    context: RequestContext = request.state.context
    started, leaving = time.perf_counter(), asyncio.create_task(_client_leaves(request))
    try:
        return await queue.run(read, pixels=pixels, size=size, deadline=deadline, is_gone=leaving.done)
    finally:
        leaving.cancel()
        context.stages["decode"] = time.perf_counter() - started


async def _client_leaves(request: Request) -> None:
    """Wait until the client of a request, whose whole body was received, has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
