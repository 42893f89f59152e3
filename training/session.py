"""A training session: a new run in a folder of its own, or one that was killed, resumed where it stood.

Between the command line and the pipeline. It writes and reads the run's folder; it does not train.
"""

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from .artifact import check_publishable
from .checkpoint import read_checkpoint, write_checkpoint
from .config import Recipe
from .dataset import Dataset
from .device import resolve_device
from .errors import (
    CheckpointError,
    ConfigError,
    DivergenceError,
    Interrupted,
    NetworkError,
    RankError,
    TrainingError,
)
from .fit import Snapshot, check_ranks
from .ranks import ALONE, Ranks
from .run_folder import CONFIG_NAME, RunConfig, RunFolder
from .user_model.foreign import cause, place

_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run that may train.

    Attributes:
        run: its folder.
        config: what its config.json states.
        device: where it trains now.
        resumed: where it stood, None for the first epoch.
    """

    run: RunFolder
    config: RunConfig
    device: torch.device
    resumed: Snapshot | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Write last.pt."""
        write_checkpoint(self.run.checkpoint, snapshot, self.config.recipe, self.config.digests)

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Say how to continue, when the block is interrupted or a rank is lost, and what is left, when it diverges.

        SIGTERM is an interruption like Ctrl-C, where this is the main thread, which alone gets signals.
        """
        takes_signals = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, signal.default_int_handler) if takes_signals else None
        try:
            with failures_named(self.config.recipe):
                yield
        except KeyboardInterrupt:
            folder = shlex.quote(str(self.run.path))
            raise Interrupted(
                f"\ninterrupted; no unfinished model was published; go on with --resume {folder}"
            ) from None
        except RankError as err:
            raise lost(err, self.run.path) from err
        except DivergenceError as err:
            last = self.run.checkpoint
            kept = f"{last} keeps the last good epoch" if last.exists() else "no epoch was finished"
            raise DivergenceError(f"{err}; {kept}") from err
        finally:
            if takes_signals:
                signal.signal(signal.SIGTERM, before)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Say, when what the block does with the trained weights fails, that they are kept and how to publish them."""
        folder = shlex.quote(str(self.run.path))
        try:
            yield
        except TrainingError as err:
            if "--resume" not in str(err):
                kept = f"publish it with --resume {folder}, or train it on with --epochs N too"
                err.args = (f"{err}; what was trained is kept: {kept}", *err.args[1:])
            raise


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of a block that takes a moment and must not be left in its middle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in _STOPS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    # What came is not raised: after the block there is nothing left to stop.


@contextmanager
def failures_named(recipe: Recipe) -> Iterator[None]:
    """Raise NetworkError where the block runs out of memory, or the user's own network raises something in it."""
    try:
        yield
    except (TrainingError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as err:
        if isinstance(err, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(err):
            raise NetworkError(
                f"there is not enough memory for a step of {recipe.batch_size} rows; start a new run with a smaller "
                "--batch-size"
            ) from err
        if recipe.is_own_network:
            raise NetworkError(f"--network {recipe.network}: it {cause(err)}{place(err)}; mend it") from err
        raise


def lost(err: RankError, folder: Path) -> RankError:
    """Return `err` with the way to continue the run in `folder`."""
    return RankError(f"{err}; go on with --resume {shlex.quote(str(folder))}, on as many ranks as there are now")


def start(path: Path | None, config: RunConfig, device: torch.device) -> Session:
    """Return a session of a new run in the folder `path`, or in one of its own; its config.json is written.

    Raises:
        ConfigError: the folder is not empty.
        ArtifactError: the disk refuses.
    """
    if path is None:
        run = RunFolder.create_default(config.name, config.recipe.seed, datetime.now(UTC))
    else:
        run = RunFolder.create(path)
    run.write(CONFIG_NAME, config.to_bytes())
    return Session(run=run, config=config, device=device)


def resume(
    path: Path,
    dataset: Dataset,
    device: str | None = None,
    *,
    epochs: int | None = None,
    min_accuracy: float | None = None,
    name: str | None = None,
    models_dir: Path | None = None,
    ranks: Ranks = ALONE,
) -> Session:
    """Return a session of the run in the folder `path` where its last checkpoint stands, or at its start without one.

    The number of CPU threads becomes the run's: another number sums in another order. Ranks keep the number that they
    were started with, and may be more or fewer than before.

    Args:
        path: of a run that was started.
        dataset: the data it was started with.
        device: `auto`, `cpu` or `cuda`; None for the run's own.
        epochs: train to this epoch instead of the run's own last one; a finished run trains on then.
        min_accuracy: in place of the run's own.
        name: of the model, likewise.
        models_dir: where it publishes, likewise.
        ranks: that go on with it.

    Raises:
        ConfigError: no run was started there, it is finished, or it has `epochs` epochs already; or it cannot publish.
        CheckpointError: configuration or checkpoint are damaged or do not belong together, or the data are others.
        DeviceError: the device is not there.
    """
    run = RunFolder.reopen(path, trains_on=epochs is not None)
    try:
        config = RunConfig.read(path / CONFIG_NAME)
        if config.digests != dict(dataset.digests):
            raise CheckpointError(_other_data(path, config, dataset))
        chosen = resolve_device(device or config.device)
        has_checkpoint = run.checkpoint.exists()
        resumed = read_checkpoint(run.checkpoint, config.recipe, config.digests) if has_checkpoint else None
        config = _with_places(config, name, models_dir)
        check_publishable(Path(config.models_dir), config.name, dataset.class_names)
        config = _changed(config, len(resumed.epochs) if resumed else 0, epochs, min_accuracy)
        check_ranks(config.recipe, ranks, compiles=config.compiled)
        if ranks.world_size == 1:
            torch.set_num_threads(int(config.environment["threads"]))
        run.rewrite(resumed.epochs if resumed else ())
        run.write(CONFIG_NAME, config.to_bytes())
        run.unfinish()
    except BaseException:
        run.close()
        raise
    return Session(run=run, config=config, device=chosen, resumed=resumed)


def _other_data(path: Path, config: RunConfig, dataset: Dataset) -> str:
    """Return in a sentence which data differ from those that the run in the folder `path` was started with."""
    names = sorted(config.digests.keys() | dataset.digests.keys())
    others = [name for name in names if config.digests.get(name) != dataset.digests.get(name)]
    remedy = "bring back those that were there, or start a new run"
    if not config.request.data:
        remedy = "give the folder with the same files by --data-dir"
    return f"{path} was started with other data than {dataset.source} holds now ({', '.join(others)}); {remedy}"


def _with_places(config: RunConfig, name: str | None, models_dir: Path | None) -> RunConfig:
    if name is not None:
        config = replace(config, name=name)
    return config if models_dir is None else replace(config, models_dir=str(models_dir.absolute()))


def _changed(config: RunConfig, done: int, epochs: int | None, min_accuracy: float | None) -> RunConfig:
    """Return `config` with what `--resume` may change."""
    if min_accuracy is not None:
        config = replace(config, min_accuracy=min_accuracy)
    if epochs is None:
        return config
    if epochs <= done:
        raise ConfigError(f"--epochs {epochs} with --resume: the run has {done} epochs; expected more, to train on")
    return replace(config, recipe=replace(config.recipe, epochs=epochs))
