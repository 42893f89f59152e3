"""What a run leaves in its own folder: configuration, figures epoch by epoch, checkpoint, and the trained weights.

The pipeline's record for people and for `verify --weights`; the service never sees it. Every file appears whole, except
`metrics.csv`, which grows by one flushed line an epoch so that a killed run still shows how far it got. A run that was
killed is opened again and continues from its checkpoint; one that has its model card is finished. One process at a time
holds the folder, by a lock of the system that ends with it.
"""

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from .checkpoint import CHECKPOINT_NAME
from .config import Recipe
from .data.request import DataRequest
from .disk import TEMPORARY, FolderLock, write_file
from .errors import ArtifactError, CheckpointError, ConfigError
from .fit import EpochRecord
from .weights import WEIGHTS_NAME, Weights, weights_to_bytes

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.csv"
CARD_NAME = "MODEL_CARD.md"  # written last, after publishing
DEFAULT_RUNS = Path("runs")  # where runs are whose folder is not given


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What config.json states: what runs, where and on what data.

    Attributes:
        name: of the model that the run will publish.
        models_dir: where it will publish, an absolute path.
        min_accuracy: below which it publishes nothing; None for the rule of `pipeline.check_worth`.
        recipe: what it follows.
        init: path of the weights that it starts from; empty: drawn by the seed.
        device: `cpu` or `cuda`.
        compiled: whether its full batches go through PyTorch's compiler; it rounds otherwise, so a run keeps to it.
        data_source: of the data, in words.
        digests: file name -> SHA-256 of the data.
        request: which data those are, and how they were split.
        revision: of the code that started it.
        environment: the machine and the versions, as `provenance.environment` has them.
        identity: of the run, by which it knows the versions that it published; empty in runs of before.
    """

    name: str
    models_dir: str
    min_accuracy: float | None
    recipe: Recipe
    init: str = ""
    device: str
    compiled: bool
    data_source: str
    digests: Mapping[str, str]
    revision: str
    environment: Mapping[str, Any]
    request: DataRequest = field(default_factory=DataRequest)
    identity: str = ""

    def to_bytes(self) -> bytes:
        """Return the content of config.json."""
        values = vars(self) | {"recipe": self.recipe.as_dict()}
        request = values.pop("request")
        data = {"source": values.pop("data_source"), "sha256": dict(values.pop("digests"))}
        data["request"] = request.as_dict()
        return (json.dumps({**values, "data": data}, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what the config.json at `path` states.

        Raises:
            CheckpointError: the file cannot be read, or lacks an entry.
        """
        try:
            values = {"models_dir": "models", "min_accuracy": None} | json.loads(path.read_bytes())
            data = values.pop("data")
            recipe = Recipe(**values.pop("recipe"))
            request = DataRequest.read(data.get("request", {}))
            config = cls(recipe=recipe, data_source=data["source"], digests=data["sha256"], request=request, **values)
            int(config.environment["threads"])
        except (OSError, KeyError, TypeError, ValueError) as err:
            raise CheckpointError(f"{path} is not the configuration of a run ({err!r}); start a new run") from err
        return config


def config_of(run: Path) -> Path:
    """Return the path of the config.json in the folder `run`.

    Raises:
        ConfigError: no run was started there.
    """
    path = run / CONFIG_NAME
    if not path.is_file():
        raise ConfigError(f"--resume {run}: holds no {CONFIG_NAME}; expected the folder of a run that was started")
    return path


