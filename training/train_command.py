"""The command `train`: from the flags to a published version, with a run's folder beside it.

It puts the parts together and prints; what each part does is done, and tested, in its own module.
"""

import argparse
import contextlib
import dataclasses
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foldserve.arguments import add_json
from foldserve.format.manifest import read_manifest
from foldserve.json_document import fill
from foldserve.patience import shown

from . import plots, provenance
from .artifact import check_publishable, publish, version_of_run
from .card import model_card
from .config import CHOICES, NETWORKS, PRESETS, Recipe
from .data.assemble import share_out
from .data.flags import add_flags, add_picture_flags, model_name, request_of
from .data.opening import open_data, require_outside
from .data.request import DataRequest
from .dataset import CLASS_NAMES, Dataset, load
from .device import resolve_device
from .errors import ConfigError, DatasetError, DivergenceError, RankError
from .events import Events, require_tensorboard
from .fit import EpochRecord, Snapshot, check_batches, check_ranks
from .initial import read_initial
from .model import build, with_norms_of
from .parity import run_model
from .pipeline import PROOF_ROWS, Package, Trained, change_since_newest, check_worth, package, train
from .progress import Progress
from .promotion import promotion_of
from .ranks import ALONE, Ranks, launched
from .rehearsal import rehearse
from .run_folder import CARD_NAME, DEFAULT_RUNS, RunConfig, RunFolder, config_of
from .session import Session, failures_named, lost, resume, start, undisturbed

STATISTICS_TEXT = {
    "running": "with running statistics",
    "population": "with population statistics",
    "none": "without norms",
}
HELP = {
    "pool": "pooling between the convolutions",
    "norm": "PyTorch's batch normalization, by hand, none",
    "tail": "whether the step with the rows that fill no batch (96 of 60,000 by 256) is an epoch's first or its last; "
    "first, because at learning rate 1.0 a last step on few rows decides the accuracy of the whole run (first)",
    "optimizer": "how gradients become steps",
    "schedule": "constant, or up and down to 0",
    "augment": "mirror: half of each epoch's images",
    "variance": "which one hand-written norms average: unbiased as PyTorch, biased as the book (unbiased)",
    "statistics": "which are exported: population, running, or the best by the images held out (the best, with --data)",
    "keep": "whose weights are exported: the last epoch's, or those of the best one by the images held out (last)",
}


def place(text: str) -> Path:
    """Return the path that a flag gives, which an empty variable is not."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: expected a path; was it a variable that is not set?")
    return Path(text)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand `train`, and return its parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        aliases=["train-and-export"],
        help="train, fold, export, verify and publish as the next version",
    )
    recipe = parser.add_argument_group("recipe (what is left out comes from the preset)")
    recipe.add_argument("--preset", choices=sorted(PRESETS), help="good values (book; with --data own-data)")
    recipe.add_argument(
        "--network", help="lenet-bn, mlp, resnet-small, or package.module:factory for a network of your own (lenet-bn)"
    )
    recipe.add_argument("--epochs", type=int, help="passes over the training set; with --resume: train on to this one")
    recipe.add_argument(
        "--init",
        metavar="FILE",
        help="weights to start from, such as a run's model.safetensors; the number of classes may differ",
    )
    recipe.add_argument("--lr", type=float, dest="learning_rate", help="step size; the largest one of a schedule")
    recipe.add_argument("--batch-size", type=int, help="rows of a step")
    recipe.add_argument("--seed", type=int, help="of initial weights and order of rows")
    for name, choices in CHOICES.items():
        given = tuple(choice for choice in choices if (name, choice) != ("statistics", "none"))
        recipe.add_argument(f"--{name}", choices=given, help=HELP[name])
    add_flags(parser)
    add_picture_flags(parser)
    places = parser.add_argument_group("places")
    places.add_argument("--device", metavar="DEVICE", help="where it trains: auto, cpu, cuda or cuda:1 (auto)")
    places.add_argument(
        "--compile",
        action="store_true",
        default=None,
        help="send full batches through PyTorch's compiler, which needs a C++ compiler on a CPU and rounds otherwise",
    )
    places.add_argument("--data-dir", type=place, help="folder with Fashion-MNIST's four files")
    places.add_argument("--models-dir", type=place, help="where the version appears (models)")
    places.add_argument("--name", help="of the model (lenet-bn; with --data that of the folder or file)")
    places.add_argument(
        "--min-accuracy",
        type=float,
        help="publish nothing below this accuracy on the images held out, else on the test images (clearly above "
        "always naming the most frequent class)",
    )
    places.add_argument(
        "--promote", action="store_true", help="let it go live although it is worse than the version before"
    )
    places.add_argument("--out", type=place, help="the run's own folder (runs/NAME-TIME-seedSEED)")
    places.add_argument(
        "--resume",
        type=place,
        metavar="RUN",
        help="continue a stopped run; it publishes where it was to, or where --models-dir and --name say",
    )
    places.add_argument("--tensorboard", action="store_true", help="write TensorBoard events into the run's folder too")
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Train and publish as the flags say; started by torchrun, train on all its ranks, of which the first publishes.

    Raises:
        TrainingError: whatever can be refused is refused before a folder is made.
    """
    with launched() as ranks:
        if ranks.rank == 0:
            _lead(arguments, ranks)
        else:
            _follow(arguments, ranks)


