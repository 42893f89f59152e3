"""What an export leaves in the process that made it."""

import gc
import weakref

import torch
from torch import nn

from foldserve.training.fold.onnx.exporter import export_module


def test_no_weights_stay_in_memory_after_an_export() -> None:
    """The optimizer's rules keep the last graph they looked at, which would hold a whole network until the next one."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    weights = [weakref.ref(tensor) for tensor in module.parameters()]
    model = export_module(module, (torch.zeros(2, 3, 9, 9),))
    assert len(model.graph.initializer) >= 4
    del module
    gc.collect()
    assert [ref() for ref in weights] == [None] * 4
