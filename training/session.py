"""The start of a training: a new run in a folder of its own, or one that was killed, opened again where it stood.

Between the command line and the pipeline. It writes and reads the run's folder; it does not train.
"""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import read_checkpoint, write_checkpoint
from .config import Recipe
from .dataset import FashionMNIST
from .device import resolve_device
from .errors import CheckpointError, DivergenceError
from .fit import Snapshot
from .run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run that may train.

    Attributes:
        run: its folder.
        name: of the model that it will publish.
        recipe: what it follows.
        device: where it trains.
        digests: of the data.
        compiles: whether its full batches go through PyTorch's compiler; it rounds otherwise, so a run keeps to it.
        resumed: where it stood, None for the first epoch.
    """

    run: RunFolder
    name: str
    recipe: Recipe
    device: torch.device
    digests: Mapping[str, str]
    compiles: bool = False
    resumed: Snapshot | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Write last.pt."""
        write_checkpoint(self.run.checkpoint, snapshot, self.recipe, self.digests)

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Say how to go on, when the block is interrupted, and what is left, when it diverges."""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"; go on with --resume {shlex.quote(str(self.run.folder))}") from None
        except DivergenceError as err:
            kept = self.run.checkpoint
            left = f"{kept} keeps the last good epoch" if kept.exists() else "no epoch was finished"
            raise DivergenceError(f"{err}; {left}") from err


def start(
    folder: Path,
    name: str,
    recipe: Recipe,
    device: torch.device,
    dataset: FashionMNIST,
    made_by: Mapping[str, Any],
    *,
    compiles: bool = False,
) -> Session:
    """Return a new run in `folder`, its config.json written.

    Raises:
        ConfigError: the folder holds something.
        ArtifactError: the disk refuses.
    """
    run = RunFolder(folder)
    data = {"source": dataset.source, "sha256": dict(dataset.digests)}
    how = {"device": device.type, "compiled": compiles}
    run.write_config({"name": name, "recipe": recipe.as_dict(), **how, "data": data, **made_by})
    return Session(run=run, name=name, recipe=recipe, device=device, digests=dataset.digests, compiles=compiles)


def resume(folder: Path, device: str | None, dataset: FashionMNIST) -> Session:
    """Return the run in `folder` where its last checkpoint stands; at its start when no epoch was finished.

    The number of CPU threads becomes the run's: another number sums in another order.

    Args:
        folder: of a run that was begun and not finished.
        device: `auto`, `cpu` or `cuda`; None for the run's own.
        dataset: the data it was begun with.

    Raises:
        ConfigError: nothing was begun there, or it is finished.
        CheckpointError: configuration or checkpoint are damaged or do not belong together, or the data are others.
        DeviceError: the device is not there.
    """
    run = RunFolder.reopen(folder)
    config = run.read_config()
    recipe: Recipe = config["recipe"]
    try:
        name, own_device, compiles = config["name"], config["device"], bool(config.get("compiled"))
        digests, threads = config["data"]["sha256"], int(config["environment"]["threads"])
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"{folder}: config.json lacks or garbles an entry ({err!r}); start a new run") from err
    if digests != dict(dataset.digests):
        raise CheckpointError(f"{folder} was begun on other data than {dataset.source}; give the same by --data-dir")
    chosen = resolve_device(device or own_device)
    torch.set_num_threads(threads)
    resumed = read_checkpoint(run.checkpoint, recipe, dataset.digests) if run.checkpoint.exists() else None
    run.rewrite(() if resumed is None else resumed.epochs)
    return Session(
        run=run,
        name=name,
        recipe=recipe,
        device=chosen,
        digests=dataset.digests,
        compiles=compiles,
        resumed=resumed,
    )
