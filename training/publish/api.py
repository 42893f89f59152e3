"""`foldserve.publish`: a network of one's own, proven from its examples to the version folder that the service reads.

The steps in order; each is a module of its own. Nothing is written before everything is proved, and then all at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foldserve.format import metadata
from foldserve.format.task import CLASSIFY

from .. import artifact, promotion, provenance
from ..errors import ConfigError, GateError
from ..fold.pytorch.process_state import undisturbed
from ..user_model.source import Source, as_source
from .accuracy import Accuracy, compare_with_newest, measure, metadata_of
from .opened import Opened, open_network
from .published import Published
from .question import question_for
from .served import Served, serve
from .texts import read_texts
from .wanted import Wanted


@undisturbed()
def publish(
    model: Any,
    *,
    name: str,
    labels: Sequence[str] | None = None,
    image: Any = None,
    examples: Any = None,
    task: str | None = None,
    scores: str | None = None,
    threshold: float = 0.5,
    columns: Sequence[str] | None = None,
    inputs: Sequence[Any] = (),
    outputs: Sequence[str] = (),
    weights: str | Path | None = None,
    factory_args: str | None = None,
    models_dir: str | Path = "models",
    card: str | Path | None = None,
    license: str | Path | None = None,
    min_accuracy: float | None = None,
    promote: bool = False,
    dry_run: bool = False,
) -> Published:
    """Publish `model` as the next version of `name`, after proving that the service will answer as it does.

    Args:
        model: an nn.Module in eval mode, an exported program, an ONNX model; or text: package.module:factory, or the
            path of a .pt2 or .onnx file.
        name: of the model, by the rule of `foldserve.format.names`.
        labels: class names, index = class id.
        image: how pictures become the input: text as `--image` takes it, torchvision's `weights.transforms()`, timm's
            data config or Hugging Face's preprocessor config as a dict, a recipe. None: the network takes no pictures.
        examples: paths of pictures, a folder of them (or of one folder for each class), pixels; or rows: an array, a
            mapping of one for each input, a .npy, .npz or .csv file. None: made up, which every listing says.
        task: `classify`, `multilabel`, `regress`, `embed` or `tensors`; by default `classify` with labels, else
            `tensors`.
        scores: the output that the task is about, where the network has several.
        threshold: of `multilabel`.
        columns: names of the values of a row.
        inputs: `[NAME=][DTYPE:]D,D,...` for each input, batch first, or example tensors.
        outputs: names of the outputs, in order.
        weights: file for the network of a factory.
        factory_args: JSON object of keyword arguments for a factory.
        models_dir: the model repository.
        card: file of the model card, Markdown; it travels with the version, as README.md.
        license: file of the licence's text; it travels with the version, as LICENSE.
        min_accuracy: publish nothing that is right on a smaller share of the labelled examples.
        promote: let it go live although it is worse than the version before.
        dry_run: prove it and write nothing.

    Raises:
        TrainingError: something does not fit, is not proved, or cannot be written; nothing was published then.
    """
    wanted = Wanted(
        labels=labels, image=image, examples=examples, task=task, scores=scores, threshold=threshold, columns=columns,
        inputs=inputs, outputs=outputs,
    )  # fmt: skip
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise ConfigError(f"--min-accuracy {min_accuracy}: expected a share of right answers, 0 to 1")
    folder = Path(models_dir)
    artifact.check_publishable(folder, name, labels)
    texts = read_texts(card, license)
    source = as_source(model, None if weights is None else Path(weights), factory_args)
    opened = open_network(source, wanted)
    served = serve(opened)
    artifact.check_companions(folder, name, served.model)
    published = _compared(folder / name, source, opened, served, min_accuracy, promote)
    if dry_run:
        return published
    return replace(published, folder=artifact.publish(folder, name, served.model, published.manifest, texts=texts))


def _compared(
    folder: Path, source: Source, opened: Opened, served: Served, min_accuracy: float | None, promote: bool
) -> Published:
    """Return what is to be published, with how it compares with the versions in the model's folder."""
    measured = _measured(opened, served, min_accuracy)
    change = None if measured is None else _change(folder, measured, opened)
    return Published(
        folder=None,
        name=folder.name,
        task=opened.wanted.chosen_task,
        report=served.report,
        proof=served.proof,
        manifest=_manifest(opened, served, source, measured) | promotion.promotion_of(change, is_wanted=promote),
        notes=(*opened.notes, *served.notes, *_recipe_notes(folder, served), *_accuracy_notes(measured, change)),
        question=question_for(folder.name, opened),
    )


def _measured(opened: Opened, served: Served, min_accuracy: float | None) -> Accuracy | None:
    measured = None
    if opened.wanted.chosen_task == CLASSIFY and served.meaning.scores is not None:
        measured = measure(opened.network, opened.examples, served)
    if min_accuracy is None:
        return measured
    if measured is None:
        raise ConfigError(
            "--min-accuracy needs the task classify and examples with classes: a folder each, or a column label"
        )
    share = float(measured.right.mean())
    if share < min_accuracy:
        raise GateError(f"accuracy {share:.4f} on the examples: expected at least {min_accuracy}; nothing is published")
    return measured


def _change(folder: Path, measured: Accuracy, opened: Opened) -> promotion.Change | None:
    return compare_with_newest(
        folder, measured, opened.wanted.examples, opened.images, opened.wanted.labels, opened.examples
    )


def _manifest(opened: Opened, served: Served, source: Source, measured: Accuracy | None) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "golden": served.golden.as_dict(),
        "proof": served.proof.as_dict(),
        "fold": None if served.report is None else served.report.as_dict(),
        "source": _source(opened, served, source),
        "environment": provenance.environment(),
    }
    return manifest if measured is None else {**manifest, "accuracy": measured.as_dict()}


def _source(opened: Opened, served: Served, source: Source) -> dict[str, Any]:
    """Return what is kept of where a version comes from: names, never paths of this machine."""
    images = opened.images
    arithmetic = None
    if images is not None:
        wanted = images.normalisation
        arithmetic = {"scale": wanted.scale, "mean": list(wanted.mean), "std": list(wanted.std)}
    kept: dict[str, Any] = {"network": Path(source.name).name, "notes": list(source.notes), "normalisation": arithmetic}
    kept["scores"] = served.meaning.scores
    return {key: value for key, value in kept.items() if value}


def _recipe_notes(folder: Path, served: Served) -> tuple[str, ...]:
    """Return what differs between the new version's picture recipe and that of the newest version."""
    numbers = artifact.versions(folder) if folder.is_dir() else []
    if not numbers:
        return ()
    path = folder / str(numbers[-1]) / "model.onnx"
    if not path.is_file():
        return ()
    before, after = (_fields(metadata_of(content)) for content in (path.read_bytes(), served.model))
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    changed = [f"{key} {before.get(key)!r} -> {after.get(key)!r}" for key in keys]
    return (f"the picture recipe differs from version {numbers[-1]}: {', '.join(changed)}",) if changed else ()


def _fields(stated: Mapping[str, str]) -> dict[str, Any]:
    recipe = metadata.read_image(stated)
    return {} if recipe is None else recipe.as_dict()


def _accuracy_notes(measured: Accuracy | None, change: promotion.Change | None) -> tuple[str, ...]:
    if measured is None:
        return ()
    return (str(measured), *([] if change is None else [str(change)]))
