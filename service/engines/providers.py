"""Create a session of a model file on the device that was requested, and make sure that it runs there.

onnxruntime falls back to the CPU without an exception in four ways: a provider that the build lacks, libraries that
cannot be loaded, a session that fails to create, a run that fails. Each is closed here: the requested provider runs,
or `Device.fallback_reason` says why not. Knows nothing of buckets and golden answers.
"""

import contextlib
import ctypes
import functools
import io
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from ..artifacts.onnx_file import opened
from ..artifacts.weights_beside import WEIGHTS_NAME, large_tensors, split
from ..errors import ArtifactInvalid, ProviderUnavailable
from ..memory_limit import arena_bytes, available_memory
from .capture_lock import DEVICE

_log = logging.getLogger(__name__)

Source = Path | bytes  # a model file, or its bytes

_NOT_FOUND = "cannot open shared object file"  # how the linker ends its sentence about a library that is missing
# onnxruntime computes shapes on the CPU on purpose (GetCpuPreferredNodes, core/framework/fallback_cpu_capability.cc),
# where their few integers are needed; a CUDA graph takes that (ALLOW_CPU_FOR_SHAPES), as its sizes are fixed.
_SHAPE_OPERATORS = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Gather",
        "Identity",
        "Mul",
        "Range",
        "ReduceProd",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    }
)
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
        with DEVICE.using():
            return _cuda_session(path, device_id, tf32), Device(provider, "cuda")
    except ProviderUnavailable as err:
        if provider == "cuda":
            raise
        return fall_back(path, threads, str(err))


_said = set[str]()  # reasons that were logged


def fall_back(path: Path, threads: int, reason: str) -> tuple[onnxruntime.InferenceSession, Device]:
    """Create the session on the CPU that "auto" takes where CUDA does not run the model, and log the `reason` once.

    Raises:
        ArtifactInvalid: onnxruntime cannot read the model.
    """
    if reason not in _said:  # a hundred models without a GPU are one piece of news
        _said.add(reason)
        _log.warning("running on the CPU: %s", reason)
    return cpu_session(path, threads), Device("auto", "cpu", reason)


def does_not_run(name: str, device_id: int, reason: str) -> ProviderUnavailable:
    """Return the error of a model whose first run on CUDA failed."""
    return ProviderUnavailable(f"CUDA device {device_id} does not run {name}: {reason}; {_INSTALL_CUDA}")


def cpu_session(source: Source, threads: int) -> onnxruntime.InferenceSession:
    """Create a session on the CPU whose idle threads sleep.

    Args:
        source: the ONNX file, or the bytes of one, which the session keeps.
        threads: threads of one run.

    Raises:
        ArtifactInvalid: onnxruntime cannot read the model.
    """
    with _registering:
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
        raise ArtifactInvalid(f"{name} cannot be loaded: {first_line(err)}{_remedy(str(err))}") from err


_registering = threading.Lock()
_ARENA_DEFAULTS = -1, -1, -1  # of onnxruntime: strategy, first chunk, most dead bytes of one


