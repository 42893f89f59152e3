"""`foldserve doctor`: what a service with the same flags would find here, and what keeps it from serving.

Each finding is a sentence and what it rests on. Nothing is started, changed or sent; models are proved as at a start.
"""

import ctypes
import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime

from foldserve import __version__
from foldserve.exit_codes import DONE, FAILED
from foldserve.json_document import FLAG, fill
from foldserve.patience import shown

from .artifacts.repository import Repository
from .cores import available_cores, visible_cores
from .engines.load import load_engine
from .engines.providers import cuda_obstacle, has_cuda
from .errors import ServiceError
from .floors import below_floors
from .keys import ADMIN, read_keys
from .live.declared import Declared
from .memory_limit import available_memory, fit_to_memory
from .metrics import Metrics
from .settings import MEBIBYTE, Settings
from .transport.descriptors import allowed_connections, raise_limit
from .transport.listener import bind

_DESCRIPTION = (
    "Say what a service with these flags would find here, and what keeps it from serving. --quick does not run the "
    "models; --json prints one JSON document."
)
OK, WARNING, BROKEN = "ok", "warning", "failed"
_DRIVER = Path("/proc/driver/nvidia/version")
_SHARED = Path("/dev/shm")  # noqa: S108 - it is looked at, and nothing is written
_LEAST_SHARED_BYTES = 4 * MEBIBYTE


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        name: of the thing.
        state: "ok", "warning" where the service would run worse than it could, "failed" where it would not serve.
        says: a sentence.
        details: what it rests on, as JSON knows it.
    """

    name: str
    state: str
    says: str
    details: dict[str, Any] = field(default_factory=dict)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log of the service still inside the block: what it would say is a finding."""
    log = logging.getLogger("foldserve")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def main(argv: Sequence[str]) -> int:
    """Print what is found; returns 1 where something keeps a service from serving here."""
    words = [word for word in argv if word not in (FLAG, "--quick")]
    settings = Settings.from_command_line(words, program="foldserve doctor", description=_DESCRIPTION)
    findings: list[Finding] = []
    with _quiet(), shown(lambda: f"examining, after {findings[-1].name}" if findings else "examining"):
        for finding in examine(settings, proves="--quick" not in argv):
            findings.append(finding)
    is_well = all(finding.state != BROKEN for finding in findings)
    fill(findings=[asdict(finding) for finding in findings])
    if FLAG not in argv:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.state:8} {finding.name:{width}}  {finding.says}")
    return DONE if is_well else FAILED


def examine(settings: Settings, *, proves: bool = True) -> Iterator[Finding]:
    """Yield what is found, one thing after the other; what cannot be examined is a finding too.

    Args:
        settings: as those of the service.
        proves: whether each model gives its golden answers here; else its files are compared with their digests.
    """
    looks: list[tuple[str, Callable[[Settings], Finding]]] = [
        ("versions", _versions), ("onnxruntime", _onnxruntime), ("devices", _devices), ("cores", _cores),
        ("memory", _memory), ("descriptors", _descriptors), ("shared memory", _shared_memory), ("ports", _ports),
        ("keys", _keys), ("state folder", _state), ("declared", _declared),
    ]  # fmt: skip
    for name, look in looks:
        try:
            yield look(settings)
        except Exception as err:
            yield Finding(name, BROKEN, f"could not be examined: {type(err).__name__}: {err}")
    yield from _models(settings, proves=proves)


def _versions(_: Settings) -> Finding:
    details = {"foldserve": __version__, "python": platform.python_version(), "system": platform.platform()}
    if (reason := below_floors()) is not None:
        return Finding("versions", BROKEN, reason, details)
    return Finding("versions", OK, f"foldserve {__version__}, Python {details['python']}", details)


def _onnxruntime(_: Settings) -> Finding:
    installed = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    providers = onnxruntime.get_available_providers()
    details = {"installed": installed, "providers": providers}
    if len(installed) == 2:
        says = (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, install one"
        )
        return Finding("onnxruntime", BROKEN, says, details)
    names = ", ".join(f"{name} {version}" for name, version in installed.items()) or onnxruntime.__version__
    return Finding("onnxruntime", OK, f"{names} with {', '.join(providers)}", details)


def _devices(settings: Settings) -> Finding:
    driver = _DRIVER.read_text().splitlines()[0] if _DRIVER.exists() else None
    details: dict[str, Any] = {"driver": driver, "libcuda": _loads("libcuda.so.1"), "execution_devices": _ep_devices()}
    obstacle = cuda_obstacle() if has_cuda() else "this onnxruntime has no CUDA provider: pip install 'foldserve[gpu]'"
    if obstacle is None and not (driver and details["libcuda"]):
        obstacle = "there is no driver of NVIDIA, or its libcuda.so.1 does not load"
    details["why_not_cuda"] = obstacle
    if obstacle is None:
        return Finding("devices", OK, f"CUDA, {driver}", details)
    if settings.provider == "cuda":
        return Finding("devices", BROKEN, f"--provider cuda is asked for, and {obstacle}", details)
    state = WARNING if driver and settings.provider == "auto" else OK
    return Finding("devices", state, f"the CPU; not CUDA, since {obstacle}", details)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _ep_devices() -> list[dict[str, str]]:
    """What onnxruntime itself says it could run on."""
    found = onnxruntime.get_ep_devices()
    return [{"provider": one.ep_name, "type": one.device.type.name, "vendor": one.device.vendor} for one in found]


