"""The one place where HTTP asks `access`: around the whole application, before any route is looked for.

A plain ASGI callable within `observe`, so that what it refuses is counted, timed and given an id like everything else.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from .access import Access, scope_of
from .bodies.answers import error_json
from .errors import ServiceError


class Gate:
    """ASGI wrapper that lets through what `access` lets through.

    Args:
        app: the application within.
        access: the verdicts.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask first; what is refused never reaches the application."""
        if scope["type"] == "http":
            try:
                check_http(self.access, scope)
            except ServiceError as err:
                await _refuse(err, send)
                return
        await self.app(scope, receive, send)


def check_http(access: Access, scope: Scope) -> str | None:
    """Let an HTTP request pass, or raise what `Access.check` raises.

    The verdict rests on `scope["path"]`, by which routes are found; never on a URL, into which the Host header goes.
    """
    path: str = scope["path"]
    headers = dict(scope["headers"])
    authorization, api_key = (headers.get(name) for name in (b"authorization", b"x-api-key"))
    return access.check(
        scope_of(scope["method"], path),
        None if authorization is None else authorization.decode("latin-1"),
        None if api_key is None else api_key.decode("latin-1"),
        repr(path[:200]),
    )


async def _refuse(err: ServiceError, send: Send) -> None:
    body = error_json(str(err))
    headers = {"content-type": "application/json", "content-length": str(len(body)), **err.headers}
    listed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": err.status, "headers": listed})
    await send({"type": "http.response.body", "body": body})
