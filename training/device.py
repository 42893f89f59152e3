"""The device that training runs on: its choice, the way onto it, and the arithmetic mode of a CPU.

It knows nothing of networks or recipes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import DeviceError


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means on this machine.

    Raises:
        DeviceError: another name, or `cuda` where PyTorch sees none; the message says which of the two is missing.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"--device {name}: expected auto, cpu or cuda")
    if torch.cuda.is_available():
        return torch.device("cpu" if name == "cpu" else "cuda")
    if name == "cuda":
        missing = (
            "this build of PyTorch has no CUDA; install one that has"
            if torch.version.cuda is None
            else "PyTorch sees no GPU; check that nvidia-smi lists one"
        )
        raise DeviceError(f"--device cuda: {missing}, or use --device cpu")
    return torch.device("cpu")


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Let the CPU treat subnormal numbers as 0 inside the block: saturated sigmoids make gradients that underflow."""
    was_flushed = is_flushing_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushed)


def is_flushing_denormals() -> bool:
    """Return whether this thread treats subnormal numbers as 0."""
    return bool(torch.tensor(2.0**-140) * 1 == 0)


@contextmanager
def exact_convolutions(*, deterministic: bool = False) -> Iterator[None]:
    """Let cuDNN compute in float32 throughout, by its fastest or its deterministic kernels; a CPU does so anyway.

    TensorFloat-32 would round the factors to 10 bits, and a step this small does not wait for arithmetic.
    """
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=not deterministic, deterministic=deterministic, allow_tf32=False
    ):
        yield


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
