"""Folders of small pictures, one folder a class, that a network learns in seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

FRUIT = ("apple", "leaf", "sky")


def save_picture(path: Path, channel: int, generator: np.random.Generator, size: tuple[int, int] | None = None) -> None:
    """Write a noisy picture with one bright channel in its middle, as the name says."""
    height, width = size or tuple(generator.integers(40, 70, 2))
    pixels = generator.integers(0, 110, (height, width, 3))
    pixels[height // 4 : -(height // 4), width // 4 : -(width // 4), channel] += 130
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)


def save_classes(root: Path, count: int, seed: int = 0) -> Path:
    """Write `count` pictures of each of three classes, as JPEG and as PNG."""
    generator = np.random.default_rng(seed)
    for channel, name in enumerate(FRUIT):
        for number in range(count):
            save_picture(root / name / f"{number:02}.{'jpg' if number % 3 else 'png'}", channel, generator)
    return root
