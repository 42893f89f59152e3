"""One request about pictures or rows, from its body to the answer: `/predict`, and the routes that translate onto it.

What a route gives is the model and how an answer is written; budget, deadline, decoding as admitted work and counting
are the same for all.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from fastapi import Request
from fastapi.responses import Response

from foldserve.format.image import ImageRecipe

from .bodies.budget import BodyBudget, Share
from .bodies.instances import Images
from .bodies.limits import QUICK_BYTES, Limits
from .bodies.predict_body import EMPTY_BODY, expected_pixels, holds_files, is_quick, media_type, read_images
from .bodies.receive import receive_body
from .decoding import decode
from .errors import InvalidInput, UnsupportedMediaType, clip
from .inference import answer, count
from .live.model import Model
from .predict_rows import read_rows
from .request_context import RequestContext
from .settings import Settings
from .tensors import Array

QUICK_ROWS = 512  # written as JSON within a millisecond or two; more of them in a thread

# Content-Type as it was sent, and the body -> the media type to read it as.
GuessType = Callable[[str | None, bytes], str]


async def ask(
    request: Request, model: Model, write: Callable[[Mapping[str, Array]], bytes], guess_type: GuessType | None = None
) -> Response:
    """Return the answer of a model to the pictures or rows in a request's body.

    Args:
        request: its body is read here.
        model: to be asked.
        write: makes JSON of the outputs.
        guess_type: for clients that do not say what they send; None takes them by their word.

    Raises:
        ServiceError: the body does not fit, or the model cannot answer.
    """
    context: RequestContext = request.state.context
    deadline = context.deadline()
    budget: BodyBudget = request.app.state.body_budget
    with budget.hold(context.caller.address or "") as share, model.in_use():
        inputs = await read_inputs(request, model, share, deadline, guess_type)
        result = await answer(request.app.state.registry, model, inputs, deadline, context)
    if len(next(iter(inputs.values()))) <= QUICK_ROWS:
        body = write(result.outputs)
    else:
        body = await asyncio.to_thread(write, result.outputs)
    count(model, result, context)
    return Response(body, media_type="application/json")


async def read_inputs(
    request: Request, model: Model, share: Share, deadline: float, guess_type: GuessType | None = None
) -> dict[str, Array]:
    """Return the inputs in a request's body by name; what would hold up the event loop is read in a thread.

    Args:
        request: its body is read here.
        model: that they are for.
        share: of the bytes that all bodies may take; held until the inputs are needed no more.
        deadline: after which they are of no use, on the clock of `time.perf_counter`.
        guess_type: for clients that do not say what they send.

    Raises:
        ServiceError: the body does not fit, or a picture cannot be decoded in time.
    """
    settings: Settings = request.app.state.settings
    content_type = request.headers.get("content-type")
    if guess_type is None and content_type is not None:
        media_type(content_type, settings.image_formats)  # refused before its body is received
    body = await _read_body(request, share)
    if not body and (content_type is None or guess_type is not None):
        raise InvalidInput(EMPTY_BODY)
    if guess_type is not None:
        content_type = guess_type(content_type, body)
    limits = Limits.of(settings)
    if model.image is not None:
        return {model.image.input: await _read_images(request, body, content_type, model.image, limits, deadline)}
    context: RequestContext = request.state.context
    specs, columns = model.engine.inputs, model.task.columns
    return await context.parse(read_rows, body, content_type, specs, columns, limits, is_quick=len(body) <= QUICK_BYTES)


async def _read_images(
    request: Request, body: bytes, content_type: str | None, spec: ImageRecipe, limits: Limits, deadline: float
) -> Images:
    """Return the images of a body; files are admitted as work, since to decode one can take seconds."""
    kind = media_type(content_type, limits.formats)
    context: RequestContext = request.state.context
    is_quickly_read = is_quick(body, kind)
    if is_quickly_read or (kind == "application/json" and not holds_files(body)):
        return await context.parse(read_images, body, content_type, spec, limits, is_quick=is_quickly_read)
    return await decode(
        request,
        lambda job: read_images(body, content_type, spec, replace(limits, beat=job.beat)),
        pixels=expected_pixels(body, kind),
        size=len(body),
        deadline=deadline,
    )


async def _read_body(request: Request, share: Share) -> bytes:
    """Return the whole body, which must not be compressed."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding: {clip(encoding)!r}, expected none: send the body as it is"
        raise UnsupportedMediaType(message, "identity")
    return await receive_body(request, share, request.app.state.settings.max_body_bytes)
