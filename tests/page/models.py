"""What the page is tried with: the shipped model, two versions that differ, colour, and a model for each task."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from foldserve.format.image import ANY_SIZE, ImageRecipe
from foldserve.format.task import OUTPUTS, Task
from foldserve.pictures.golden_files import pack
from tests.support import artifacts, picture_models

COLUMNS = ("length", "width", "height", "weight")
LONG_NAME = "somebody-s-model-whose-name-is-as-long-as-a-name-may-be-2026-v2"
LONG_LABELS = [f"the long name of an animal, with author and year, number {number}" for number in range(4)]
ANY = ImageRecipe(height=ANY_SIZE, width=ANY_SIZE, channels=1, colour="grey")
FLOWERS = ImageRecipe(height=24, width=32, rule="shorter", resize=(26,), crop=(24, 32), filter="bilinear")


def photo(seed: int = 0, size: tuple[int, int] = (90, 70), kind: str = "PNG") -> bytes:
    """Colour that changes softly, and noise."""
    rng, (width, height) = np.random.default_rng(seed), size
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + seed) + np.cos(y / 7 + channel) for channel in range(3)]
    pixels = np.stack(waves, axis=-1) * 50 + 128 + rng.normal(0, 8, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def publish_all(root: Path) -> Path:
    """Write all of them, and return the folder."""
    shutil.copytree(Path(__file__).parents[2] / "models/lenet-bn/1", root / "lenet-bn/1")
    for version in (1, 2):
        artifacts.publish_classifier(root, version=version, seed=version)
    files = pack([(f"flower-{seed}.png", photo(seed)) for seed in range(4)], FLOWERS)
    picture_models.publish(root, "flowers", FLOWERS, files)
    picture_models.publish(root, "any", ANY, pack([("any.png", photo(5))], ANY))
    for name in ("multilabel", "regress", "embed", "tensors"):
        stated = Task(name, 0.6, COLUMNS if name == "regress" else None).as_metadata()
        labels = {"foldserve.labels": json.dumps(["red", "green", "blue", "grey"])} if name == "multilabel" else {}
        artifacts.publish_rows(root, name, OUTPUTS[name] or ("first", "second"), stated | labels)
    classes = Task("classify", None, None).as_metadata() | {"foldserve.labels": json.dumps(LONG_LABELS)}
    artifacts.publish_rows(root, LONG_NAME, OUTPUTS["classify"], classes)
    artifacts.publish_two_inputs(root)
    return root
