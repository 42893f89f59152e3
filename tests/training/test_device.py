"""Choosing a device, and the arithmetic mode that is given back."""

import pytest
import torch

from foldserve.training.device import flushed_denormals, resolve_device
from foldserve.training.errors import DeviceError


def test_device_names_resolve_or_say_what_to_do():
    """cpu is always there; an unknown name is refused; cuda without a GPU says how to go on."""
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="--device tpu: expected auto, cpu or cuda"):
        resolve_device("tpu")
    if torch.cuda.is_available():
        assert resolve_device("auto").type == "cuda"
    else:
        assert resolve_device("auto") == torch.device("cpu")
        with pytest.raises(DeviceError, match="use --device cpu"):
            resolve_device("cuda")


def test_denormals_are_flushed_inside_the_block_only():
    """Training treats subnormal numbers as 0; the caller's arithmetic is given back."""
    tiny = torch.tensor(2.0**-140)
    with flushed_denormals():
        assert tiny * 1 == 0
    assert tiny * 1 != 0
