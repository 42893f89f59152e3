"""What every route does with a request before it knows what stands in it: receive its whole body.

Between the framework and the readers of bodies. Bytes are counted as they arrive, and refused once they are too many.
"""

import asyncio

from fastapi import Request

from ..errors import BodyTooLarge, clip
from .budget import Share
from .compression import QUICK_COMPRESSED_BYTES, content_encoding, inflate


async def receive_body(request: Request, share: Share, max_bytes: int) -> bytes:
    """Return the whole body as it was sent.

    Raises:
        BodyTooLarge: by its header or by what has arrived, it is larger than `max_bytes`.
        Overloaded: the bodies of all requests together are over the budget, and this address holds the most.
    """
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > max_bytes:
        raise BodyTooLarge(f"body: got {clip(stated)} bytes, expected at most {max_bytes}")
    chunks = []
    received = 0
    async with share.receiving():
        async for chunk in request.stream():
            share.add(len(chunk))
            received += len(chunk)
            if received > max_bytes:
                raise BodyTooLarge(f"body: more than {max_bytes} bytes, expected at most that many")
            chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def receive_inflated(request: Request, share: Share, max_bytes: int) -> bytes:
    """Return the whole body, inflated where Content-Encoding says that it is compressed.

    Raises:
        UnsupportedMediaType: it is compressed in another way than with gzip or deflate.
        InvalidInput: the compressed data are damaged.
        BodyTooLarge: it is larger than `max_bytes`, as it was sent or inflated.
        Overloaded: the bodies of all requests together are over the budget.
    """
    coding = content_encoding(request.headers.get("content-encoding"))
    body = await receive_body(request, share, max_bytes)
    if coding is None:
        return body
    if len(body) <= QUICK_COMPRESSED_BYTES:
        inflated = inflate(body, coding, max_bytes)
    else:
        inflated = await asyncio.to_thread(inflate, body, coding, max_bytes)
    share.add(len(inflated))
    return inflated
