"""What every route does with a request before it knows what stands in it: receive its whole body.

Between the framework and the readers of bodies. Bytes are counted as they arrive, and refused once they are too many.
"""

from fastapi import Request

from ..errors import BodyTooLarge, clip
from .budget import Share


async def receive_body(request: Request, share: Share) -> bytes:
    """Return the whole body as it was sent.

    Raises:
        BodyTooLarge: by its header or by what has arrived, it is larger than the settings allow.
        Overloaded: the bodies of all requests together are over the budget.
    """
    max_bytes = request.app.state.settings.max_body_bytes
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > max_bytes:
        raise BodyTooLarge(f"body: {clip(stated)} bytes, expected at most {max_bytes}")
    chunks = []
    received = 0
    async for chunk in request.stream():
        share.add(len(chunk))
        received += len(chunk)
        if received > max_bytes:
            raise BodyTooLarge(f"body: more than {max_bytes} bytes, expected at most that many")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
