"""The device that training runs on: its choice, the way onto it, and the arithmetic mode of a CPU.

It knows nothing of networks or recipes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from .errors import DeviceError


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:1` means on this machine.

    Raises:
        DeviceError: another name, `cuda` where PyTorch sees none (the message says which of the two is missing), or a
            number that no GPU has.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise DeviceError(f"--device {name}: expected auto, cpu, cuda, or one of several GPUs such as cuda:1")
    kind, _, number = name.partition(":")
    if torch.cuda.is_available():
        if number and int(number) >= torch.cuda.device_count():
            raise DeviceError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
        return torch.device("cpu" if kind == "cpu" else name if number else "cuda")
    if kind == "cuda":
        missing = (
            "this build of PyTorch has no CUDA; install one that has"
            if torch.version.cuda is None
            else "PyTorch sees no GPU; check that nvidia-smi lists one"
        )
        raise DeviceError(f"--device {name}: {missing}, or use --device cpu")
    return torch.device("cpu")


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make `device` PyTorch's current one inside the block: streams and graphs that name no GPU are made there."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


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
