"""Examples a second of our training loop against the textbook loop, in one run on the same device.

Both train the same network with the same recipe. The two take turns, epoch by epoch, so that a change of the machine's
speed meets both.

    python -m benchmarks.training.speed --epochs 3 --json docs/results/training-speed.json
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics as stats
import sys
import time
from pathlib import Path

import torch

from benchmarks.training.textbook import Textbook
from foldserve.training.config import Recipe
from foldserve.training.dataset import FashionMNIST, load
from foldserve.training.device import resolve_device
from foldserve.training.fit import fit
from foldserve.training.model import build
from foldserve.training.provenance import environment


def ours(dataset: FashionMNIST, recipe: Recipe, device: torch.device) -> float:
    """Return the seconds that one epoch of our loop took, the gathering of its batches from memory included."""
    return fit(build(recipe), dataset, recipe, device).last.train_seconds


def measure(epochs: int, device: torch.device, recipe: Recipe) -> dict[str, object]:
    """Return seconds per epoch of both loops, interleaved, the first of each left out as warm-up.

    Processor seconds stand beside those of the wall clock: on a machine that does other things as well they say more,
    with one thread (OMP_NUM_THREADS=1), since threads that wait for each other burn them too.
    """
    dataset = load()
    # Neither loop's evaluation is measured, and ours cannot leave it out: it gets one image.
    dataset = dataclasses.replace(dataset, test_images=dataset.test_images[:1], test_labels=dataset.test_labels[:1])
    textbook = Textbook(dataset, recipe, device)
    loads, wall, busy = [], [], []
    for _ in range(epochs + 1):
        loads.append(os.getloadavg()[0])
        starts = time.process_time()
        theirs = textbook.epoch()
        between = time.process_time()
        own = ours(dataset, recipe, device)
        wall.append((theirs, own))
        busy.append((between - starts, time.process_time() - between))
    rows = len(dataset.train_labels)
    theirs_median, own_median = (stats.median(seconds) for seconds in zip(*wall[1:], strict=True))
    return {
        "textbook_examples_per_second": rows / theirs_median,
        "foldserve_examples_per_second": rows / own_median,
        "wall": _compared(wall[1:]),
        "processor": _compared(busy[1:]),
        "load_average_before_each_pair": loads[1:],
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "recipe": recipe.as_dict(),
        "environment": environment(),
    }


def _compared(pairs: list[tuple[float, float]]) -> dict[str, object]:
    """Return both lists of seconds and the ratios within the pairs."""
    ratios = [theirs / own for theirs, own in pairs]
    return {
        "textbook_epoch_seconds": [theirs for theirs, _ in pairs],
        "foldserve_epoch_seconds": [own for _, own in pairs],
        "speedup": {"median": stats.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3, help="measured epochs of each loop (default 3)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the result here as well")
    options = parser.parse_args(argv)
    recipe = Recipe.from_preset("book", epochs=1)
    result = measure(options.epochs, resolve_device(options.device), recipe)
    text = json.dumps(result, indent=2, sort_keys=True)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
