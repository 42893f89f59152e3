"""Makes the application in the process that serves it.

The supervisor of several workers never imports what they need, so that they start while it would still be reading it.
"""

import gc
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.processes.workers import Workers
    from service.settings import Settings

PROTOCOL = "service.connections.lane_protocol:LaneProtocol"


def build_app(settings: "Settings", workers: "Workers | None") -> "FastAPI":
    """Return the application; what it needs is imported now.

    Importing makes a hundred thousand objects that stay for ever. The collector would look through them two hundred
    times meanwhile, and again in every full collection while requests wait; so it rests, and never looks at them.
    """
    # numpy's threads for linear algebra, which nothing here uses, spin for a while when they are made.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()
    try:
        from service.app import create_app

        app = create_app(settings, workers)
        gc.freeze()
    finally:
        gc.enable()
    return app