class RunFolder:
    """A run's own folder, held by this process until `close` or until the process ends.

    Args:
        path: of the folder.
        flag: that named it, for messages.

    Raises:
        ConfigError: another process holds the folder.
        ArtifactError: it cannot be opened.
    """

    def __init__(self, path: Path, flag: str) -> None:
        self.path = path
        try:
            self._lock = FolderLock(path, waits=False)
        except BlockingIOError as err:
            raise ConfigError(
                f"{flag} {path}: another process is training there; let it end, or choose another folder"
            ) from err
        except OSError as err:
            raise ArtifactError(f"{flag} {path}: cannot be opened ({err.strerror or err})") from err
        for unfinished in path.glob(f"{TEMPORARY}*"):  # left by a process that was killed
            unfinished.unlink(missing_ok=True)

    @classmethod
    def create_default(cls, name: str, seed: int, now: datetime) -> Self:
        """Return a new run in a new folder runs/<name>-<time>-seed<seed>, with -2, -3, ... where that one is taken.

        Raises:
            ArtifactError: the folder cannot be made.
        """
        base = f"{name}-{now:%Y%m%dT%H%M%S}-seed{seed}"
        for number in itertools.count(1):
            path = DEFAULT_RUNS / (base if number == 1 else f"{base}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as err:
                raise ArtifactError(f"{path}: cannot be made ({err.strerror or err}); choose another --out") from err
            return cls(path, "--out")
        raise AssertionError("the numbers do not end")

    @classmethod
    def create(cls, path: Path) -> Self:
        """Return a new run in the folder `path`, which must be empty or not there.

        Raises:
            ConfigError: the folder is not empty, or another process holds it.
            ArtifactError: it cannot be made.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise ArtifactError(f"--out {path}: cannot be made ({err.strerror or err}); choose another") from err
        run = cls(path, "--out")
        if any(path.iterdir()):
            run.close()
            raise ConfigError(f"--out {path}: is not empty, and a run is never overwritten; choose another folder")
        return run

    @classmethod
    def reopen(cls, path: Path, *, trains_on: bool = False) -> Self:
        """Return the run in the folder `path`; what a killed process left half-written is removed.

        Args:
            path: of the folder.
            trains_on: whether the run will train further than it was started for: then it may be finished.

        Raises:
            ConfigError: no run was started there, it is finished, or another process holds it.
            ArtifactError: the folder cannot be opened.
        """
        config_of(path)
        run = cls(path, "--resume")
        if (path / CARD_NAME).exists() and not trains_on:
            run.close()
            raise ConfigError(
                f"--resume {path}: this run is finished and published; train it on with --epochs N, or start a new one"
            )
        return run

    def close(self) -> None:
        """Let other processes open the folder; a second time does nothing."""
        self._lock.release()

    @property
    def checkpoint(self) -> Path:
        """Where last.pt lies, once an epoch is done."""
        return self.path / CHECKPOINT_NAME

    def append(self, record: EpochRecord) -> None:
        """Add one epoch's line to metrics.csv and flush it.

        Raises:
            ArtifactError: the disk refuses.
        """
        path = self.path / METRICS_NAME
        try:
            with path.open("a", newline="", encoding="utf-8") as file:
                file.write(_csv([record], with_header=file.tell() == 0))
        except OSError as err:
            raise ArtifactError(f"{path} cannot be written ({err.strerror or err}); {self._remedy()}") from err

    def rewrite(self, records: Sequence[EpochRecord]) -> None:
        """Make metrics.csv state `records` alone: a process that was killed may have written a line less or more."""
        if records:
            self.write(METRICS_NAME, _csv(records, with_header=True).encode())
        else:
            (self.path / METRICS_NAME).unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the run whole and return its path.

        Raises:
            ArtifactError: the disk refuses.
        """
        return write_file(self.path / name, content, self._remedy())

    def unfinish(self) -> None:
        """Take the model card of a run that trains on away, so that a stop is a stop and not an end."""
        (self.path / CARD_NAME).unlink(missing_ok=True)

    def write_weights(self, weights: Weights) -> Path:
        """Write model.safetensors and return its path."""
        return self.write(WEIGHTS_NAME, weights_to_bytes(weights))

    def _remedy(self) -> str:
        """Return what to do when the disk refuses: a run that has its configuration can be resumed."""
        if (self.path / CONFIG_NAME).exists():
            return f"free the disk and go on with --resume {self.path}"
        return "free the disk or choose another --out"


def _csv(records: Sequence[EpochRecord], *, with_header: bool) -> str:
    text = io.StringIO(newline="")
    measured = [name for name, value in records[0].as_dict().items() if value is not None]
    rows = csv.DictWriter(text, measured, extrasaction="ignore")
    if with_header:
        rows.writeheader()
    rows.writerows(record.as_dict() for record in records)
    return text.getvalue()
