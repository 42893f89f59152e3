"""The check of a GPU, as far as it can be tried without one: its verdicts, its refusals, and where it measures."""

import contextlib
import ctypes
import types

import pytest
import torch

from benchmarks.training import gpu_check
from foldserve.training.epoch import EpochLoop
from foldserve.training.fit import fit
from tests.training.conftest import made_up_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset():
    from foldserve.training.dataset import FashionMNIST

    return FashionMNIST(*made_up_images(9 * 256 + 96, 1), *made_up_images(100, 2), source="made up")


def test_equal_trainings_pass_and_one_that_captured_wrongly_does_not(dataset, monkeypatch):
    """On a CPU nothing is captured: the same bits. A captured step that stays at its first rate is another training."""
    report = gpu_check.equality(dataset, "torch", CPU)
    assert (report["largest_relative_difference"], report["passed"], report["same_as_repeated"]) == (0.0, True, True)
    assert 1e-6 < report["of_one_unit_in_the_last_place"] < 100
    assert gpu_check.equality(dataset, "torch", CPU, epochs=1)["limit"] < 1e-3

    def never_moves(model, *arguments, captures, **options):
        return (
            fit(model, *arguments, captures=captures, **options)
            if not captures
            else torch.nn.init.zeros_(model.conv1.weight.data)
        )

    monkeypatch.setattr(gpu_check, "fit", never_moves)
    assert not gpu_check.equality(dataset, "none", CPU)["passed"]


@pytest.mark.parametrize(
    ("again", "unit", "captured", "passed"),
    [
        (0.0, 1e-4, 0.0, True),
        (0.0, 1e-4, 5e-5, True),  # 1e-5 alone would be red on a healthy GPU
        (2e-3, 1e-4, 1e-3, True),
        (0.0, 1.4e-5, 1.9e-5, True),  # hand-written norms on a CPU, oneDNN's order of sums against PyTorch's
        (0.0, 1e-4, 2e-3, False),
        (0.0, 1e-4, float("inf"), False),
    ],
)
def test_a_difference_is_held_to_what_rounding_grows_to(again, unit, captured, passed):
    """Eager steps that are repeated, and eager steps one unit apart, say how far two right trainings may be."""
    assert gpu_check.judged(again, unit, captured)["passed"] is passed


def test_what_is_not_a_number_is_infinitely_far():
    """A NaN is no small difference."""
    one, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.constant_(other.weight, float("nan"))
    assert gpu_check.difference(other, one) == float("inf")


def test_what_is_timed_runs_in_the_block_that_training_runs_in(dataset, monkeypatch):
    """Every epoch of the timing is inside `exact_convolutions`."""
    inside = []

    @contextlib.contextmanager
    def noted():
        inside.append(True)
        yield
        inside.pop()

    def run(loop, number, on_step=None):
        assert inside
        return 0.0, 0.0, 1.0

    monkeypatch.setattr(gpu_check, "exact_convolutions", noted)
    monkeypatch.setattr(EpochLoop, "run", run)
    monkeypatch.setattr(torch.optim, "SGD", lambda parameters, lr, fused: None)
    assert len(gpu_check.replays(dataset, CPU)["epoch_seconds"]) == 10


def driver(count, status=0):
    """Return a fake of libcuda.so.1: cuDeviceGetCount(int*) of cuda.h writes the count and returns CUDA_SUCCESS, 0."""

    def device_count(pointer):
        pointer._obj.value = count
        return status

    return types.SimpleNamespace(cuInit=lambda flags: status, cuDeviceGetCount=device_count)


@pytest.mark.parametrize(("fake", "expected"), [(driver(2), 2), (driver(0), 0), (driver(1, status=100), 0)])
def test_the_driver_says_how_many_gpus_there_are(monkeypatch, fake, expected):
    """CUDA_ERROR_NO_DEVICE is 100."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
    assert gpu_check.gpus() == expected


@pytest.mark.parametrize("part", ["training", "serving", "both"])
def test_every_part_ends_with_2_without_a_gpu(monkeypatch, tmp_path, capsys, part):
    """Also where onnxruntime was built for CUDA, whose list of providers names it with or without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_check, "gpus", lambda: 0)
    built_for_cuda = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: built_for_cuda)
    assert gpu_check.main(["--part", part, "--out", str(tmp_path / "out")]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
