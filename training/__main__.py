"""The command line: parse, call, print. Everything it does is done, and tested, in the modules it calls.

Errors of ours are one message on stderr and the exit code of their class; Ctrl-C ends with 130.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training import plots, provenance
from training.artifact import check_name, publish
from training.card import model_card
from training.config import NORMS, POOLS, PRESETS, TAILS, Recipe
from training.dataset import CLASS_NAMES, FashionMNIST, load
from training.device import resolve_device
from training.errors import ArtifactError, ConfigError, TrainingError, VerifyError
from training.fit import EpochRecord
from training.fold import cli as fold_command
from training.pipeline import Package, Trained, package, train
from training.recheck import Outcome, recheck
from training.run import Run, default_folder
from training.verify import run as run_model

_WITH = {
    "running": "with running statistics",
    "population": "with population statistics",
    "none": "without norms",
}

INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code: 0, that of the error's class, or 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except TrainingError as err:
        print(err, file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; nothing unfinished was published", file=sys.stderr)
        return INTERRUPTED
    return 0


def train_and_export() -> None:
    """Run the subcommand of the same name; the console script."""
    sys.exit(main(["train-and-export", *sys.argv[1:]]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="From data to a proved model file.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train_and_export(subparsers)
    _add_verify(subparsers)
    fold_command.add_parser(subparsers)
    return parser


def _add_train_and_export(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train-and-export",
        help="train, fold, export, verify and publish as the next version",
    )
    recipe = parser.add_argument_group("recipe (what is left out comes from the preset)")
    recipe.add_argument("--preset", choices=sorted(PRESETS), default="book", help="a named set of good values (book)")
    recipe.add_argument("--pool", choices=POOLS, default=None, help="pooling between the convolutions")
    recipe.add_argument("--norm", choices=NORMS, default=None, help="batch normalization: PyTorch's, by hand, none")
    recipe.add_argument("--epochs", type=int, default=None, help="passes over the training set")
    recipe.add_argument("--lr", type=float, default=None, dest="learning_rate", help="constant step size of SGD")
    recipe.add_argument("--batch-size", type=int, default=None, help="rows of a step")
    recipe.add_argument(
        "--tail",
        choices=TAILS,
        default=None,
        help="whether the step with the rows that fill no batch (96 of 60,000 by 256) is an epoch's first or its last; "
        "first, because at learning rate 1.0 a last step on few rows decides the accuracy of the whole run (first)",
    )
    recipe.add_argument("--seed", type=int, default=None, help="of initial weights and order of rows")
    recipe.add_argument(
        "--statistics", choices=("population", "running"), default=None, help="which are exported (population)"
    )
    places = parser.add_argument_group("places")
    places.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where it trains (auto)")
    places.add_argument("--data-dir", type=Path, default=None, help="folder with Fashion-MNIST's four files")
    places.add_argument("--models-dir", type=Path, default=Path("models"), help="where the version appears (models)")
    places.add_argument("--name", default="lenet-bn", help="of the model (lenet-bn)")
    places.add_argument("--out", type=Path, default=None, help="the run's own folder (runs/NAME-TIME-seedSEED)")
    parser.set_defaults(run=_run_train_and_export)


def _add_verify(subparsers: Any) -> None:
    parser = subparsers.add_parser("verify", help="repeat on a published version what was proved when it was made")
    parser.add_argument("model", type=Path, help="version folder such as models/lenet-bn/1, or model.onnx in one")
    parser.add_argument("--weights", type=Path, default=None, help="model.safetensors of the run, for the whole chain")
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with Fashion-MNIST's four files")
    parser.set_defaults(run=_run_verify)


def _run_train_and_export(arguments: argparse.Namespace) -> None:
    _check_name(arguments.name)
    recipe = _recipe(arguments)
    device = resolve_device(arguments.device)
    dataset = load(arguments.data_dir)
    now = datetime.now(UTC)
    run = Run(arguments.out or default_folder(arguments.name, recipe.seed, now))
    revision, environment = provenance.revision(), provenance.environment()
    made_by = {"revision": revision, "environment": environment}
    run.write_config(_config(arguments.name, recipe, dataset, device.type) | made_by)
    print(f"data {dataset.source}, device {device.type}, run {run.folder}")
    trained = train(recipe, dataset, device, lambda record: _on_epoch(run, record, recipe.epochs))
    weights = run.write_weights(trained.weights)
    print(_accuracies(trained))
    packaged = package(trained, dataset, revision=revision, environment=environment, created=datetime.now(UTC))
    print(f"\n{packaged.report.table()}\n\n{packaged.parity.table()}\n")
    _write_summary(run, arguments.name, recipe, trained, packaged, revision, dataset)
    folder = publish(arguments.models_dir, arguments.name, packaged.model, packaged.manifest)
    print(f"published {folder} ({len(packaged.model):,} bytes); weights {weights}")


def _run_verify(arguments: argparse.Namespace) -> None:
    checks = recheck(arguments.model, lambda: load(arguments.data_dir), arguments.weights, print)
    failed = [check.what for check in checks if check.outcome is Outcome.FAILED]
    if failed:
        raise VerifyError(f"{arguments.model}: {len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
    passed = sum(check.outcome is Outcome.PASSED for check in checks)
    print(f"{arguments.model}: {passed} of {len(checks)} checks passed, {len(checks) - passed} not checked")


def _check_name(name: str) -> None:
    """Refuse before the training what the publisher would refuse after it."""
    try:
        check_name(name)
    except ArtifactError as err:
        raise ConfigError(f"--name: {err}") from err


def _recipe(arguments: argparse.Namespace) -> Recipe:
    options = ("pool", "norm", "epochs", "learning_rate", "batch_size", "tail", "seed", "statistics")
    return Recipe.from_preset(arguments.preset, **{option: getattr(arguments, option) for option in options})


def _config(name: str, recipe: Recipe, dataset: FashionMNIST, device: str) -> dict[str, Any]:
    return {
        "name": name,
        "recipe": recipe.as_dict(),
        "device": device,
        "data": {"source": dataset.source, "sha256": dict(dataset.digests)},
    }


def _on_epoch(run: Run, record: EpochRecord, epochs: int) -> None:
    run.append(record)
    print(
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  loss {record.loss:.4f}  "
        f"train {record.train_accuracy:.4f}  test {record.test_accuracy:.4f}  "
        f"{record.examples_per_second:,.0f} examples/s  {record.wall_examples_per_second:,.0f} by the wall clock",
        flush=True,
    )


def _write_summary(
    run: Run, name: str, recipe: Recipe, trained: Trained, packaged: Package, revision: str, dataset: FashionMNIST
) -> None:
    """Leave the pictures and the model card beside the weights."""
    named = run_model(packaged.model, dataset.test_images)["class_id"][:, 0]
    counts = plots.confusion(dataset.test_labels, named, len(CLASS_NAMES))
    run.write("curves.png", plots.curves_png(trained.history.epochs))
    run.write("confusion.png", plots.confusion_png(counts, CLASS_NAMES))
    card = model_card(name, recipe.as_dict(), packaged.manifest, revision, counts, CLASS_NAMES)
    run.write("MODEL_CARD.md", card.encode())


def _accuracies(trained: Trained) -> str:
    exported = trained.weights.recipe.statistics
    lines = [
        f"test accuracy {_WITH[kind]} {accuracy:.4f}" + ("  <- exported" if kind == exported else "")
        for kind, accuracy in trained.test_accuracy.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
