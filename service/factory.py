"""Makes the application in the process that serves it.

The supervisor of several workers never imports what they need, so that they start while it would still be reading it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.processes.workers import Workers
    from service.settings import Settings

PROTOCOL = "service.connections.lane_protocol:LaneProtocol"


def build_app(settings: "Settings", workers: "Workers | None") -> "FastAPI":
    """Return the application; what it needs is imported now."""
    from service.app import create_app

    return create_app(settings, workers)
