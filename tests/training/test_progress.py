"""The bar of an epoch: on a terminal alone, and gone when the epoch's line is printed."""

import io

import pytest

from foldserve.training.progress import Progress


class Terminal(io.StringIO):
    """Standard error as a terminal has it."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_the_epoch_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar counts rows, and the second epoch has one of its own."""
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    progress = Progress(352, 3, 10)
    for _ in range(2):
        for rows in (96, 256):
            progress.step(rows)
            progress._bar.refresh()
        progress.close()
    assert "epoch 4/10:  27%" in terminal.getvalue()
    assert "epoch 5/10: 100%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_a_file_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log keeps one line an epoch."""
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    progress = Progress(352, 0, 1)
    progress.step(352)
    progress.close()
    assert log.getvalue() == ""
