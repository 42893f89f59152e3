"""PyTorch's compiler as a training step meets it; marked slow, since it starts a C++ compiler."""

import copy

import pytest
import torch
from torch import nn

from foldserve.training.compiled import compiled
from foldserve.training.errors import DeviceError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning"),  # by the compiler when imported
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sigmoid()).train()


def test_a_compiled_step_is_the_networks_own():
    """Outputs, gradients and running statistics agree, and they are left in the network itself."""
    ours, plain = network(), network()
    x = torch.rand(8, 4)
    found, expected = compiled(ours)(x), plain(x)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours[1].running_mean, plain[1].running_mean)
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_a_machine_without_a_compiler_is_one_sentence(monkeypatch, tmp_path):
    """The flag, what was missing and what to do; the network has taken no step."""
    import torch._inductor.config as settings

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # or it would find what was compiled before
    monkeypatch.setattr(settings.cpp, "cxx", ("no-such-compiler",))
    ours = network()
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(DeviceError, match=r"--compile: .*no-such-compiler.*leave --compile out") as refused:
        compiled(ours)(torch.rand(8, 4))
    assert "\n" not in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