@functools.cache
def _share_memory() -> None:
    """Let all sessions on the CPU take the memory of a run from one place, once for this process.

    Each would keep what its largest batch needed for itself, for ever: 14 MB a session for a network of 180 KB. Where a
    run would need more than this process may have, it fails, and the system need not end the process.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    limit = arena_bytes(available_memory())
    config = None if limit is None else onnxruntime.OrtArenaCfg(limit, *_ARENA_DEFAULTS)
    onnxruntime.create_and_register_allocator(memory, config)


def has_cuda() -> bool:
    """Return whether this build of onnxruntime knows CUDA; whether a device answers is another question."""
    return _CUDA in onnxruntime.get_available_providers()


def cuda_obstacle() -> str | None:
    """Return which library keeps the CUDA provider of this build from loading; None where all of them load."""
    printed = _preload_libraries()
    reason = _why_left_out(printed)
    return reason if "does not load" in reason else None


def _cuda_session(path: Path, device_id: int, tf32: bool) -> onnxruntime.InferenceSession:
    if not has_cuda():
        raise ProviderUnavailable(f"this onnxruntime has no CUDA provider; {_INSTALL_CUDA}")
    printed = _preload_libraries()
    options = _options()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = _create(path, options, [(_CUDA, _cuda_options(device_id, tf32))])
    except Exception as err:  # the classes depend on what failed: driver, library, memory, an unsupported node
        raise ProviderUnavailable(
            f"CUDA device {device_id} cannot run {path}: {first_line(err)}; {_INSTALL_CUDA}"
        ) from err
    if session.get_providers()[:1] != [_CUDA]:
        raise ProviderUnavailable(f"{_why_left_out(printed)}; {_INSTALL_CUDA}")
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
    """Raise when a node that computes more than a shape was assigned to anything but CUDA."""
    stray = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != _CUDA
        for node in part.get_nodes()
    } - _SHAPE_OPERATORS
    if stray:
        raise ProviderUnavailable(f"CUDA does not run {sorted(stray)} of {path}; serve it with FOLDSERVE_PROVIDER=cpu")


def _preload_libraries() -> str:
    """Load the CUDA and cuDNN libraries of the Python packages; return what onnxruntime prints, which is logged too."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    text = printed.getvalue().strip()
    if text:
        _log.info("loading CUDA libraries: %s", text)
    return text


def _why_left_out(printed: str) -> str:
    """Return why onnxruntime made a session without CUDA, about which it says nothing but in its own log.

    The linker knows which library is missing; what it says of the provider's own counts most.
    """
    provider = Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_cuda.so"
    missing = [line.partition(": ")[2] for line in printed.splitlines() if line.startswith("Failed to load ")]
    try:
        if provider.exists():
            ctypes.CDLL(str(provider))
    except OSError as err:
        if _NOT_FOUND in str(err):
            missing.insert(0, str(err))
    if missing:
        return f"onnxruntime left the CUDA provider out, since a library of it does not load ({missing[0]})"
    return "onnxruntime left the CUDA provider out and did not say why"


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what fails is raised; its line for each run that a client fails is no JSON
    return options


def _create(source: Source, options: onnxruntime.SessionOptions, providers: list[Any]) -> onnxruntime.InferenceSession:
    """Create a session that never changes its provider, neither now nor when a run fails."""
    if isinstance(source, Path) and source.is_file():  # of none onnxruntime says so
        with opened(source) as data:
            parts = split(data)
            if parts is not None:  # more than one file of protobuf may hold
                _hand_over(*parts, options)
                return _create(parts[0], options, providers)
    return onnxruntime.InferenceSession(
        source, options, providers=providers, enable_fallback=0, disabled_optimizers=_DISABLED_OPTIMIZERS
    )


def _hand_over(graph: bytes, weights: memoryview, options: onnxruntime.SessionOptions) -> None:
    """Give a session the weights of a graph; what is large as it lies there, since no message may hold 2 GiB of it."""
    tensors = list(large_tensors(graph, weights))
    values = [onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind) for _, kind, array in tensors]
    options.add_external_initializers([name for name, _, _ in tensors], values)
    options.add_external_initializers_from_files_in_memory([WEIGHTS_NAME], [weights], [len(weights)])


def _remedy(text: str) -> str:
    """Return what to do where a machine lacks something that a graph names."""
    if "Failed to construct locale" not in text:
        return ""
    return (
        "; the graph's text operators need this locale: apt-get install locales-all, or set their attribute locale to "
        "C.UTF-8, which every system has and which changes letters as en_US.UTF-8 does (C changes those of ASCII alone)"
    )


def first_line(err: Exception) -> str:
    """The first line of an exception's text, cut to 300 characters."""
    return str(err).strip().split("\n")[0][:300]
