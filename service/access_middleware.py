"""The one place where HTTP uses `access`: around the whole application, before any route is chosen.

A plain ASGI callable within `request_middleware`, which answers what this refuses, counts and times it like any other.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from .access import Access, scope_of
from .request_context import Caller, RequestContext


class AccessMiddleware:
    """ASGI wrapper that lets through what `access` lets through.

    Args:
        app: the application within.
        access: the verdicts.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check first; what is refused never reaches the application."""
        if scope["type"] == "http":
            key = check_http(self.access, scope)
            context: RequestContext = scope["state"]["context"]
            context.caller = Caller(key, client_address(scope))
        await self.app(scope, receive, send)


def client_address(scope: Scope) -> str | None:
    """Return the address that a request was sent from."""
    client: tuple[str, int] | None = scope.get("client")
    return client[0] if client else None


def check_http(access: Access, scope: Scope) -> str | None:
    """Let an HTTP request pass, or raise what `Access.check` raises.

    The verdict rests on `scope["path"]`, by which routes are chosen; never on a URL, into which the Host header goes.
    """
    path: str = scope["path"]
    headers = dict(scope["headers"])
    authorization, api_key = (headers.get(name) for name in (b"authorization", b"x-api-key"))
    return access.check(
        scope_of(scope["method"], path),
        None if authorization is None else authorization.decode("latin-1"),
        None if api_key is None else api_key.decode("latin-1"),
        repr(path[:200]),
        client_address(scope),
    )
