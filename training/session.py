"""A training session: a new run in a folder of its own, or one that was killed, resumed where it stood.

Between the command line and the pipeline. It writes and reads the run's folder; it does not train.
"""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from .checkpoint import read_checkpoint, write_checkpoint
from .dataset import Dataset
from .device import resolve_device
from .errors import CheckpointError, ConfigError, DivergenceError, Interrupted, RankError
from .fit import Snapshot, check_ranks
from .ranks import ALONE, Ranks
from .run_folder import CONFIG_NAME, RunConfig, RunFolder


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

        SIGTERM is an interruption like Ctrl-C.
        """
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
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
            signal.signal(signal.SIGTERM, before)


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
        ranks: that go on with it.

    Raises:
        ConfigError: no run was started there, it is finished, or it has `epochs` epochs already.
        CheckpointError: configuration or checkpoint are damaged or do not belong together, or the data are others.
        DeviceError: the device is not there.
    """
    run = RunFolder.reopen(path, trains_on=epochs is not None)
    try:
        config = RunConfig.read(path / CONFIG_NAME)
        if config.digests != dict(dataset.digests):
            raise CheckpointError(
                f"{path} was started with other data than {dataset.source}; bring them back, or give --data-dir"
            )
        chosen = resolve_device(device or config.device)
        has_checkpoint = run.checkpoint.exists()
        resumed = read_checkpoint(run.checkpoint, config.recipe, config.digests) if has_checkpoint else None
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


def _changed(config: RunConfig, done: int, epochs: int | None, min_accuracy: float | None) -> RunConfig:
    """Return `config` with what `--resume` may change."""
    if min_accuracy is not None:
        config = replace(config, min_accuracy=min_accuracy)
    if epochs is None:
        return config
    if epochs <= done:
        raise ConfigError(f"--epochs {epochs} with --resume: the run has {done} epochs; expected more, to train on")
    return replace(config, recipe=replace(config.recipe, epochs=epochs))
