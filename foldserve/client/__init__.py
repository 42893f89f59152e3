"""A small typed client of foldserve, and of any other server that speaks the Open Inference Protocol over HTTP.

Needs httpx and NumPy and nothing of the service: arrays travel as bytes, deadlines are kept, and a refused call is
repeated when the server says that it may be.
"""

from .aio import AsyncClient
from .errors import ClientError, DeadlineExceeded, Refused, Unavailable, Unreachable
from .messages import Result
from .sync import Client

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "Refused",
    "Result",
    "Unavailable",
    "Unreachable",
]
