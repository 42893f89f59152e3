"""The command line: parse, call, print. Everything it does is done, and tested, in the modules it calls.

Errors of ours are one message on stderr and the exit code of their class; Ctrl-C ends with 130.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foldserve.exit_codes import DONE, INTERRUPTED

from . import plots, provenance
from .artifact import check_name, publish
from .card import model_card
from .config import CHOICES, PRESETS, Recipe
from .dataset import CLASS_NAMES, FashionMNIST, load
from .device import resolve_device
from .errors import ArtifactError, ConfigError, TrainingError, VerifyError
from .events import Events, require_tensorboard
from .fit import EpochRecord
from .fold import cli as fold_command
from .parity import run_model
from .pipeline import Package, Trained, package, train
from .reverify import Outcome, reverify, version_folder
from .run_folder import CARD_NAME, RunConfig, RunFolder, default_folder
from .session import Session, resume, start
from .studies import best, circles_report, compare, inspection

_WITH = {
    "running": "with running statistics",
    "population": "with population statistics",
    "none": "without norms",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code: 0, that of the error's class, or 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except TrainingError as err:
        print(err, file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; no unfinished model was published", file=sys.stderr)
        return INTERRUPTED
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="foldserve", description="From data to a proved model file.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train_and_export(subparsers)
    _add_verify(subparsers)
    for command in (fold_command, inspection, circles_report, compare, best):
        command.add_parser(subparsers)
    return parser


def _add_train_and_export(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        aliases=["train-and-export"],
        help="train, fold, export, verify and publish as the next version",
    )
    recipe = parser.add_argument_group("recipe (what is left out comes from the preset)")
    recipe.add_argument("--preset", choices=sorted(PRESETS), default=None, help="a named set of good values (book)")
    recipe.add_argument("--pool", choices=CHOICES["pool"], default=None, help="pooling between the convolutions")
    recipe.add_argument(
        "--norm", choices=CHOICES["norm"], default=None, help="batch normalization: PyTorch's, by hand, none"
    )
    recipe.add_argument("--epochs", type=int, default=None, help="passes over the training set")
    recipe.add_argument(
        "--lr", type=float, default=None, dest="learning_rate", help="step size; the largest one of a schedule"
    )
    recipe.add_argument("--batch-size", type=int, default=None, help="rows of a step")
    recipe.add_argument(
        "--tail",
        choices=CHOICES["tail"],
        default=None,
        help="whether the step with the rows that fill no batch (96 of 60,000 by 256) is an epoch's first or its last; "
        "first, because at learning rate 1.0 a last step on few rows decides the accuracy of the whole run (first)",
    )
    recipe.add_argument("--optimizer", choices=CHOICES["optimizer"], default=None, help="how gradients become steps")
    recipe.add_argument("--schedule", choices=CHOICES["schedule"], default=None, help="constant, or up and down to 0")
    recipe.add_argument(
        "--augment", choices=CHOICES["augment"], default=None, help="mirror: half of each epoch's images"
    )
    recipe.add_argument("--seed", type=int, default=None, help="of initial weights and order of rows")
    recipe.add_argument(
        "--statistics", choices=("population", "running"), default=None, help="which are exported (population)"
    )
    places = parser.add_argument_group("places")
    places.add_argument("--device", choices=("auto", "cpu", "cuda"), default=None, help="where it trains (auto)")
    places.add_argument(
        "--compile",
        action="store_true",
        default=None,
        help="send full batches through PyTorch's compiler, which needs a C++ compiler on a CPU and rounds otherwise",
    )
    places.add_argument("--data-dir", type=Path, default=None, help="folder with Fashion-MNIST's four files")
    places.add_argument("--models-dir", type=Path, default=Path("models"), help="where the version appears (models)")
    places.add_argument("--name", default=None, help="of the model (lenet-bn)")
    places.add_argument("--out", type=Path, default=None, help="the run's own folder (runs/NAME-TIME-seedSEED)")
    places.add_argument("--resume", type=Path, default=None, metavar="RUN", help="continue a run that was stopped")
    places.add_argument("--tensorboard", action="store_true", help="write TensorBoard events into the run's folder too")
    parser.set_defaults(run=_run_train_and_export)


def _add_verify(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="repeat on a published version what was proved when it was made",
        description="Repeat on a published version what was proved when it was made: digests, graph, golden answers, "
        "accuracy and, with the run's weights, the whole chain. The Python function foldserve.verify is another thing: "
        "it compares two networks, and foldserve.verify_onnx two ONNX files.",
    )
    parser.add_argument(
        "model",
        type=Path,
        help="version folder such as models/lenet-bn/1, model.onnx in one, or models/lenet-bn: its newest version",
    )
    parser.add_argument("--weights", type=Path, default=None, help="model.safetensors of the run, for the whole chain")
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with Fashion-MNIST's four files")
    parser.set_defaults(run=_run_verify)


def _run_train_and_export(arguments: argparse.Namespace) -> None:
    if arguments.tensorboard:
        require_tensorboard()
    revision, environment = provenance.revision(), provenance.environment()
    session, dataset = _session(arguments, revision, environment)
    with contextlib.closing(session.run):
        _train_and_publish(session, dataset, arguments, revision, environment)


def _train_and_publish(
    session: Session,
    dataset: FashionMNIST,
    arguments: argparse.Namespace,
    revision: str,
    environment: Mapping[str, Any],
) -> None:
    run, config, resumed = session.run, session.config, session.resumed
    recipe = config.recipe
    done = 0 if resumed is None else len(resumed.epochs)
    print(
        f"data {dataset.source}, device {session.device.type}, run {run.path}" + (f", epoch {done} done" * bool(done))
    )
    events = Events(run.path, done + 1) if arguments.tensorboard else None
    with session.resumable():
        trained = train(
            recipe,
            dataset,
            session.device,
            lambda record: _on_epoch(run, events, record, recipe.epochs),
            resumed=resumed,
            on_snapshot=session.save,
            compiles=config.compiled,
        )
        weights = run.write_weights(trained.weights)
        print(_accuracies(trained))
        packaged = package(trained, dataset, revision=revision, environment=environment, created=datetime.now(UTC))
        print(f"\n{packaged.report.table()}\n\n{packaged.parity.table()}\n")
        card = _write_pictures(run, config.name, recipe, trained, packaged, revision, dataset)
        folder = publish(arguments.models_dir, config.name, packaged.model, packaged.manifest)
        run.write(CARD_NAME, card.encode())  # the run is finished: resumed once more, it would publish once more
    print(f"published {folder} ({len(packaged.model):,} bytes); weights {weights}")


def _session(
    arguments: argparse.Namespace, revision: str, environment: Mapping[str, Any]
) -> tuple[Session, FashionMNIST]:
    """Return the session that the flags describe, new or resumed, and its data."""
    if arguments.resume is not None:
        _refuse_beside_resume(arguments)
        dataset = load(arguments.data_dir)
        return resume(arguments.resume, arguments.device, dataset), dataset
    name = arguments.name or "lenet-bn"
    _check_name(name)
    recipe = _recipe(arguments)
    device = resolve_device(arguments.device or "auto")
    dataset = load(arguments.data_dir)
    folder = arguments.out or default_folder(name, recipe.seed, datetime.now(UTC))
    config = RunConfig(
        name=name,
        recipe=recipe,
        device=device.type,
        compiled=bool(arguments.compile),
        data_source=dataset.source,
        digests=dataset.digests,
        revision=revision,
        environment=environment,
    )
    return start(folder, config, device), dataset


def _refuse_beside_resume(arguments: argparse.Namespace) -> None:
    flags = {"learning_rate": "lr"}
    options = [
        "preset",
        "name",
        "out",
        "compile",
        *(field.name for field in dataclasses.fields(Recipe) if field.name != "preset"),
    ]
    for option in options:
        if getattr(arguments, option) is not None:
            flag = "--" + flags.get(option, option).replace("_", "-")
            raise ConfigError(f"{flag} with --resume: a run continues with the flags of its start; leave {flag} out")


def _run_verify(arguments: argparse.Namespace) -> None:
    folder = version_folder(arguments.model)
    checks = reverify(folder, lambda: load(arguments.data_dir), arguments.weights, print)
    failed = [check.what for check in checks if check.outcome is Outcome.FAILED]
    if failed:
        raise VerifyError(f"{folder}: {len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
    passed = sum(check.outcome is Outcome.PASSED for check in checks)
    print(f"{folder}: {passed} of {len(checks)} checks passed, {len(checks) - passed} not checked")


def _check_name(name: str) -> None:
    """Refuse before the training what the publisher would refuse after it."""
    try:
        check_name(name)
    except ArtifactError as err:
        raise ConfigError(f"--name: {err}") from err


def _recipe(arguments: argparse.Namespace) -> Recipe:
    options = {field.name for field in dataclasses.fields(Recipe)} - {"preset"}
    return Recipe.from_preset(arguments.preset or "book", **{option: getattr(arguments, option) for option in options})


def _on_epoch(run: RunFolder, events: Events | None, record: EpochRecord, epochs: int) -> None:
    run.append(record)
    if events is not None:
        events.append(record)
    print(
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  loss {record.loss:.4f}  "
        f"train {record.train_accuracy:.4f}  test {record.test_accuracy:.4f}  "
        f"{record.examples_per_second:,.0f} examples/s  {record.wall_examples_per_second:,.0f} by the wall clock",
        flush=True,
    )


def _write_pictures(
    run: RunFolder, name: str, recipe: Recipe, trained: Trained, packaged: Package, revision: str, dataset: FashionMNIST
) -> str:
    """Leave the pictures beside the weights and return the model card."""
    named = run_model(packaged.model, dataset.test_images)["class_id"][:, 0]
    counts = plots.confusion(dataset.test_labels, named, len(CLASS_NAMES))
    run.write("curves.png", plots.curves_png(trained.history.epochs))
    run.write("confusion.png", plots.confusion_png(counts, CLASS_NAMES))
    return model_card(name, recipe.as_dict(), packaged.manifest, revision, counts, CLASS_NAMES)


def _accuracies(trained: Trained) -> str:
    exported = trained.weights.recipe.statistics
    lines = [
        f"test accuracy {_WITH[kind]} {accuracy:.4f}" + ("  <- exported" if kind == exported else "")
        for kind, accuracy in trained.test_accuracy.items()
    ]
    return "\n".join(lines)
