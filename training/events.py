"""The figures of a run as TensorBoard events, with `--tensorboard`.

The one module that needs the package tensorboard; `metrics.csv` holds the same figures without it.
"""

import importlib.util
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .fit import EpochRecord

FOLDER_NAME = "tensorboard"


class Events:
    """Writes each epoch's figures under `<run folder>/tensorboard`.

    Args:
        folder: of the run.
        first_epoch: the first one to write; what an earlier process wrote of it and of later ones is hidden.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, first_epoch: int = 1) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / FOLDER_NAME), purge_step=first_epoch)

    def append(self, record: EpochRecord) -> None:
        """Write one epoch's figures and flush them."""
        for name, value in record.as_dict().items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()


def require_tensorboard() -> None:
    """Raise ConfigError when the package is missing; called before anything is trained."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "--tensorboard: the package tensorboard is not installed; pip install tensorboard, or leave the flag out "
            "(metrics.csv holds the same figures)"
        )
