"""Everything that only a GPU can show, in one call: training by captured graphs and serving on CUDA, proved and timed.

    python -m benchmarks.training.gpu_check --out docs/results

Writes gpu-training.json and gpu-serving.json, each with the machine and the versions, and ends with 1 when a check
failed. `--part training` needs PyTorch with CUDA, `--part serving` onnxruntime-gpu; without a GPU it says so and ends
with 2, having written nothing.
"""

import argparse
import ctypes
import json
import statistics as stats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.training.textbook import Textbook
from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines.load import load_engine
from foldserve.service.errors import ServiceError
from foldserve.training.config import Recipe
from foldserve.training.dataset import FashionMNIST, load
from foldserve.training.device import exact_convolutions
from foldserve.training.epoch import EpochLoop
from foldserve.training.errors import TrainingError
from foldserve.training.fit import Snapshot, fit
from foldserve.training.model import build
from foldserve.training.provenance import environment

FLOOR_SECONDS = 0.014  # 0.91 TFLOP of 10 epochs at the 67 TFLOP/s of float32 that an H200 is sold with
EQUAL = 1e-5  # of the largest value
ROUNDINGS = 10  # times what one unit in one weight grows to: every operation of every step rounds
SERVED = 1e-4  # of the largest |logit|, what the manifest allows on CUDA
TARGETS = {"ten_epochs_seconds": 0.5, "speedup": 30.0}

Report = dict[str, Any]


def equality(dataset: FashionMNIST, norm: str, device: torch.device, epochs: int = 2) -> Report:
    """Return how far captured steps are from eager ones, buffers included.

    One epoch is a tail of 96 rows and one full batch; two epochs are 20 steps, with nine full batches in each.

    Kernels are the deterministic ones, so both should give the same bits. Where they do not, a difference is judged by
    what rounding does here: the eager steps again, and eager steps whose first weight differs by one unit in the last
    place. In 20 steps at learning rate 1.0 that unit grows to between 1e-4 and more than 1, in two it stays small.
    """
    rows = 256 + 96 if epochs == 1 else 9 * 256 + 96
    few = FashionMNIST(
        dataset.train_images[:rows],
        dataset.train_labels[:rows],
        dataset.test_images[:100],
        dataset.test_labels[:100],
        source=dataset.source,
    )
    statistics = "none" if norm == "none" else "population"
    recipe = Recipe(epochs=epochs, norm=norm, statistics=statistics)
    eager, again, nudged, captured = (build(recipe) for _ in range(4))
    with torch.no_grad():
        first = nudged.get_parameter("conv1.weight").view(-1)[:1]
        first.copy_(torch.nextafter(first, first + 1))
    for model, captures in ((eager, False), (again, False), (nudged, False), (captured, True)):
        fit(model, few, recipe, device, captures=captures, deterministic=True)
    return judged(difference(again, eager), difference(nudged, eager), difference(captured, eager))


def judged(eager_again: float, one_unit: float, captured: float) -> Report:
    """Return the verdict on captured steps: equal to rounding, or no further off than rounding grows to."""
    limit = max(EQUAL, eager_again, ROUNDINGS * one_unit)
    return {
        "largest_relative_difference": captured,
        "of_eager_steps_repeated": eager_again,
        "of_one_unit_in_the_last_place": one_unit,
        "same_as_repeated": captured <= eager_again,
        "limit": limit,
        "passed": captured <= limit,
    }


