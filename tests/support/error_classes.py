"""The errors of the service as a closed set."""

from foldserve.service.errors import ServiceError


def tree(base: type[Exception] = ServiceError) -> set[type[Exception]]:
    """A class and all below it."""
    return {base}.union(*(tree(child) for child in base.__subclasses__()))