def train_alone(arguments: argparse.Namespace) -> Path:
    """Do the same in this process alone, and return the folder of the version.

    Raises:
        TrainingError: likewise.
    """
    return _lead(arguments, ALONE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Order:
    """What the first rank tells the others to train."""

    recipe: Recipe
    device: str
    request: DataRequest
    digests: Mapping[str, str]
    resumed: Snapshot | None
    initial: Mapping[str, Tensor] | None
    run: Path


def _follow(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Train what the first rank says, and leave words and files to it."""
    order: _Order | None = ranks.told_by_first()
    if order is None:  # it has said why
        return
    try:
        dataset = _data(order.request, arguments.data_dir)
        if dict(dataset.digests) != dict(order.digests):
            raise DatasetError(f"rank {ranks.rank} has other data ({dataset.source}) than rank 0; give both the same")
        device = ranks.device(torch.device(order.device))
        with failures_named(order.recipe):
            train(order.recipe, dataset, device, resumed=order.resumed, initial=order.initial, ranks=ranks)
    except RankError as err:
        raise lost(err, order.run) from err
    except DivergenceError:  # the first rank says it
        return


def _lead(arguments: argparse.Namespace, ranks: Ranks) -> Path:
    order = None
    try:
        session, dataset, revision, environment = _begin(arguments, ranks)
        config = session.config
        order = _Order(
            recipe=config.recipe,
            device=session.device.type,
            request=config.request,
            digests=dict(config.digests),
            resumed=session.resumed,
            initial=_initial(session, dataset),
            run=session.run.path,
        )
    finally:
        ranks.told_by_first(order)
    with contextlib.closing(session.run):
        return _train_and_publish(session, dataset, order, arguments, (revision, environment), ranks)


def _begin(arguments: argparse.Namespace, ranks: Ranks) -> tuple[Session, Dataset, str, Mapping[str, Any]]:
    """Return session and data, with the revision and the machine."""
    if arguments.tensorboard:
        require_tensorboard()
    if arguments.min_accuracy is not None and not 0 <= arguments.min_accuracy <= 1:
        raise ConfigError(f"--min-accuracy {arguments.min_accuracy}: expected a number from 0 to 1")
    revision, environment = provenance.revision(), provenance.environment()
    if ranks.world_size > 1:
        environment["ranks"] = ranks.world_size
    return *_session(arguments, revision, environment, ranks), revision, environment


def _train_and_publish(
    session: Session,
    dataset: Dataset,
    order: _Order,
    arguments: argparse.Namespace,
    made_by: tuple[str, Mapping[str, Any]],
    ranks: Ranks,
) -> Path:
    run, config, resumed = session.run, session.config, session.resumed
    done = len(resumed.epochs) if resumed else 0
    where = f", epoch {done} done" if done else ""
    on = f"{session.device.type}, {ranks.world_size} ranks" if ranks.world_size > 1 else session.device.type
    for warning in dataset.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"data {dataset.source}, device {on}, run {run.path}{where}")
    events = Events(run.path, done + 1) if arguments.tensorboard else None
    progress = Progress(len(dataset.train_labels), done, config.recipe.epochs)
    with session.resumable(), contextlib.closing(progress), contextlib.ExitStack() as after:
        trained = train(
            config.recipe,
            dataset,
            ranks.device(session.device),
            lambda record: _on_epoch(run, events, progress, record, after),
            resumed=resumed,
            on_snapshot=session.save,
            on_step=progress.step,
            compiles=config.compiled,
            initial=order.initial,
            ranks=ranks,
        )
        weights = run.write_weights(trained.weights)
        after.close()
        print(_accuracies(trained))
        with session.kept():
            folder, size, manifest = _publish(session, trained, dataset, arguments, made_by)
    print(f"published {folder} ({size:,} bytes); weights {weights}")
    told = {key: manifest.get(key) for key in ("accuracy", "parity", "fold", "promotion")}
    fill(folder=str(folder), name=config.name, run=str(run.path), weights=str(weights), **told)
    return folder


def _publish(
    session: Session,
    trained: Trained,
    dataset: Dataset,
    arguments: argparse.Namespace,
    made_by: tuple[str, Mapping[str, Any]],
) -> tuple[Path, int, Mapping[str, Any]]:
    """Prove and publish what was trained; return the version's folder, the bytes of its graph, and its manifest."""
    (revision, environment), run, config = made_by, session.run, session.config
    with shown("folding, exporting and proving"):
        packaged = package(
            trained,
            dataset,
            revision=revision,
            environment=environment,
            created=datetime.now(UTC),
            split=config.request.split,
        )
    print(f"\n{packaged.report.table()}\n\n{packaged.parity.table()}\n")
    for note in packaged.notes:
        print(note)
    card = _write_pictures(session, trained, packaged, revision, dataset)
    place = Path(config.models_dir) / config.name
    earlier = version_of_run(place, config.identity, len(trained.history.epochs))
    if earlier is not None:  # the process ended between the version and the card
        run.write(CARD_NAME, card.encode())
        return earlier, len(packaged.model), read_manifest(earlier)
    check_worth(packaged.manifest, dataset, config.min_accuracy, run.path)
    change = change_since_newest(place, packaged.model, dataset)
    training = {**packaged.manifest["training"], "run": config.identity}
    manifest = {**packaged.manifest, "training": training, **promotion_of(change, is_wanted=arguments.promote)}
    with undisturbed():
        folder = publish(Path(config.models_dir), config.name, packaged.model, manifest)
        run.write(CARD_NAME, card.encode())  # the run is finished
    if change is not None:
        print(change)
    if manifest.get("promotion", {}).get("promoted") is False:
        print("NOT promoted: it does not go live by itself; `foldserve models promote` lets it")
    return folder, len(packaged.model), manifest


def _session(
    arguments: argparse.Namespace, revision: str, environment: Mapping[str, Any], ranks: Ranks
) -> tuple[Session, Dataset]:
    """Return the session that the flags describe, new or resumed, and its data."""
    if arguments.resume is not None:
        _refuse_with_resume(arguments)
        dataset = _data_of_run(arguments.resume, arguments.data_dir)
        session = resume(
            arguments.resume,
            dataset,
            arguments.device,
            epochs=arguments.epochs,
            min_accuracy=arguments.min_accuracy,
            name=arguments.name,
            models_dir=arguments.models_dir,
            ranks=ranks,
        )
        return session, dataset
    request = request_of(arguments)
    name = arguments.name
    if name is None:
        name = model_name(request.data) if request.data else "lenet-bn"
    if arguments.init == "":
        raise ConfigError("--init is empty: expected a file of weights; was it a variable that is not set?")
    models_dir = Path("models") if arguments.models_dir is None else arguments.models_dir
    if not request.data:
        check_publishable(models_dir, name, CLASS_NAMES)
    recipe = recipe_of(arguments)
    check_ranks(recipe, ranks, compiles=bool(arguments.compile))
    device = resolve_device("auto" if arguments.device is None else arguments.device)
    dataset = _data(request, arguments.data_dir)
    check_publishable(models_dir, name, dataset.class_names)
    if dataset.test_files:
        require_outside(request, {"--out": arguments.out or DEFAULT_RUNS, "--models-dir": models_dir})
    recipe = _checked(recipe, dataset, arguments.init or "")
    if arguments.statistics == "best" and dataset.val_labels is None:
        raise ConfigError("--statistics best: no images are held out to judge by; give --val FOLDER or --val 0.1")
    config = RunConfig(
        name=name,
        models_dir=str(models_dir.absolute()),
        min_accuracy=arguments.min_accuracy,
        recipe=recipe,
        init=str(Path(arguments.init).absolute()) if arguments.init else "",
        device=str(device),
        compiled=bool(arguments.compile),
        data_source=dataset.source,
        digests=dataset.digests,
        request=dataclasses.replace(request, image=dataset.picture.as_dict() if request.data else None),
        revision=revision,
        environment=environment,
        identity=uuid.uuid4().hex,
    )
    return start(arguments.out, config, device), dataset


def _data(request: DataRequest, data_dir: Path | None) -> Dataset:
    if request.data:
        if data_dir is not None:
            raise ConfigError("--data-dir with --data: the one is for Fashion-MNIST; leave one out")
        return open_data(request)
    dataset = load(data_dir)
    share = request.shares[0]
    return share_out(dataset, share, request.split_seed) if share else dataset


def _data_of_run(run: Path, data_dir: Path | None) -> Dataset:
    """Return the data that a run was started with.

    Raises:
        ConfigError: no run was started there.
        CheckpointError: its configuration is damaged.
        DatasetError: the data are gone, or are broken now.
    """
    request = RunConfig.read(config_of(run)).request
    try:
        return _data(request, data_dir)
    except DatasetError as err:
        raise DatasetError(f"--resume {run}: the data that it was started with cannot be read: {err}") from err


def _checked(recipe: Recipe, dataset: Dataset, init: str) -> Recipe:
    """Return the recipe for these data, completed by what only the network and the initial weights can tell.

    Raises:
        ConfigError: they do not fit together.
    """
    check_batches(len(dataset.train_labels), recipe)
    if recipe.keep == "best" and dataset.val_labels is None:
        raise ConfigError("--keep best: no images are held out to judge an epoch by; give --val FOLDER or --val 0.1")
    network = build(recipe, dataset.interface)
    if recipe.is_own_network:
        rehearse(recipe.network, network, dataset.interface, dataset.train_images[:PROOF_ROWS])
        recipe = with_norms_of(recipe, network)
    return dataclasses.replace(recipe, init=read_initial(Path(init), network).digest) if init else recipe


def _initial(session: Session, dataset: Dataset) -> Mapping[str, Tensor] | None:
    """Return the weights that the run starts from, None where the seed or a checkpoint gives them."""
    config = session.config
    if not config.init or session.resumed:
        return None
    initial = read_initial(Path(config.init), build(config.recipe, dataset.interface))
    if initial.digest != config.recipe.init:
        raise ConfigError(f"--init {config.init}: the file has changed since the run was started; start a new run")
    print(initial)
    return initial.tensors


def _refuse_with_resume(arguments: argparse.Namespace) -> None:
    recipe = [field.name for field in dataclasses.fields(Recipe) if field.name not in ("epochs", "init")]
    data = ("data", "val", "test", "split_seed", "size", "resize", "colour", "image")
    for option in ("out", "compile", "init", *data, *recipe):
        if getattr(arguments, option) is not None:
            flag = "--lr" if option == "learning_rate" else f"--{option.replace('_', '-')}"
            raise ConfigError(f"{flag} with --resume: a run continues with the flags of its start; leave {flag} out")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the flags and the preset make.

    Raises:
        ConfigError: a value is not allowed, or a flag does not belong to the network.
    """
    network = arguments.network or "lenet-bn"
    for flag, networks in (("pool", ("lenet-bn",)), ("norm", NETWORKS), ("variance", NETWORKS)):
        if getattr(arguments, flag) is not None and network not in networks:
            raise ConfigError(f"--{flag} with --network {network}: the network says it; leave --{flag} out")
    options = {field.name for field in dataclasses.fields(Recipe)} - {"preset", "init"}
    return Recipe.from_preset(
        arguments.preset or ("own-data" if arguments.data else "book"),
        **{option: getattr(arguments, option) for option in options},
    )


def _on_epoch(
    run: RunFolder, events: Events | None, progress: Progress, record: EpochRecord, after: contextlib.ExitStack
) -> None:
    run.append(record)
    if events is not None:
        events.append(record)
    progress.close()
    width = len(str(progress.epochs))
    held_out = record.test_accuracy is None
    judged = f"val {record.val_accuracy:.4f}" if held_out else f"test {record.test_accuracy:.4f}"
    print(
        f"epoch {record.epoch:>{width}}/{progress.epochs}  loss {record.loss:.4f}  "
        f"train {record.train_accuracy:.4f}  {judged}  "
        f"{record.examples_per_second:,.0f} examples/s  {record.wall_examples_per_second:,.0f} by the wall clock",
        flush=True,
    )
    if record.epoch == progress.epochs:
        after.enter_context(shown("measuring what was trained"))


def _write_pictures(session: Session, trained: Trained, packaged: Package, revision: str, dataset: Dataset) -> str:
    """Leave the pictures beside the weights and return the model card."""
    run, config = session.run, session.config
    predicted = run_model(packaged.model, dataset.test_images)["class_id"][:, 0]
    counts = plots.confusion(dataset.test_labels, predicted, len(dataset.class_names))
    run.write("curves.png", plots.curves_png(trained.history.epochs))
    run.write("confusion.png", plots.confusion_png(counts, dataset.class_names))
    return model_card(config.name, config.recipe.as_dict(), packaged.manifest, revision, counts, dataset)


def _accuracies(trained: Trained) -> str:
    exported = trained.weights.recipe.statistics
    keeps_best = trained.weights.recipe.keep == "best"
    lines = [f"weights of epoch {trained.epoch}, the best by the images held out"] if keeps_best else []
    for kind, accuracy in trained.test_accuracy.items():
        val = f", on the images held out {trained.val_accuracy[kind]:.4f}" if trained.val_accuracy else ""
        chosen = "  <- exported" if kind == exported else ""
        lines.append(f"test accuracy {STATISTICS_TEXT[kind]} {accuracy:.4f}{val}{chosen}")
    return "\n".join(lines)
