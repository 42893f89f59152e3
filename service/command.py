"""`foldserve serve`: reads the settings, takes the port, and starts uvicorn on one or several processes.

Whatever keeps the service from starting is one line and an exit code other than 0: `USAGE` for a setting that cannot be
used or a package that is not installed, `START_FAILED` for everything else.
"""

import functools
import gc
import importlib.util
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foldserve.exit_codes import DONE, START_FAILED, USAGE

from .cores import available_cores
from .errors import ProviderUnavailable, ServiceError
from .factory import PROTOCOL, begin_loading, build_app, import_libraries, import_uvicorn
from .keys import read_keys
from .logs import configure_logging, log_config
from .memory_limit import available_memory, fit_to_memory
from .processes.abandoned import end_if_abandoned
from .processes.workers import Workers
from .settings import Settings
from .transport.descriptors import fit_to_descriptors
from .transport.listener import bind

if TYPE_CHECKING:
    import uvicorn

    from .live.live_models import LiveModels

logger = logging.getLogger("foldserve")

# Packages that must be installed, each with the distribution that installs it.
_NEEDED = {"uvloop": "uvloop", "httptools": "httptools", "onnxruntime": "'foldserve[cpu]'"}

_FEW_FILES = "this process may open few files: raise ulimit -n"
_LITTLE_MEMORY = "there is little memory: allow more"
_LOWERED = {
    "max_connections": _FEW_FILES,
    "grpc_max_connections": _FEW_FILES,
    "max_buffered_bytes": _LITTLE_MEMORY,
    "max_body_bytes": _LITTLE_MEMORY,
    "max_decode_bytes": _LITTLE_MEMORY,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends the process; returns the exit code."""
    settings = Settings.from_command_line(argv)
    for package, distribution in _NEEDED.items():
        if importlib.util.find_spec(package) is None:
            sys.stderr.write(f"foldserve serve: {package} is not installed: pip install {distribution}\n")
            return USAGE
    if settings.log_file is not None:
        try:
            settings.log_file.open("a").close()
        except OSError as err:
            reason = err.strerror or err
            sys.stderr.write(f"foldserve serve: log file {settings.log_file} cannot be written: {reason}\n")
            return START_FAILED
    try:
        wanted, settings = settings, fit_to_descriptors(settings)
    except OSError as err:
        sys.stderr.write(f"foldserve serve: {err}\n")
        return START_FAILED
    configure_logging(settings.log_level, settings.log_file)
    logging.captureWarnings(True)  # which would go to standard error as lines that are no events
    if settings.on == "ray":
        return _serve_on_ray(settings)
    settings = fit_to_memory(settings, available_memory())
    for name, reason in _LOWERED.items():
        before, now, flag = getattr(wanted, name), getattr(settings, name), f"--{name.replace('_', '-')}"
        if now < before:
            logger.warning("%s is lowered from %d to %d, since %s", flag, before, now, reason)
    try:
        if settings.keys_file is not None:
            read_keys(settings.keys_file)  # a damaged file is reported once, not by each worker
        if settings.workers > 1:
            check_device(settings)
        listener = bind(settings.host, settings.port)
        grpc_listener = (
            bind(settings.host, settings.grpc_port, "--grpc-port") if settings.grpc_port is not None else None
        )
    except (OSError, ServiceError) as err:
        logger.error("%s", err)
        return START_FAILED
    fields = {"address": address(listener), "workers": settings.workers, "models_dir": str(settings.models_dir)}
    logger.info("starting", extra=fields)
    if settings.allow_unverified:
        logger.warning("models without a manifest are served too; their answers are not verified")
    with listener:
        run = run_workers if settings.workers > 1 else run_alone
        code = run(settings, listener, grpc_listener)
    end_if_abandoned(code)
    return code


def _serve_on_ray(settings: Settings) -> int:
    """Have Ray's replicas serve in place of processes of our own; Ray is imported there and nowhere else."""
    try:
        bind(settings.host, settings.port).close()  # or HAProxy would end without a word
    except OSError as err:
        logger.error("%s", err)
        return START_FAILED
    from foldserve.ray import command as on_ray

    return on_ray.run(settings)


def check_device(settings: Settings) -> None:
    """Warn where workers have to share cores; a GPU has one owner, since every process would take its own memory.

    Raises:
        ProviderUnavailable: the workers would run on a GPU.
    """
    cores = available_cores()
    if settings.workers > cores:
        logger.warning("%d workers share %d cores: expect slower answers, not more", settings.workers, cores)
    if settings.provider == "cuda" or (settings.provider == "auto" and _is_installed("onnxruntime-gpu")):
        raise ProviderUnavailable(
            f"{settings.workers} workers would share a GPU, which one process should own; "
            "start one worker on it, or set --provider cpu"
        )


def _is_installed(distribution: str) -> bool:
    from importlib import metadata  # takes long, and few need it

    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def server_config(
    settings: Settings,
    workers: Workers | None = None,
    grpc_listener: socket.socket | None = None,
    models: "LiveModels | None" = None,
) -> "uvicorn.Config":
    """Return uvicorn's configuration; it configures logging once more, here and in every worker."""
    import uvicorn

    return uvicorn.Config(
        functools.partial(build_app, settings, workers, grpc_listener, models),
        factory=True,
        loop="uvloop",
        http=PROTOCOL,  # on httptools, which refuses a request with two lengths; h11 lets it through
        ws="none",
        lifespan="on",
        workers=settings.workers,
        log_config=log_config(settings.log_level, file=settings.log_file),
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),  # without it a stuck upload blocks the end
    )


def address(listener: socket.socket) -> str:
    """Return the URL that reaches a socket from this machine."""
    host, port = listener.getsockname()[:2]
    if listener.family == socket.AF_INET6:
        host = f"[{host}]"
    return f"http://{host}:{port}"


def run_alone(settings: Settings, listener: socket.socket, grpc_listener: socket.socket | None = None) -> int:
    """Serve in this process; SIGTERM and SIGINT drain it, a second one ends it at once, and it ends with 0."""
    models = None
    try:
        models = begin_loading(settings)
        import_uvicorn()
        from .processes.server import Server  # imported while models are loaded, as all that follows

        server = Server(server_config(settings, None, grpc_listener, models), settings.leave_seconds)
        # uvicorn drains and then raises the signal again for the handler before its own, which would exit once more.
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listener])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else START_FAILED
    except KeyboardInterrupt:  # the same for SIGINT
        return DONE
    finally:
        if models is not None:
            models.reconciler.give_up()
    return DONE


def run_workers(settings: Settings, listener: socket.socket, grpc_listener: socket.socket | None = None) -> int:
    """Serve in several processes, each of which is replaced when it ends."""
    import_libraries()
    from .processes.supervisor import Supervisor

    gc.freeze()  # workers share the pages that none of them writes to
    gc.enable()
    try:
        workers = Workers.create()
    except OSError as err:
        logger.error("no folder can be made for what workers share: %s", err)
        return START_FAILED
    try:
        config = server_config(settings, workers, grpc_listener)
        supervisor = Supervisor(config, listener, workers, settings.drain_seconds, settings.leave_seconds)
        supervisor.run()
    finally:
        workers.remove()
    return START_FAILED if supervisor.has_failed else DONE
