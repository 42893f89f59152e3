"""Captured steps: equal to eager ones where there is a GPU; what surrounds the capture is tested on any machine."""

import contextlib
import copy

import pytest
import torch

from foldserve.training import capture as capture_module
from foldserve.training.capture import unchanged
from foldserve.training.config import Recipe
from foldserve.training.epoch import EpochLoop
from foldserve.training.fit import fit
from foldserve.training.model import build
from foldserve.training.schedule import optimizer_for

RECIPE = Recipe(epochs=4, batch_size=64, learning_rate=0.5, seed=3)  # 6 steps an epoch, one of them with 32 rows


def optimizers(model):
    return {
        "sgd": torch.optim.SGD(model.parameters(), lr=0.5),
        "momentum": torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        "adam": torch.optim.Adam(model.parameters(), lr=0.01),
        "muon": optimizer_for(model, Recipe(optimizer="muon", learning_rate=0.1), torch.device("cpu")),
    }


def epochs_of(model, optimizer, data, device):
    return EpochLoop(
        model,
        optimizer,
        torch.as_tensor(data.train_images).to(device),
        torch.as_tensor(data.train_labels).to(device),
        RECIPE,
    )


@pytest.mark.parametrize("norm", ["torch", "scratch"])
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "muon"])
def test_rehearsals_leave_no_trace_on_the_training(made_up, kind, norm):
    """A training with rehearsed steps before it is, bit for bit, the one without: weights, statistics, counters."""
    recipe = Recipe(**{**RECIPE.as_dict(), "norm": norm})
    plain, rehearsed = build(recipe), build(recipe)
    first, second = optimizers(plain)[kind], optimizers(rehearsed)[kind]
    with unchanged(rehearsed, second):
        epochs_of(rehearsed, second, made_up, "cpu").run(2)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), rehearsed.state_dict().values(), strict=True)
    )
    for model, optimizer in ((plain, first), (rehearsed, second)):
        epochs_of(model, optimizer, made_up, "cpu").run(1)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), rehearsed.state_dict().values(), strict=True)
    )


def test_state_of_a_training_under_way_is_put_back_in_place(made_up):
    """The optimizer's averages return to their values in the very tensors that a graph would hold."""
    model = build(RECIPE)
    optimizer = optimizers(model)["adam"]
    epochs = epochs_of(model, optimizer, made_up, "cpu")
    epochs.run(1)
    averages = [state["exp_avg"] for state in optimizer.state.values()]
    before = copy.deepcopy(averages)
    with unchanged(model, optimizer):
        epochs.run(2)
        assert not torch.equal(averages[0], before[0])
    assert all(
        now is then for now, then in zip([s["exp_avg"] for s in optimizer.state.values()], averages, strict=True)
    )
    assert all(torch.equal(now, then) for now, then in zip(averages, before, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "scratch"},
        {"norm": "none", "statistics": "none"},
        {"schedule": "linear", "augment": "mirror"},
        {"schedule": "linear", "optimizer": "muon", "learning_rate": 0.1},
        {"schedule": "linear", "optimizer": "adam", "learning_rate": 0.01},
    ],
)
def test_captured_steps_equal_eager_ones(made_up, changes):
    """24 steps, tails among them, give the same parameters, statistics, losses and counters."""
    recipe = Recipe(**{**RECIPE.as_dict(), **changes})
    eager, captured = build(recipe), build(recipe)
    device = torch.device("cuda")
    expected = fit(eager, made_up, recipe, device, captures=False)
    found = fit(captured, made_up, recipe, device)
    for name, value in eager.state_dict().items():
        assert (captured.state_dict()[name] - value).abs().max() <= 1e-5 * value.abs().max(), name
    assert [r.loss for r in found.epochs] == pytest.approx([r.loss for r in expected.epochs], rel=1e-5)


def test_the_rehearsals_wait_for_the_copies(monkeypatch):
    """The stream of the rehearsals waits for the current one after the state was copied there, and the current one
    waits back before anything is put back.

    The fakes copy torch/cuda/streams.py (wait_stream: later work of this stream runs after what the other has been
    given so far), torch/cuda/__init__.py (stream) and torch/cuda/graphs.py (graph).
    """
    calls = []

    class Stream:
        def __init__(self, name="aside"):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def noted(name):
        calls.append(f"enter {name}")
        yield
        calls.append(f"leave {name}")

    current = Stream("current")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: noted(stream.name))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: noted("graph"))
    tensors = capture_module._tensors
    monkeypatch.setattr(capture_module, "_tensors", lambda *given: calls.append("copies") or tensors(*given))
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    capture_module.capture(lambda: calls.append("step"), lambda: calls.append("rewind"), model, optimizer)
    rehearsals = ["rewind", "step"] * capture_module.REHEARSALS
    assert calls == [
        *("copies", "aside waits for current", "enter aside", *rehearsals, "leave aside", "current waits for aside"),
        *("rewind", "enter graph", "step", "leave graph", "copies", "rewind"),
    ]
