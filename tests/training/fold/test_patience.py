"""The command may be given a time limit, and shows what it does only on a terminal and only when it takes long."""

import contextlib
import os
import signal
import sys
import termios
import time
from pathlib import Path

import pytest

from foldserve.training.errors import ConfigError, FoldError
from foldserve.training.fold.cli import add_parser, run
from foldserve.training.fold.failures import during
from foldserve.training.fold.patience import limited_to, shown


def never_ends() -> None:
    """Catch every Exception, as code that tries things does."""
    while True:
        with contextlib.suppress(Exception):
            time.sleep(1)


def test_a_limit_ends_what_swallows_exceptions() -> None:
    """The error names the step; code that catches every Exception does not keep it."""
    start = time.monotonic()
    sentence = r"not folded within 0\.2 s, while proving; nothing was written"
    with pytest.raises(FoldError, match=sentence), limited_to(0.2), during("proving"):
        never_ends()
    assert time.monotonic() - start < 5


def test_within_the_limit_nothing_happens() -> None:
    """The alarm is off again afterwards."""
    with limited_to(60):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with pytest.raises(ConfigError, match="positive"), limited_to(0):
        pass


def test_progress_is_quiet_in_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    """Where the output is no terminal, nothing is drawn, however long it takes."""
    with shown(after=0.01), during("reading the model"):
        time.sleep(0.1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("step", "expected"), [("", b"publishing: "), ("reading", b"reading: ")])
def test_progress_is_seen_on_a_terminal(step: str, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that goes on, or else the task; the line is gone once it is done."""
    main, side = os.openpty()
    termios.tcsetwinsize(side, (24, 80))
    seen, until = b"", time.monotonic() + 30
    with open(side, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with shown("publishing", after=0.01), during(step) if step else contextlib.nullcontext():
            while expected not in seen:
                assert time.monotonic() < until, seen
                seen += os.read(main, 4096)
        while not seen.endswith(b"\r\033[K"):
            seen += os.read(main, 4096)
    os.close(main)


def test_the_command_knows_the_limit(tmp_path: Path) -> None:
    """A limit that is none is refused before anything is read."""
    import argparse

    parser = add_parser(argparse.ArgumentParser().add_subparsers())
    with pytest.raises(ConfigError, match="--timeout -1"):
        run(parser.parse_args([str(tmp_path / "no.onnx"), "--timeout", "-1"]))


def test_the_limit_holds_in_code_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that takes long to import, or a factory that does, is no module that failed."""
    import argparse

    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "slow_to_make.py").write_text("import time\ndef net():\n    time.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    parser = add_parser(argparse.ArgumentParser().add_subparsers())
    for source in ("slow_to_import:net", "slow_to_make:net"):
        with pytest.raises(FoldError, match=r"not folded within 0\.2 s"):
            run(parser.parse_args([source, "--input", "1,3,8,8", "--timeout", "0.2"]))
