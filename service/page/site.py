"""The page itself: plain files that a browser reads as they are. Everything it shows it asks the service for.

Its policy lets a browser load nothing from another host and run nothing that is written into the page.
"""

import functools
from pathlib import Path

from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

FOLDER = Path(__file__).parent / "static"
PREFIX = "/static/page"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@functools.cache
def _content() -> bytes:
    return (FOLDER / "index.html").read_bytes()


def page() -> Response:
    """Return the page."""
    return HTMLResponse(_content(), headers=HEADERS)


class WholeFiles(StaticFiles):
    """Starlette's, without ranges, as HTTP allows: what it says of a wrong one is no error of ours in form."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a whole file."""
        headers = [header for header in scope["headers"] if header[0] not in (b"range", b"if-range")]
        await super().__call__({**scope, "headers": headers}, receive, send)


class PageFiles(WholeFiles):
    """The files of the page, which a browser asks for again once the service was replaced."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file that a browser takes for nothing else."""
        response = await super().get_response(path, scope)
        response.headers.update({name: HEADERS[name] for name in ("Cache-Control", "X-Content-Type-Options")})
        return response
