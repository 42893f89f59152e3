"""What every route does with a request before it knows what stands in it: its whole body, and until when it matters.

Between the framework and the readers of bodies. Bytes are counted as they come, and refused once they are too many.
"""

from fastapi import Request

from ..errors import BodyTooLarge, InvalidInput
from .budget import Share
from .limits import clip


async def receive_body(request: Request, share: Share) -> bytes:
    """Return the whole body as it came.

    Raises:
        BodyTooLarge: by its header or by what has arrived, it is larger than the settings allow.
        Overloaded: the bodies of all requests together are over the budget.
    """
    max_bytes = request.app.state.settings.max_body_bytes
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > max_bytes:
        raise BodyTooLarge(f"body: {clip(stated)} bytes came, expected at most {max_bytes}")
    chunks = []
    received = 0
    async for chunk in request.stream():
        share.add(len(chunk))
        received += len(chunk)
        if received > max_bytes:
            raise BodyTooLarge(f"body: more than {max_bytes} bytes, expected at most that many")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def stated_deadline(request: Request) -> float | None:
    """Return the seconds of the header X-Deadline-Ms; None where it did not come.

    Raises:
        InvalidInput: it is not a whole number of milliseconds above 0.
    """
    text = request.headers.get("x-deadline-ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise InvalidInput(f"X-Deadline-Ms: {clip(text)!r}, expected a whole number of milliseconds above 0")
    return int(text) / 1000
