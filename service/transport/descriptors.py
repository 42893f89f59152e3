"""How many connections the descriptors of this process allow: each holds one, and so do models, metrics and logs.

Without this, a service under the usual limit of 1,024 takes more connections than it can hold, and then the system
refuses the next one, a health check included, without a word.
"""

import resource

from ..settings import Settings

_KEPT_BACK = 256  # descriptors for everything but connections: models, metrics, workers, gRPC, refusals on their way


def fit_to_descriptors(settings: Settings) -> Settings:
    """Raise the soft limit of descriptors to the hard one; return settings with no more connections than it can hold.

    Where connections are lowered, an address keeps its part of them. Processes that this one starts have its limit.
    """
    allowed = allowed_connections(raise_limit())
    wanted = settings.max_connections
    if wanted <= allowed:
        return settings
    for_address = max(1, settings.max_connections_per_address * allowed // wanted)
    return settings.model_copy(update={"max_connections": allowed, "max_connections_per_address": for_address})


def raise_limit() -> int:
    """Raise the soft limit of descriptors to the hard one where the system allows it; return what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard


def allowed_connections(limit: int) -> int:
    """Return how many connections fit into so many descriptors; where these are few, half are kept back."""
    if limit == resource.RLIM_INFINITY:
        return 2**31
    return max(1, limit - min(_KEPT_BACK, limit // 2))
