"""Create a session of a model file on the device that was requested, and make sure that it runs there.

onnxruntime falls back to the CPU without an exception in four ways: a provider that the build lacks, libraries that
cannot be loaded, a session that fails to create, a run that fails. Each is closed here: the requested provider runs,
or `Device.fallback_reason` says why not. Knows nothing of buckets and golden answers.
"""

import contextlib
import functools
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from ..errors import ArtifactInvalid, ProviderUnavailable

_log = logging.getLogger(__name__)

Source = Path | bytes  # a model file, or its bytes

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_INSTALL_CUDA = 'install "foldserve[gpu]" in place of "foldserve[cpu]" on a host with NVIDIA driver 580 or newer'
# Folding is proven at export; this pass of onnxruntime folds once more and has changed answers when it did.
_DISABLED_OPTIMIZERS = ["MatMul_BatchNormalization_Fusion"]


@dataclass(frozen=True, slots=True)
class Device:
    """The provider requested ("auto", "cuda", "cpu"), the one that runs ("cuda", "cpu"), and why they differ."""

    requested: str
    provider: str
    fallback_reason: str | None = None


def open_session(
    path: Path, provider: str, *, threads: int = 1, device_id: int = 0, tf32: bool = False
) -> tuple[onnxruntime.InferenceSession, Device]:
    """Create the session of `path` on the requested device.

    Args:
        path: the ONNX file; loaded from its path, since a session made from bytes keeps them for ever.
        provider: "cuda" or "cpu", or "auto" for CUDA where it can be had.
        threads: threads of one run on the CPU.
        device_id: which GPU.
        tf32: let CUDA round products to TF32.

    Raises:
        ProviderUnavailable: "cuda" is required and cannot be had, with what to install.
        ArtifactInvalid: onnxruntime cannot read the model.
    """
    if provider == "cpu":
        return cpu_session(path, threads), Device("cpu", "cpu")
    try:
        return _cuda_session(path, device_id, tf32), Device(provider, "cuda")
    except ProviderUnavailable as err:
        if provider == "cuda":
            raise
        _log.warning("running on the CPU: %s", err)
        return cpu_session(path, threads), Device(provider, "cpu", str(err))


def cpu_session(source: Source, threads: int) -> onnxruntime.InferenceSession:
    """Create a session on the CPU whose idle threads sleep.

    Args:
        source: the ONNX file, or the bytes of one, which the session keeps.
        threads: threads of one run.

    Raises:
        ArtifactInvalid: onnxruntime cannot read the model.
    """
    _share_memory()
    options = _options()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Spinning threads take the cores from the event loop and burn them while no request is there.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return _create(source, options, [_CPU])
    except Exception as err:  # onnxruntime raises classes of its own, UnicodeDecodeError and RuntimeError alike
        name = source if isinstance(source, Path) else "a rewritten graph"
        raise ArtifactInvalid(f"{name} cannot be loaded: {first_line(err)}") from err


@functools.cache
def _share_memory() -> None:
    """Let all sessions on the CPU take the memory of a run from one place, once for this process.

    Each would keep what its largest batch needed for itself, for ever: 14 MB a session for a network of 180 KB.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, None)


def has_cuda() -> bool:
    """Return whether this build of onnxruntime knows CUDA; whether a device answers is another question."""
    return _CUDA in onnxruntime.get_available_providers()


def _cuda_session(path: Path, device_id: int, tf32: bool) -> onnxruntime.InferenceSession:
    if not has_cuda():
        raise ProviderUnavailable(f"this onnxruntime has no CUDA provider; {_INSTALL_CUDA}")
    _preload_libraries()
    options = _options()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = _create(path, options, [(_CUDA, _cuda_options(device_id, tf32))])
    except Exception as err:  # the classes depend on what failed: driver, library, memory, an unsupported node
        raise ProviderUnavailable(
            f"CUDA device {device_id} cannot run {path}: {first_line(err)}; {_INSTALL_CUDA}"
        ) from err
    if session.get_providers()[:1] != [_CUDA]:
        raise ProviderUnavailable(
            f"onnxruntime left the CUDA provider out, its libraries did not load; {_INSTALL_CUDA}"
        )
    _refuse_stray_nodes(session, path)
    return session


def _cuda_options(device_id: int, tf32: bool) -> dict[str, str]:
    return {
        "device_id": str(device_id),
        "use_tf32": str(int(tf32)),
        "enable_cuda_graph": "1",
        # EXHAUSTIVE picks by timing, so that two starts can give two answers; HEURISTIC looks at the shape alone.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def _refuse_stray_nodes(session: onnxruntime.InferenceSession, path: Path) -> None:
    """Raise when a node was assigned to anything but CUDA."""
    stray = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != _CUDA
        for node in part.get_nodes()
    }
    if stray:
        raise ProviderUnavailable(f"CUDA does not run {sorted(stray)} of {path}; serve it with FOLDSERVE_PROVIDER=cpu")


def _preload_libraries() -> None:
    """Load the CUDA and cuDNN libraries of the Python packages; what onnxruntime prints goes to the log."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    if printed.getvalue():
        _log.info("loading CUDA libraries: %s", printed.getvalue().strip())


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what fails is raised; its line for each run that a client fails is no JSON
    return options


def _create(source: Source, options: onnxruntime.SessionOptions, providers: list[Any]) -> onnxruntime.InferenceSession:
    """Create a session that never changes its provider, neither now nor when a run fails."""
    return onnxruntime.InferenceSession(
        source, options, providers=providers, enable_fallback=0, disabled_optimizers=_DISABLED_OPTIMIZERS
    )


def first_line(err: Exception) -> str:
    """The first line of an exception's text, cut to 300 characters."""
    return str(err).strip().split("\n")[0][:300]
