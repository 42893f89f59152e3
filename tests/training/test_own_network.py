"""A network of the user's that cannot be trained or published is refused in one sentence, before it is trained."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training.config import Recipe
from foldserve.training.dataset import Interface
from foldserve.training.errors import ConfigError, NetworkError
from foldserve.training.model import build
from foldserve.training.rehearsal import rehearse
from foldserve.training.session import failures_named

THREE = Interface((3, 8, 8), 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), dtype=np.uint8)


class Wrapped(nn.Module):
    """A network that is right in evaluation mode, and `in_training` of its logits in training mode."""

    def __init__(self, in_training=lambda logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        self.in_training = in_training

    def forward(self, x):
        logits = self.body(x)
        return self.in_training(logits) if self.training else logits


class Odd(BaseException):
    """No `Exception`."""


def raising(error):
    def raise_it(*_):
        raise error

    return raise_it


def frozen(network):
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


class Twice(nn.Module):
    """One norm, used twice: of which input are its statistics?"""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        return self.out(self.norm(self.conv(self.norm(self.conv(x)))).mean((2, 3)))


class NoInput(Wrapped):
    def forward(self):
        return torch.zeros(2, 4)


def broken():
    network = Wrapped()
    with torch.no_grad():
        network.body[4].weight.fill_(float("nan"))
    return network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: frozen(Wrapped()), "nothing to train: 6 of its 6 parameters are frozen"),
        (lambda: Wrapped(lambda logits: logits.detach()), "nothing to train: 0 of its 6"),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.AdaptiveAvgPool1d(4)), "0 of its 0"),
        (lambda: Wrapped(raising(ValueError("no\nsuch"))), r"in training mode .* ValueError: no \(.*line \d+\)$"),
        (lambda: Wrapped(raising(Odd())), "in training mode .* raised Odd"),
        (lambda: Wrapped(lambda _: sys.exit(0)), r"in training mode .* called sys.exit\(0\)"),
        (lambda: Wrapped(lambda logits: (logits, logits)), "in training mode it gives tuple, expected logits"),
        (lambda: Wrapped(lambda logits: logits.sum()), r"in training mode it gives \(\), expected logits \(8, 4\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), r"it gives \(2, 5\), expected logits \(2, 4\)"),
        (NoInput, "in evaluation mode it does not take images"),
        (lambda: Wrapped().double(), "in evaluation mode it does not take images"),
        (Twice, "it could be trained, but not published: norms .*each once"),
        (broken, "it could be trained, but not published"),
    ],
)
def test_what_would_fail_later_is_found_before_the_training(make, message):
    """One line that says in which mode, what it did, and where in the user's file; the network is left as it was."""
    network = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ConfigError, match=f"--network nets:it: .*{message}") as refused:
        rehearse("nets:it", network, THREE, IMAGES)
    assert "publish" in str(refused.value) or "\n" not in str(refused.value)
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) or tensor.isnan().any() for name, tensor in before.items())


def test_a_rehearsal_changes_nothing():
    """Neither weights, statistics and mode, nor the numbers that a seed gives."""
    network, numbers = Wrapped(nn.Dropout()), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rehearse("nets:it", network, THREE, IMAGES)
    assert network.training
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_last_layer_that_starts_at_zero_is_no_obstacle():
    """Its logits are all 0 before the training, of which a fold can prove nothing; after it they are not."""
    network = Wrapped()
    nn.init.zeros_(network.body[4].weight)
    nn.init.zeros_(network.body[4].bias)
    rehearse("nets:it", network, THREE, IMAGES)
    assert not network.body[4].weight.any()


def exits():
    sys.exit(0)


def odd():
    raise Odd("here")


def a_class():
    return nn.Linear


async def unawaited():
    return nn.Linear(1, 1)


def silent():
    raise ValueError


def needs(width):
    return nn.Linear(width, 4)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (exits, r"called sys.exit\(0\)"),
        (odd, "raised Odd: here"),
        (a_class, "returned an object of class type; expected a torch.nn.Module"),
        (unawaited, "returned an object of class coroutine; expected a torch.nn.Module"),
        (silent, "raised ValueError; expected a network"),
        (needs, "it is told image_shape, classes or num_classes, and in_channels"),
    ],
)
def test_a_factory_that_fails_is_one_sentence(factory, message):
    """Whatever it does, with advice that belongs to this command: `train` has no --factory-args."""
    with pytest.raises(ConfigError, match=message) as refused:
        build(Recipe(network=f"{__name__}:{factory.__name__}"), THREE)
    assert "factory-args" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_module_that_ends_the_process_is_one_sentence(tmp_path, monkeypatch):
    """A script that was taken for a module runs to its end when it is imported."""
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit('done')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"module 'a_script' called sys.exit\('done'\) when it was imported"):
        build(Recipe(network="a_script:net"), THREE)


def lazy(classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(classes))


def test_layers_that_take_their_size_from_the_input_have_it():
    """The seed decides their weights, and a network that takes the weights of another is whole as well."""
    recipe = Recipe(network=f"{__name__}:lazy", seed=3)
    one, other = build(recipe, THREE), build(recipe, THREE)
    assert one[0].weight.shape == (4, 3, 3, 3)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    rehearse(recipe.network, one, THREE, IMAGES)


def test_what_a_network_does_while_it_is_trained_is_named():
    """With where in the user's code; sys.exit does not end the process as if all was done; Ctrl-C stays Ctrl-C."""
    recipe = Recipe(network=f"{__name__}:lazy", batch_size=64)
    for error, message in (
        (ValueError("boom"), r"raised ValueError: boom \(.*test_own_network.py, line \d+\)"),
        (SystemExit(0), r"called sys.exit\(0\)"),
        (Odd(), "raised Odd"),
        (MemoryError(), "not enough memory for a step of 64 rows; .*--batch-size"),
    ):
        with pytest.raises(NetworkError, match=message), failures_named(recipe):
            raising(error)()
    with pytest.raises(KeyboardInterrupt), failures_named(recipe):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), failures_named(Recipe()):  # ours: a mistake to report, with its traceback
        raise ZeroDivisionError
