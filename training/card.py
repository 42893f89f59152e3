"""The model card of a run: what the model is for, what made it and how good it is, in words for people.

Every figure is read from the manifest; this module only arranges them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset


def model_card(
    name: str,
    recipe: Mapping[str, Any],
    manifest: Mapping[str, Any],
    revision: str,
    counts: NDArray[np.int64],
    dataset: Dataset,
) -> str:
    """Return the card in Markdown.

    Args:
        name: of the model.
        recipe: hyperparameters by name.
        manifest: of the version, without what publishing adds.
        revision: of the code.
        counts: (classes, classes) true against predicted on the test images.
        dataset: that it was trained and tested on.
    """
    accuracy, parity, environment = manifest["accuracy"], manifest["parity"], manifest["environment"]
    served = parity["forms"][-1]
    packages = ", ".join(f"{package} {version}" for package, version in environment["packages"].items())
    return "\n".join(
        [
            f"# {name}",
            "",
            dataset.about,
            "",
            "## How good it is",
            "",
            f"- Test accuracy as served: {accuracy['test']:.4f} ({accuracy['correct']} of {accuracy['images']}), "
            f"with {accuracy['statistics']} statistics.",
            *(f"- With {kind} statistics: {value:.4f}." for kind, value in accuracy["test_by_statistics"].items()),
            *_held_out(accuracy),
            f"- {_epoch(recipe)} of training: accuracy {accuracy['train']:.4f}, loss {accuracy['train_loss']:.4f}.",
            f"- Against the unfolded network in float64: the same class on {served['agreeing']} of {parity['images']} "
            f"images, logits off by {served['max_error']:.1e} of the largest.",
            "",
            "The test set chose nothing: neither the epoch nor a hyperparameter of this run.",
            "",
            *_class_table(counts, dataset.class_names),
            "",
            "## What made it",
            "",
            *(f"- {key}: {value}" for key, value in recipe.items()),
            f"- code: {revision}",
            f"- machine: {environment['cpu']}, {environment['threads']} threads, GPU {environment['gpu'] or 'none'}",
            f"- versions: Python {environment['python']}, {packages}",
            f"- data: {dataset.title}, {manifest['training']['train_images']} images",
            "",
        ]
    )


def _held_out(accuracy: Mapping[str, Any]) -> list[str]:
    if "val" not in accuracy:
        return []
    return [f"- On the {accuracy['val_images']} images held out, which may choose: {accuracy['val']:.4f}."]


def _epoch(recipe: Mapping[str, Any]) -> str:
    return "Best epoch by the images held out" if recipe.get("keep") == "best" else "Last epoch"


def _class_table(counts: NDArray[np.int64], class_names: Sequence[str]) -> list[str]:
    rows = ["| class | recall | precision | most often taken for |", "|---|---|---|---|"]
    for class_id, class_name in enumerate(class_names):
        others = counts[class_id].copy()
        others[class_id] = 0
        recall = _share(counts[class_id, class_id], counts[class_id].sum())
        precision = _share(counts[class_id, class_id], counts[:, class_id].sum())
        rival = f"{class_names[others.argmax()]} ({others.max()})" if others.any() else "none"
        rows.append(f"| {class_name} | {recall} | {precision} | {rival} |")
    return rows


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "none"
