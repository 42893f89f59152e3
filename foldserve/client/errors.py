"""What a call can end with instead of a result.

ClientError
├── Refused              the server said no: `status` and its sentence
│   └── Unavailable      429 or 503, and no time or attempt left to come back
├── DeadlineExceeded     the time that the caller gave is over, here or there (504)
└── Unreachable          no server, or a connection that broke
"""
# ruff: noqa: N818 - the names say what happened


class ClientError(Exception):
    """Base of everything that the client raises on purpose."""


class Refused(ClientError):
    """The server answered with an error.

    Args:
        status: of the answer.
        message: the server's own sentence.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Unavailable(Refused):
    """The server is starting, ending or full, and stayed so."""


class DeadlineExceeded(ClientError):
    """The answer would have come too late."""


class Unreachable(ClientError):
    """There is no server, or the connection broke."""
