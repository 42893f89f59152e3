"""Makes the application in the process that serves it.

The supervisor of several workers imports the libraries that they can share, and nothing else of what they need.
"""

import gc
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from foldserve.exit_codes import START_FAILED

if TYPE_CHECKING:
    from socket import socket

    from fastapi import FastAPI

    from .live.live_models import LiveModels
    from .processes.workers import Workers
    from .settings import Settings

logger = logging.getLogger(__name__)

PROTOCOL = "foldserve.service.lane.connection:lane_connection"

# What takes longest to import and makes no threads, so that a process which has it can be copied.
_LIBRARIES = (
    "fastapi.openapi.utils", "fastapi.staticfiles", "numpy", "orjson", "prometheus_client.multiprocess",
    "python_multipart.multipart", "uvicorn.protocols.http.httptools_impl", "uvloop",
)  # fmt: skip


def import_libraries() -> None:
    """Import what every worker needs; their supervisor does it once for all of them."""
    _spare_numpy_threads()
    import_uvicorn()
    with building_schemas_later():
        for name in _LIBRARIES:
            importlib.import_module(name)


def begin_loading(settings: "Settings") -> "LiveModels":
    """Begin to load models, in threads, before the application is imported: that takes as long, and one core of two."""
    gc.disable()  # until the application is there
    with _ending_with_the_reason():
        _spare_numpy_threads()
        from .live.live_models import LiveModels

        models = LiveModels.of(settings)
        models.reconciler.begin()
    return models


def build_app(
    settings: "Settings",
    workers: "Workers | None",
    grpc_listener: "socket | None" = None,
    models: "LiveModels | None" = None,
) -> "FastAPI":
    """Return the application; what it needs is imported now. Where it cannot be made, the process ends with the reason.

    Importing makes a hundred thousand objects that are never freed. The collector would go through them two hundred
    times meanwhile, and again in every full collection while requests wait; so it is off meanwhile, and skips them.
    """
    gc.disable()
    try:
        with _ending_with_the_reason(), building_schemas_later():
            import_libraries()
            from .app import create_app

            app = create_app(settings, workers, grpc_listener, models)
            gc.freeze()
    finally:
        gc.enable()
    return app


@contextmanager
def _ending_with_the_reason() -> Iterator[None]:
    """End the process with one line where something fails: a supervisor would start the next one after a traceback."""
    try:
        yield
    except Exception as err:
        logger.error("the start failed: %s", err, exc_info=None if isinstance(err, OSError) else err)
        sys.exit(START_FAILED)


def _spare_numpy_threads() -> None:
    """Have numpy make no threads for linear algebra, which nothing here uses: they spin, and do not survive a copy."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def import_uvicorn() -> None:
    """Import uvicorn without its own command line, whose libraries are a twentieth of what all imports take.

    The package takes three names from there. `uvicorn.main` can be imported later; then it is what it always is.
    """
    name = "uvicorn.main"
    if "uvicorn" in sys.modules:
        return
    sys.modules[name] = empty = ModuleType(name)
    vars(empty).update(Server=None, main=None, run=None)
    try:
        import uvicorn
        from uvicorn.server import Server
    finally:
        del sys.modules[name]
    uvicorn.Server = Server  # type: ignore[misc]
    del uvicorn.main, uvicorn.run


@contextmanager
def building_schemas_later() -> Iterator[None]:
    """Have pydantic build what checks and describes a model when it is first used: most only stand in `/openapi.json`.

    Nor is pydantic's first version imported, which FastAPI does to see whether a route uses it: none does. The two
    would be an eighth of what all imports take.
    """
    from pydantic import BaseModel

    old, config = "pydantic.v1", BaseModel.model_config
    absent = old not in sys.modules
    if absent:
        sys.modules[old] = None  # type: ignore[assignment]  # an import of it fails, which FastAPI takes for an answer
    BaseModel.model_config = {**config, "defer_build": True}  # which each class that is made now takes over
    try:
        yield
    finally:
        BaseModel.model_config = config
        if absent:
            del sys.modules[old]
