"""Every route of an application, as the inventories of the tests compare them."""

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path of every route, however deep its routers nest; of the files below /static none."""
    return {(method, path) for method, path in _walk(app.routes) if method not in ("HEAD", "OPTIONS")}


def _walk(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for route in routes:
        inner = getattr(getattr(route, "original_router", None), "routes", ())
        yield from _walk(inner)
        for method in getattr(route, "methods", None) or ():
            yield method, getattr(route, "path_format", route.path)
