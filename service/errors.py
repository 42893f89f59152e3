"""Everything the service can answer with instead of a prediction, and the status of each in HTTP and in gRPC.

    ServiceError
    ├── RequestError               theirs: the request has to change
    │   ├── InvalidInput           400
    │   ├── Unauthorized           401
    │   ├── Forbidden              403
    │   ├── NotFound               404
    │   │   └── ModelNotFound      404
    │   ├── MethodNotAllowed       405
    │   ├── RequestTimeout         408
    │   ├── Conflict               409
    │   ├── BodyTooLarge           413
    │   │   └── TooManyRows        413
    │   ├── UnsupportedMediaType   415
    │   ├── TooManyRequests        429   Retry-After
    │   └── HeadersTooLarge        431
    ├── ServerError                ours: the same request may succeed later, or on another server
    │   ├── EngineError            500
    │   │   └── DeviceLost         500   the process cannot answer any more and has to end
    │   ├── Unsupported            501
    │   ├── NotReady               503   Retry-After
    │   ├── Overloaded             503   Retry-After
    │   └── DeadlineExceeded       504
    └── StartError                 the service does not start; printed, never sent
        ├── ArtifactInvalid        a version folder is not what its manifest says, or answers wrongly
        │   └── VersionLost        it is not what this service has served under that number before
        ├── ProviderUnavailable    the requested device is not available
        └── BucketsInvalid         the list of batch sizes is empty, not rising or does not fit the model

The statuses stand on the class and nowhere else. A message is one sentence: what the request held, what was expected,
what to do.
"""
# ruff: noqa: N818 - the names say what happened; "Error" behind each would say nothing more

from collections.abc import Mapping
from typing import ClassVar

_QUOTED_CHARACTERS = 80


class ServiceError(Exception):
    """Base of everything that `service` raises on purpose; `headers` go out with the answer."""

    status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers that belong to this answer."""
        return {}


class RequestError(ServiceError):
    """The request has to change before it can be answered."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"


class InvalidInput(RequestError):
    """The body or a parameter cannot be read as what the model takes."""


class Unauthorized(RequestError):
    """No key was given, or one that is not known."""

    status = 401
    grpc_status = "UNAUTHENTICATED"

    @property
    def headers(self) -> Mapping[str, str]:
        """The scheme that would be accepted, as RFC 9110 section 15.5.2 demands."""
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(RequestError):
    """The key is known and lacks the scope that this needs."""

    status = 403
    grpc_status = "PERMISSION_DENIED"


class NotFound(RequestError):
    """Nothing is served at this path."""

    status = 404
    grpc_status = "NOT_FOUND"


class ModelNotFound(NotFound):
    """No model of this name or version is loaded."""


class MethodNotAllowed(RequestError):
    """The path exists and takes other methods.

    Args:
        message: one sentence.
        allowed: the methods that the path takes.
    """

    status = 405

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed

    @property
    def headers(self) -> Mapping[str, str]:
        """The methods that would be accepted, as RFC 9110 section 15.5.6 demands."""
        return {"Allow": ", ".join(self.allowed)}


class RequestTimeout(RequestError):
    """The client took too long to send its request."""

    status = 408
    grpc_status = "DEADLINE_EXCEEDED"


class Conflict(RequestError):
    """What is asked for contradicts what is declared elsewhere, and has to be changed there."""

    status = 409
    grpc_status = "FAILED_PRECONDITION"


class BodyTooLarge(RequestError):
    """More bytes than the service takes in one request."""

    status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class TooManyRows(BodyTooLarge):
    """More rows than the service takes in one request."""

    grpc_status = "INVALID_ARGUMENT"


class UnsupportedMediaType(RequestError):
    """The content type or encoding is not one the route reads.

    Args:
        message: one sentence.
        codings: content codings that the route reads; None where the type is what it does not read.
    """

    status = 415

    def __init__(self, message: str, codings: str | None = None) -> None:
        super().__init__(message)
        self.codings = codings

    @property
    def headers(self) -> Mapping[str, str]:
        """The codings that would be accepted, as RFC 9110 section 15.5.16 advises."""
        return {} if self.codings is None else {"Accept-Encoding": self.codings}


class HeadersTooLarge(RequestError):
    """More header bytes than the service reads."""

    status = 431


class _Later(ServiceError):
    """An answer that says when to try again.

    Args:
        message: one sentence.
        retry_after: whole seconds, at least 1.
    """

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = max(1, int(retry_after))

    @property
    def headers(self) -> Mapping[str, str]:
        """Retry-After in whole seconds."""
        return {"Retry-After": str(self.retry_after)}


class TooManyRequests(_Later, RequestError):
    """This client has used up its share."""

    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"


class ServerError(ServiceError):
    """The request was fine; the service could not answer it."""


class EngineError(ServerError):
    """The model's run failed."""


class DeviceLost(EngineError):
    """The device no longer answers; only a new process can help."""


class Unsupported(ServerError):
    """The protocol has this feature and the service does not."""

    status = 501
    grpc_status = "UNIMPLEMENTED"


class NotReady(_Later, ServerError):
    """The service is starting or draining."""

    status = 503
    grpc_status = "UNAVAILABLE"


class Overloaded(_Later, ServerError):
    """The answer could not be ready within the request's deadline, or the queue is full."""

    status = 503
    grpc_status = "UNAVAILABLE"


class DeadlineExceeded(ServerError):
    """The deadline passed while the request waited."""

    status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class StartError(ServiceError):
    """The service does not start; the message says what to mend."""


class ArtifactInvalid(StartError):
    """A version folder is not what its manifest says, or its model answers wrongly."""


class VersionLost(ArtifactInvalid):
    """A version folder no longer holds what this service has served as that version, or is gone."""


class ProviderUnavailable(StartError):
    """The requested device is not available."""


class BucketsInvalid(StartError):
    """The list of batch sizes is empty, not rising or does not fit the model."""


def nothing_served(place: str) -> NotFound:
    """Return the error for a path without a route, and for one whose route is not shown to this client."""
    return NotFound(f"nothing is served at {place}; /docs lists what is")


def ended_before() -> NotReady:
    """Return the error for a request that still runs when the time to drain is over."""
    return NotReady("the service ended before this was answered; ask again")


def clip(value: object) -> str:
    """Return what a client sent, short enough to stand in a message."""
    text = str(value)
    return text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}..."
