"""Choosing a device, and the arithmetic mode that is given back."""

import pytest
import torch

from foldserve.training.device import current, flushed_denormals, resolve_device
from foldserve.training.errors import DeviceError


def test_device_names_resolve_or_say_what_to_do():
    """cpu is always there; an unknown name is refused; cuda without a GPU says how to go on."""
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="--device tpu: expected auto, cpu, cuda, or one"):
        resolve_device("tpu")
    if torch.cuda.is_available():
        assert resolve_device("auto").type == "cuda"
    else:
        assert resolve_device("auto") == torch.device("cpu")
        with pytest.raises(DeviceError, match="use --device cpu"):
            resolve_device("cuda")


def test_one_of_several_gpus_can_be_named(monkeypatch):
    """Its number is looked for before anything is loaded; it is the one that streams and graphs are made on.

    torch 2.13.0, torch/cuda/__init__.py: `Stream()`, `current_stream()` and `graph()` take the current device, which
    `torch.cuda.device(...)` sets, wherever the tensors lie.
    """
    entered = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append(None)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", Device)
    chosen = resolve_device("cuda:1")
    assert chosen == torch.device("cuda", 1)
    assert str(chosen) == "cuda:1"
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    with current(chosen):
        assert entered == [chosen]
    with current(torch.device("cpu")):
        assert entered == [chosen, None]
    with pytest.raises(DeviceError, match="this machine has 2 GPUs, counted from 0"):
        resolve_device("cuda:2")
    for name in ("cuda:", "cuda:x", "cpu:0", "cuda:-1", "auto:1"):
        with pytest.raises(DeviceError, match="expected auto, cpu, cuda, or one of several GPUs such as cuda:1"):
            resolve_device(name)


def test_denormals_are_flushed_inside_the_block_only():
    """Training treats subnormal numbers as 0; the caller's arithmetic is given back."""
    tiny = torch.tensor(2.0**-140)
    with flushed_denormals():
        assert tiny * 1 == 0
    assert tiny * 1 != 0
