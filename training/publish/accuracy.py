"""Labelled examples: how often the original, the served form and the version before are right on the same pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from foldserve.format import metadata
from foldserve.format.errors import FormatError
from foldserve.format.manifest import MODEL_FILE, read_manifest

from .. import artifact, promotion
from ..errors import TrainingError
from ..served_session import Session
from .examples import Examples, PictureInput, picture_examples
from .network import Array, Network
from .served import Served

_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What was measured on labelled examples.

    Attributes:
        right: whether the served form is right on each example, (N,) bool.
        original_right: the same for the unfolded network in its own precision.
        agreeing: examples on which both name the same class.
        largest_difference: largest |difference of a probability| between both.
        data: SHA-256 of the examples and their classes.
    """

    right: Array
    original_right: Array
    agreeing: int
    largest_difference: float
    data: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest's `accuracy`."""
        return {
            "test": float(self.right.mean()),
            "correct": int(self.right.sum()),
            "images": len(self.right),
            "original": float(self.original_right.mean()),
            "agreement": self.agreeing / len(self.right),
            "largest_probability_difference": self.largest_difference,
            "data": self.data,
        }

    def __str__(self) -> str:
        number = len(self.right)
        served, original = int(self.right.sum()), int(self.original_right.sum())
        return (
            f"of {number} examples served {served} right, original {original}; same class on {self.agreeing}, "
            f"probabilities {self.largest_difference:.1e} apart at most"
        )


def measure(network: Network, examples: Examples, served: Served) -> Accuracy | None:
    """Return how often the served form and the original are right, None where the true classes are not known.

    Args:
        network: unfolded.
        examples: with `truth`.
        served: for the task `classify`; what was asked in its proof is not asked again.
    """
    if examples.truth is None:
        return None
    proved = served.reference.rows
    parts = [(proved, served.answers["probabilities"], served.reference.deployed["probabilities"])]
    rest = np.setdiff1d(np.arange(examples.rows), proved)
    if rest.size:
        session = Session(served.model)
        for rows in _parts(rest):
            found = served.meaning.expected(network.deployed(examples.take_original(rows)))
            parts.append((rows, session.run(examples.take(rows))["probabilities"], found["probabilities"]))
    classes, originals = np.empty((2, examples.rows), np.int64)
    for rows, got, original in parts:
        classes[rows], originals[rows] = got.argmax(axis=1), original.argmax(axis=1)
    return Accuracy(
        right=classes == examples.truth,
        original_right=originals == examples.truth,
        agreeing=int((classes == originals).sum()),
        largest_difference=max(float(np.abs(got - original).max()) for _, got, original in parts),
        data=examples.digest,
    )


def compare_with_newest(
    folder: Path, found: Accuracy, given: Any, images: PictureInput | None, labels: Any, new: Examples
) -> promotion.Change | None:
    """Return how a model compares with the newest version that was promoted, None where none can be compared.

    One that was held back is no measure: the next one would only have to equal it. Both have to carry a measured
    accuracy on the same data; the older one answers the same pictures by its own recipe.

    Args:
        folder: of the model.
        found: of the new version.
        given: the examples as the user gave them.
        images: how pictures become the new version's input; None: it takes rows.
        labels: class names.
        new: the same examples, for the new version.
    """
    version = artifact.newest_promoted(folder)
    if version is None or found.data is None:
        return None
    try:
        manifest = read_manifest(version)
        stated = manifest.get("accuracy")
        if not isinstance(stated, dict) or stated.get("data") != found.data:
            return None
        model = (version / MODEL_FILE).read_bytes()
        recipe = metadata.read_image(metadata_of(model))
    except (FormatError, OSError):
        return None
    if (recipe is None) != (images is None):
        return None
    examples = new
    if recipe is not None and images is not None:
        older = PictureInput(recipe=recipe, normalisation=images.normalisation, name=images.name)
        examples = picture_examples(given, older, labels)
    try:
        session = Session(model)
        answers = [session.run(examples.take(rows))["class_id"][:, 0] for rows in _parts(np.arange(examples.rows))]
    except (TrainingError, KeyError):
        return None
    return promotion.compare(int(version.name), np.concatenate(answers) == examples.truth, found.right)


def metadata_of(model: bytes) -> dict[str, str]:
    """Return the metadata of a graph without reading its weights into arrays."""
    return {entry.key: entry.value for entry in onnx.ModelProto.FromString(model).metadata_props}


def _parts(rows: Array) -> Iterator[Array]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]
