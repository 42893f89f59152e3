"""What `foldserve demo --train` does before and after it serves: train (or reuse), verify, and show one real answer.

A version that an earlier demo trained is reused; the version that comes with foldserve is left alone.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundled import is_bundled
from .exit_codes import DONE
from .format.names import is_version
from .training.dataset import CLASS_NAMES, load

SHADES = " .:-=+*#%@"


def newest_local_version(model_dir: Path) -> Path | None:
    """Return the newest version that was trained here, or None; the one that comes with foldserve does not count."""
    versions = [path for path in model_dir.glob("[0-9]*") if is_version(path.name) and not is_bundled(path)]
    return max(versions, key=lambda path: int(path.name), default=None)


def train_or_reuse(models_dir: Path, name: str, extra: Sequence[str]) -> Path:
    """Return a version folder: the newest that was trained here, else a new one trained by the book's recipe."""
    newest = newest_local_version(models_dir / name)
    if newest is not None:
        print(f"Reusing {newest} (remove the folder to train again).")
        return newest
    run("train", "--models-dir", str(models_dir), "--name", name, *extra)
    trained = newest_local_version(models_dir / name)
    if trained is None:
        raise SystemExit(f"training published no new version under {models_dir / name}")
    return trained


def run(*words: str) -> None:
    """Run another command of foldserve; when it fails, the demo ends with its exit code."""
    code = subprocess.call([sys.executable, "-m", "foldserve", *words])
    if code != DONE:
        raise SystemExit(code)


def picture(image: NDArray[np.uint8]) -> str:
    """Return the 28x28 uint8 image as text, two characters a pixel so that it looks square."""
    return "\n".join("".join(SHADES[int(pixel) * len(SHADES) // 256] * 2 for pixel in row) for row in image)


def ask(url: str, name: str, image: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the prediction for one 28x28 uint8 image, sent as 784 raw bytes."""
    request = urllib.request.Request(
        f"{url}/predict?model={name}", data=image.tobytes(), headers={"Content-Type": "application/octet-stream"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def show(url: str, name: str, index: int) -> bool:
    """Print one test image and what the service says of it; return whether it is right."""
    dataset = load()
    image, label = dataset.test_images[index].reshape(28, 28), CLASS_NAMES[int(dataset.test_labels[index])]
    answer = ask(url, name, image)
    prediction = answer["predictions"][0]
    print(picture(image))
    print(f"\ntest image {index}: labelled {label!r}")
    print(
        f"{answer['model']} version {answer['version']} says {prediction['label']!r} "
        f"with confidence {prediction['confidence']:.3f}"
    )
    return bool(prediction["label"] == label)
