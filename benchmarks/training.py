"""Examples a second of our training loop against the textbook loop, in one run on the same device.

The textbook loop is the one that tutorials print: a `Dataset` that converts one image at a time, a `DataLoader` that
collates 256 of them, and `.item()` after every step. Both train the same network with the same recipe. The two take
turns, epoch by epoch, so that a change of the machine's speed meets both.

    python benchmarks/training.py --epochs 3 --json docs/results/training-speed.json
"""

import argparse
import json
import os
import resource
import statistics as stats
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from training.config import Recipe
from training.dataset import FashionMNIST, load
from training.device import resolve_device
from training.fit import fit
from training.model import build, lenet
from training.provenance import environment


class OneImageAtATime(Dataset[tuple[torch.Tensor, int]]):
    """Fashion-MNIST as a tutorial holds it: uint8 in memory, converted to float32 in [0, 1] when asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.images[index]).to(torch.float32).div(255), int(self.labels[index])


class Textbook:
    """The textbook loop; `epoch()` returns the seconds that one epoch took, loading included."""

    def __init__(self, dataset: FashionMNIST, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.device = device
        self.network = lenet(pool=recipe.pool, norm=recipe.norm).to(device).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=recipe.learning_rate)
        self.loss = nn.CrossEntropyLoss()
        self.loader = DataLoader(
            OneImageAtATime(dataset.train_images, dataset.train_labels), batch_size=recipe.batch_size, shuffle=True
        )

    def epoch(self) -> float:
        """Train one epoch and return its seconds by the wall clock."""
        start, loss_sum, correct = time.perf_counter(), 0.0, 0
        for images, labels in self.loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            logits = self.network(images)
            loss = self.loss(logits, labels)
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
        return time.perf_counter() - start


def ours(dataset: FashionMNIST, recipe: Recipe, device: torch.device) -> float:
    """Return the seconds that one epoch of our loop took, the gathering of its batches from memory included."""
    return fit(build(recipe), dataset, recipe, device).last.train_seconds


def measure(epochs: int, device: torch.device, recipe: Recipe) -> dict[str, object]:
    """Return seconds per epoch of both loops, interleaved, the first of each left out as warm-up."""
    dataset = load()
    textbook = Textbook(dataset, recipe, device)
    loads, pairs = [], []
    for _ in range(epochs + 1):
        loads.append(os.getloadavg()[0])
        pairs.append((textbook.epoch(), ours(dataset, recipe, device)))
    theirs, own = zip(*pairs[1:], strict=True)
    ratios = [textbook_seconds / seconds for textbook_seconds, seconds in pairs[1:]]
    rows = len(dataset.train_labels)
    return {
        "textbook_epoch_seconds": theirs,
        "foldserve_epoch_seconds": own,
        "textbook_examples_per_second": rows / stats.median(theirs),
        "foldserve_examples_per_second": rows / stats.median(own),
        "speedup": {"median": stats.median(ratios), "min": min(ratios), "max": max(ratios)},
        "load_average_before_each_pair": loads[1:],
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "recipe": recipe.as_dict(),
        "environment": environment(),
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
