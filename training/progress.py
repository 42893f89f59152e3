"""How far an epoch is, as a bar on a terminal; where the output goes elsewhere, nothing is drawn."""

from typing import Any

from tqdm import tqdm


class Progress:
    """A bar for each epoch.

    Args:
        rows: of an epoch.
        done: epochs before the first one.
        epochs: of the whole training.
    """

    def __init__(self, rows: int, done: int, epochs: int) -> None:
        self.epochs = epochs
        self._rows = rows
        self._epoch = done
        self._bar: Any = None

    def step(self, rows: int) -> None:
        """Count the `rows` of a step; the first one of an epoch opens its bar."""
        if self._bar is None:
            self._epoch += 1
            name = f"epoch {self._epoch}/{self.epochs}"
            self._bar = tqdm(total=self._rows, desc=name, unit=" images", disable=None, leave=False)
        self._bar.update(rows)

    def close(self) -> None:
        """Take the bar away, at the end of an epoch too; a second time does nothing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