def _cores(settings: Settings) -> Finding:
    cores, visible = available_cores(), visible_cores()
    details = {"available": cores, "visible": visible, "workers": settings.workers}
    says = f"{cores} of {visible} that are visible, by the CPU quota" if cores < visible else f"{cores}"
    if settings.workers > cores:
        return Finding("cores", WARNING, f"{says}; {settings.workers} workers would share them", details)
    return Finding("cores", OK, says, details)


def _memory(settings: Settings) -> Finding:
    memory = available_memory()
    fitted = fit_to_memory(settings, memory)
    details = {"bytes": memory, "max_buffered_bytes": fitted.max_buffered_bytes}
    if memory is None:
        return Finding("memory", WARNING, "how much there is could not be read", details)
    says = f"{memory // MEBIBYTE} MiB"
    if fitted != settings:
        buffered = fitted.max_buffered_bytes // MEBIBYTE
        return Finding("memory", WARNING, f"{says}; bodies are bound to {buffered} MiB a worker", details)
    return Finding("memory", OK, says, details)


def _descriptors(settings: Settings) -> Finding:
    limit = raise_limit()
    allowed = allowed_connections(limit)
    details = {"limit": limit, "connections": min(allowed, settings.max_connections)}
    if allowed < settings.max_connections:
        says = f"{limit}: a worker takes {allowed} connections, not {settings.max_connections}; raise ulimit -n"
        return Finding("descriptors", WARNING, says, details)
    return Finding("descriptors", OK, f"{limit}", details)


def _shared_memory(settings: Settings) -> Finding:
    if not _SHARED.is_dir():
        return Finding("shared memory", WARNING, f"there is no {_SHARED}: workers share files on a disk", {"free": 0})
    status = os.statvfs(_SHARED)
    free = status.f_bavail * status.f_frsize
    if settings.workers > 1 and free < _LEAST_SHARED_BYTES:
        says = f"{free >> 10} KiB are free in {_SHARED}, expected 4 MiB: workers share files on a disk"
        return Finding("shared memory", WARNING, says, {"free": free})
    return Finding("shared memory", OK, f"{free // MEBIBYTE} MiB are free in {_SHARED}", {"free": free})


def _ports(settings: Settings) -> Finding:
    wanted = {"--port": settings.port, "--grpc-port": settings.grpc_port}
    for flag, port in wanted.items():
        if port is None:
            continue
        try:
            bind(settings.host, port, flag).close()
        except OSError as err:
            return Finding("ports", BROKEN, str(err), wanted)
    if settings.grpc_port is not None:
        try:
            import grpc  # noqa: F401 - whether it can be
        except ImportError as err:
            return Finding("ports", BROKEN, f"--grpc-port needs the extra grpc: pip install 'foldserve[grpc]' ({err})")
    free = ", ".join(str(port) for port in wanted.values() if port is not None)
    return Finding("ports", OK, f"{settings.host}: {free} can be had", wanted)


def _keys(settings: Settings) -> Finding:
    if settings.keys_file is None:
        return Finding("keys", OK, "no keys file: open, but for calls that change models")
    try:
        keys = read_keys(settings.keys_file)
    except (ServiceError, OSError) as err:
        return Finding("keys", BROKEN, str(err))
    admins = sum(ADMIN in key.scopes for key in keys)
    says = f"{len(keys)} in {settings.keys_file}, {admins} of them with the scope admin"
    return Finding("keys", OK if keys else WARNING, says, {"keys": len(keys), "admin": admins})


def _state(settings: Settings) -> Finding:
    folder = settings.state_dir
    if folder is None:
        return Finding("state folder", OK, "none: latest is the newest version, and calls that decide are 503")
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(place, os.W_OK):
        return Finding("state folder", WARNING, f"{place} cannot be written: calls that change models are 503")
    return Finding("state folder", OK, f"{folder} can be written")


def _declared(settings: Settings) -> Finding:
    declared = Declared(settings.pin, settings.label, settings.deployment_file, Metrics())
    try:
        declared.start()
    except ServiceError as err:
        return Finding("declared", BROKEN, str(err))
    details = {name: dict(labels) for name, labels in declared.models.items()}
    return Finding("declared", OK, f"{sum(map(len, details.values()))} pins and labels", details)


def _models(settings: Settings, *, proves: bool) -> Iterator[Finding]:
    """Each version with its verdict; the service serves as long as one of them can be served."""
    repository = Repository(
        settings.models_dir, allow_unverified=settings.allow_unverified, model_name=settings.model_name
    )
    try:
        models = repository.models()
    except ServiceError as err:
        yield Finding("models", BROKEN, str(err))
        return
    verdicts = [_verdict(repository, settings, name, version, proves) for name in models for version in models[name]]
    yield from verdicts
    good = sum(verdict.state == OK for verdict in verdicts)
    state = BROKEN if not good else WARNING if good < len(verdicts) else OK
    yield Finding("models", state, f"{good} of {len(verdicts)} versions in {settings.models_dir} can be served")


def _verdict(repository: Repository, settings: Settings, name: str, version: int, proves: bool) -> Finding:
    place = f"model {name}/{version}"
    try:
        artifact = repository.open(name, version)
        details = {"sha256": artifact.sha256, "verified": artifact.is_verified}
        if not proves:
            said = "its files are what its manifest says" if artifact.is_verified else "there, without a manifest"
            return Finding(place, OK, said, details)
        buckets, free = settings.buckets[:1], settings.max_free_axis
        provider = settings.provider
        engine = load_engine(artifact, provider=provider, buckets=buckets, max_free_axis=free, is_autotuned=False)
    except ServiceError as err:
        return Finding(place, WARNING, str(err))
    says = "gives its golden answers" if artifact.is_verified else "runs; its answers are not verified"
    return Finding(place, OK, f"{says} on {engine.device.provider}", details)
