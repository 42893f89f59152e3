"""What a run leaves in its own folder: configuration, figures epoch by epoch, checkpoint, and the trained weights.

The pipeline's record for people and for `verify --weights`; the service never sees it. Every file appears whole, except
`metrics.csv`, which grows by one flushed line an epoch so that a killed run still shows how far it came. A run that was
killed is opened again and goes on from its checkpoint; one that has its model card is finished. One process at a time
holds the folder, by a lock of the system that ends with it.
"""

import csv
import fcntl
import io
import json
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from .artifact import TEMPORARY, write_whole
from .checkpoint import CHECKPOINT_NAME
from .config import Recipe
from .errors import ArtifactError, CheckpointError, ConfigError
from .fit import EpochRecord
from .weights import WEIGHTS_NAME, Weights, weights_to_bytes

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.csv"
CARD_NAME = "MODEL_CARD.md"  # written last, after publishing


class RunFolder:
    """A run's own folder, made new and held until `close`, or until the process ends.

    Args:
        folder: where; must not exist, or be empty.

    Raises:
        ConfigError: something is there already, or another process holds the folder.
        ArtifactError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._hold(folder, "--out")
            _remove_left_behind(folder)
            if any(folder.iterdir()):
                raise ConfigError(
                    f"--out {folder}: is not empty, and a run is never overwritten; choose another folder"
                )
        except OSError as err:
            raise ArtifactError(f"--out {folder}: cannot be made ({err.strerror or err}); choose another") from err

    def _hold(self, folder: Path, flag: str) -> None:
        """Lock `folder`; the system takes the lock back however this process ends."""
        handle = os.open(folder, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            self.close()
            raise ConfigError(
                f"{flag} {folder}: another process is training there; let it end, or choose another folder"
            ) from err
        self.folder = folder

    @classmethod
    def reopen(cls, folder: Path) -> "RunFolder":
        """Return the run in `folder`, which was begun and not finished; what a killed process left half-done is gone.

        Raises:
            ConfigError: no run was begun there, it is finished, or another process holds it.
            ArtifactError: the folder cannot be opened.
        """
        if not (folder / CONFIG_NAME).is_file():
            raise ConfigError(f"--resume {folder}: holds no {CONFIG_NAME}; expected the folder of a run that was begun")
        run = cls.__new__(cls)
        try:
            run._hold(folder, "--resume")
            _remove_left_behind(folder)
        except OSError as err:
            raise ArtifactError(f"--resume {folder}: cannot be opened ({err.strerror or err})") from err
        if (folder / CARD_NAME).exists():
            raise ConfigError(f"--resume {folder}: this run is finished and published; start a new one with --out")
        return run

    @property
    def checkpoint(self) -> Path:
        """Where last.pt lies, once an epoch is done."""
        return self.folder / CHECKPOINT_NAME

    def read_config(self) -> dict[str, Any]:
        """Return what `write_config` wrote.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self.folder / CONFIG_NAME
        try:
            config: dict[str, Any] = json.loads(path.read_bytes())
            return config | {"recipe": Recipe(**config["recipe"])}
        except (OSError, KeyError, TypeError, ValueError) as err:
            raise CheckpointError(f"{path} is not the configuration of a run ({err!r}); start a new one") from err

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json: what really ran, where and on what data."""
        self.write(CONFIG_NAME, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())

    def append(self, record: EpochRecord) -> None:
        """Add one epoch's line to metrics.csv and flush it."""
        path = self.folder / METRICS_NAME
        try:
            is_new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                file.write(_csv([record], with_header=is_new))
        except OSError as err:
            raise _refused(path, err) from err

    def rewrite(self, records: Sequence[EpochRecord]) -> None:
        """Make metrics.csv state `records` alone: the process that was killed may have written a line less or more."""
        if records:
            self.write(METRICS_NAME, _csv(records, with_header=True).encode())
        else:
            (self.folder / METRICS_NAME).unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the run whole and return its path.

        Raises:
            ArtifactError: the disk refuses.
        """
        path = self.folder / name
        try:
            write_whole(path, content)
        except OSError as err:
            raise _refused(path, err) from err
        return path

    def write_weights(self, weights: Weights) -> Path:
        """Write model.safetensors and return its path."""
        return self.write(WEIGHTS_NAME, weights_to_bytes(weights))


def _remove_left_behind(folder: Path) -> None:
    """Remove files that a process which was killed had not finished writing."""
    for left in folder.glob(f"{TEMPORARY}*"):
        left.unlink(missing_ok=True)


def _csv(records: Sequence[EpochRecord], *, with_header: bool) -> str:
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, [field.name for field in fields(EpochRecord)])
    if with_header:
        rows.writeheader()
    rows.writerows(record.as_dict() for record in records)
    return text.getvalue()


def default_folder(name: str, seed: int, now: datetime) -> Path:
    """Return runs/<name>-<time>-seed<seed>."""
    return Path("runs") / f"{name}-{now:%Y%m%dT%H%M%S}-seed{seed}"


def _refused(path: Path, err: OSError) -> ArtifactError:
    """Return the error with the way on: a run that has its configuration was begun and can be resumed."""
    begun = path.name != CONFIG_NAME
    remedy = (
        f"free the disk and go on with --resume {path.parent}" if begun else "free the disk or choose another --out"
    )
    return ArtifactError(f"{path} cannot be written ({err.strerror or err}); {remedy}")
