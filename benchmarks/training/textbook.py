"""The training loop that tutorials print, which ours is measured against.

A `Dataset` that converts one image at a time, a `DataLoader` that collates a batch of them, and `.item()` after every
step; the same network and the same recipe as ours.
"""

import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from foldserve.training.config import Recipe
from foldserve.training.dataset import FashionMNIST
from foldserve.training.model import lenet


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