def difference(model: torch.nn.Module, expected: torch.nn.Module) -> float:
    """Return the largest difference of a tensor of the state, relative to its largest value; a NaN is infinite."""
    state = model.state_dict()
    worst = [
        float((state[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
        for name, value in expected.state_dict().items()
    ]
    return max(value if value == value else float("inf") for value in worst)


def replays(dataset: FashionMNIST, device: torch.device) -> Report:
    """Return whether an epoch really replays graphs: both kinds of step are a graph's after the first epoch."""
    recipe = Recipe(epochs=1)
    network = build(recipe).to(device)
    images, labels = (torch.as_tensor(array).to(device) for array in (dataset.train_images, dataset.train_labels))
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.learning_rate, fused=True)
    epochs = EpochLoop(network, optimizer, images, labels, recipe, captures=True)
    with exact_convolutions():  # as `fit` has it: the kernels that are timed are those that train
        first = seconds_of(lambda: epochs.run(1))
        owners = [getattr(step, "__self__", None) for step in epochs.steps.values()]
        seconds = [epochs.run(number)[2] for number in range(2, 12)]
    return {
        "batch_sizes": sorted(epochs.steps),
        "first_epoch_with_capture_seconds": first,
        "epoch_seconds": seconds,
        "step_microseconds": 1e6 * stats.median(seconds) / len(epochs.sizes),
        "passed": all(isinstance(owner, torch.cuda.CUDAGraph) for owner in owners) and len(owners) == 2,
    }


def ten_epochs(dataset: FashionMNIST, device: torch.device, runs: int) -> Report:
    """Return the wall-clock seconds of epochs 2 to 11 of runs of the book's recipe, each with its evaluation.

    The first epoch holds the capture and is told apart.
    """
    seconds, capturing, accuracies = [], [], []
    for seed in range(runs):
        recipe = Recipe(epochs=11, seed=seed)
        ends: list[float] = []

        def mark(snapshot: Snapshot, ends: list[float] = ends) -> None:
            ends.append(snapshot.seconds)

        history = fit(build(recipe), dataset, recipe, device, on_snapshot=mark)
        capturing.append(ends[0])
        seconds.append(ends[-1] - ends[0])
        accuracies.append(history.last.train_accuracy)
    median = stats.median(seconds)
    return {
        "ten_epochs_seconds": seconds,
        "median_seconds": median,
        "first_epoch_seconds": capturing,
        "train_accuracy": accuracies,
        "share_of_arithmetic_floor": FLOOR_SECONDS / median,
        "target_seconds": TARGETS["ten_epochs_seconds"],
        "passed": median <= TARGETS["ten_epochs_seconds"],
    }


def against_textbook(dataset: FashionMNIST, device: torch.device, ours_seconds: float) -> Report:
    """Return the ratio of a textbook epoch (DataLoader, `.item()` every step) to one of ours, on this device."""
    textbook = Textbook(dataset, Recipe(epochs=1), device)
    with exact_convolutions():
        seconds = [textbook.epoch() for _ in range(3)][1:]
    ratio = stats.median(seconds) / ours_seconds
    target = TARGETS["speedup"]
    return {"textbook_epoch_seconds": seconds, "speedup": ratio, "target": target, "passed": ratio >= target}


def check_training() -> Report:
    """Return every check and figure of the training half on the GPU."""
    device, dataset = torch.device("cuda"), load()
    epochs = ten_epochs(dataset, device, runs=3)
    return {
        "graph_equals_eager": {
            f"{norm}, {steps} steps": equality(dataset, norm, device, epochs)
            for norm in ("torch", "scratch", "none")
            for epochs, steps in ((1, 2), (2, 20))
        },
        "graphs_replay": replays(dataset, device),
        "ten_epochs": epochs,
        "against_textbook": against_textbook(dataset, device, epochs["median_seconds"] / 10),
        "environment": environment(),
    }


def check_serving(models_dir: Path, name: str) -> Report:
    """Return how the engine on CUDA compares with the engine on the CPU over all 10,000 test images."""
    artifact = Repository(models_dir).open(name)
    images = load().test_images
    cpu, cuda = (load_engine(artifact, provider=provider) for provider in ("cpu", "cuda"))
    rows = min(max(cpu.buckets), max(cuda.buckets))
    batches = [images[at : at + rows] for at in range(0, len(images), rows)]
    answers = {
        engine.device.provider: [engine.run({engine.inputs[0].name: batch}) for batch in batches]
        for engine in (cpu, cuda)
    }
    logits = {key: np.concatenate([part["logits"] for part in parts]) for key, parts in answers.items()}
    classes = {key: np.concatenate([part["class_id"] for part in parts]) for key, parts in answers.items()}
    error = float(np.abs(logits["cuda"] - logits["cpu"]).max() / np.abs(logits["cpu"]).max())
    differing = int((classes["cuda"] != classes["cpu"]).sum())
    return {
        "model": f"{artifact.name}/{artifact.version}",
        "images": len(images),
        "cuda_against_cpu": {
            "largest_relative_difference": error,
            "limit": SERVED,
            "differing_classes": differing,
            "passed": error <= SERVED and differing == 0,
        },
        "buckets": {
            key: {
                "seconds": {str(rows): seconds for rows, seconds in engine.bucket_seconds.items()},
                "same_bytes_in_every_bucket": engine.batch_invariant,
                "largest_deviation": engine.largest_deviation,
            }
            for key, engine in (("cpu", cpu), ("cuda", cuda))
        },
        "environment": environment(),
    }


def seconds_of(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes by the wall clock."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def missing(part: str) -> str | None:
    """Return why `part` cannot be checked on this machine, None when it can."""
    if part == "training" and not torch.cuda.is_available():
        why = "this build of PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no GPU"
        return f"{why}; run it on a machine with an NVIDIA GPU and a CUDA build of PyTorch"
    if part == "serving":
        # The list names what onnxruntime was built with, whether there is a GPU or not.
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "onnxruntime has no CUDA provider; install foldserve[gpu] in place of foldserve[cpu]"
        if gpus() == 0:
            return "the NVIDIA driver sees no GPU; check that nvidia-smi lists one"
    return None


def gpus() -> int:
    """Return how many GPUs the NVIDIA driver sees: cuInit and cuDeviceGetCount of the CUDA driver API."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def failed(report: Any, path: str = "") -> list[str]:
    """Return where in `report` something did not pass."""
    if not isinstance(report, dict):
        return []
    own = [path] if report.get("passed") is False else []
    return own + [place for key, value in report.items() for place in failed(value, f"{path}/{key}".lstrip("/"))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("training", "serving", "both"), default="both")
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    parser.add_argument("--name", default="lenet-bn")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of gpu-*.json (docs/results)")
    options = parser.parse_args(argv)
    parts = ("training", "serving") if options.part == "both" else (options.part,)
    reasons = [f"{part}: {reason}" for part in parts if (reason := missing(part))]
    if reasons:
        print("no GPU to check with; nothing was written\n" + "\n".join(reasons), file=sys.stderr)
        return 2
    checks: dict[str, Callable[[], Report]] = {
        "training": check_training,
        "serving": lambda: check_serving(options.models_dir, options.name),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    faults = []
    for part in parts:
        try:
            report = checks[part]()
        except (TrainingError, ServiceError) as err:
            print(f"{part}: {err}", file=sys.stderr)
            return 1
        text = json.dumps(report, indent=2, sort_keys=True)
        print(text)
        (options.out / f"gpu-{part}.json").write_text(text + "\n")
        faults += [f"{part}/{place}" for place in failed(report)]
    if faults:
        print("failed: " + ", ".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
