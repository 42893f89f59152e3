"""foldserve on Ray Serve: each replica of a deployment is the whole service, fast lane included.

`serve.run(foldserve.ray.app(models_dir=...))` in a program, `foldserve.ray:build` in a Serve config file, or
`foldserve serve --on ray`. Built on Ray's public hooks; its packages are imported when an application is made.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .replica import BUSY, Replica

if TYPE_CHECKING:
    from foldserve.service.settings import Settings

__all__ = ["app", "application", "build", "busy_policy"]

NAME = "foldserve"
NOT_INSTALLED = "ray is not installed: pip install 'foldserve[ray]'"
_BUSY_ENOUGH = 0.6  # of its cores, above which a replica is given another one beside it
_MAX_ONGOING = 1_000  # what a replica takes at once by Ray's own ways; the service refuses overload by itself


class _Context(Protocol):
    """What `busy_policy` reads of Ray's context."""

    current_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    aggregated_metrics: Mapping[str, Mapping[Any, float]]


def app(models_dir: str | Path = "models", *, deployment: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """Return the application for `serve.run`.

    Args:
        models_dir: the models, at the same place on every node.
        deployment: options of Ray's deployment, such as `num_replicas`; `autoscaling_config` scales by how busy
            replicas are unless it names a policy of its own.
        settings: of the service, by their names on docs/settings.md; the port is Ray's.

    Raises:
        ImportError: Ray is not installed.
        ValueError: a setting is unknown or cannot be used.
    """
    from foldserve.service.settings import Settings

    stated = {"host": "0.0.0.0", **settings}  # noqa: S104 - where Ray's HAProxy listens in any case
    return application(Settings(models_dir=Path(models_dir), **stated), deployment)


def build(args: dict[str, Any]) -> Any:
    """Return the same for a Serve config file: `import_path: foldserve.ray:build`, whose `args` are those of `app`."""
    return app(**args)


def application(settings: "Settings", deployment: Mapping[str, Any] | None = None) -> Any:
    """Return the application for settings that are made already; see `app`."""
    if settings.grpc_port is not None:
        raise ValueError(f"grpc_port is {settings.grpc_port}: gRPC does not pass through Ray, ask over HTTP")
    try:
        from ray import serve
    except ModuleNotFoundError as err:
        raise ImportError(NOT_INSTALLED, name=err.name) from err
    options: dict[str, Any] = {
        "name": NAME,
        "max_ongoing_requests": _MAX_ONGOING,
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "ray_actor_options": {"num_cpus": 1},
        **(deployment or {}),
    }
    scaling = options.get("autoscaling_config")
    if isinstance(scaling, Mapping):
        options["autoscaling_config"] = {"policy": {"policy_function": f"{__name__}:busy_policy"}, **scaling}
    elif settings.workers > 1:
        options.setdefault("num_replicas", settings.workers)
    cores = options["ray_actor_options"].get("num_cpus", 1)
    settings = settings.model_copy(update=_of_replicas(settings, cores))
    return serve.deployment(**options)(serve.ingress()(Replica)).bind(settings, cores)


def _of_replicas(settings: "Settings", cores: float) -> dict[str, Any]:
    """Return the settings that replicas have to have otherwise.

    Each is in a folder of its own. What a process measures at its start, it measures alone: two replicas that came to
    different graphs or threads would differ in the last bits of their answers.
    """
    changed: dict[str, Any] = {
        name: value.absolute() for name, value in dict(settings).items() if isinstance(value, Path)
    }
    given = settings.model_fields_set
    changed |= {} if "specialise" in given else {"specialise": False}
    changed |= {} if settings.threads else {"threads": max(1, math.floor(cores))}
    return {**changed, "workers": 1}


def busy_policy(context: _Context) -> tuple[int, dict[str, Any]]:
    """Return how many replicas keep each of them busy for six tenths of its cores at most; Ray's autoscaler asks.

    Args:
        context: Ray's, with the signal that replicas record.
    """
    busy = context.aggregated_metrics.get(BUSY, {})
    wanted = math.ceil(sum(busy.values()) / _BUSY_ENOUGH) if busy else context.current_num_replicas
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return max(1, least, min(most, wanted)), {}
