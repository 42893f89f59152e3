"""How many connections the descriptors of this process allow: each holds one, and so do models, metrics and logs.

Without this, a service under the usual limit of 1,024 takes more connections than it can hold, and then the system
refuses the next one, a health check included, without a word.
"""

import resource

from ..settings import Settings

_KEPT_BACK = 256  # descriptors for everything but connections: models, metrics, workers, refusals on their way
# That a process has open beside its connections, and what each of these adds: other workers, and the library of gRPC.
_USED, _USED_MORE = 48, 16
_LEAST = 64  # below it models, metrics and workers fail one by one, each with another error
_OF_GRPC = 3  # descriptors of one of its connections: the client's, and both ends of the one to its library


def fit_to_descriptors(settings: Settings) -> Settings:
    """Raise the soft limit of descriptors to the hard one; return settings with no more connections than it can hold.

    Where connections are lowered, an address keeps its part of them. Processes that this one starts have its limit.

    Raises:
        OSError: there are too few to start with.
    """
    limit = raise_limit()
    if 0 <= limit < _LEAST:  # no limit is -1
        raise OSError(f"this process may open {limit} files, expected at least {_LEAST}: raise ulimit -n")
    more = (settings.workers > 1) + (settings.grpc_port is not None)
    allowed = allowed_connections(limit, _USED + more * _USED_MORE)
    if settings.grpc_port is not None:
        settings = _fit_grpc(settings, allowed // 4 // _OF_GRPC)
        allowed = max(1, allowed - settings.grpc_max_connections * _OF_GRPC)
    wanted = settings.max_connections
    if wanted <= allowed:
        return settings
    for_address = max(1, settings.max_connections_per_address * allowed // wanted)
    return settings.model_copy(update={"max_connections": allowed, "max_connections_per_address": for_address})


def _fit_grpc(settings: Settings, allowed: int) -> Settings:
    """Return settings with no more connections of gRPC than its quarter of the descriptors can hold."""
    wanted, allowed = settings.grpc_max_connections, max(1, allowed)
    if wanted <= allowed:
        return settings
    for_address = max(1, settings.grpc_max_connections_per_address * allowed // wanted)
    lowered = {"grpc_max_connections": allowed, "grpc_max_connections_per_address": for_address}
    return settings.model_copy(update=lowered)


def raise_limit() -> int:
    """Raise the soft limit of descriptors to the hard one where the system allows it; return what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard


def allowed_connections(limit: int, used: int = _USED) -> int:
    """Return how many connections fit into so many descriptors; where these are few, half are kept back, or more.

    Args:
        limit: of descriptors.
        used: for everything else, at least.
    """
    if limit == resource.RLIM_INFINITY:
        return 2**31
    return max(1, limit - min(_KEPT_BACK, max(limit // 2, used)))
