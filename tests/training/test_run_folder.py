"""A run's folder: never overwritten, held by one process, readable line by line."""

import contextlib
import csv
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from foldserve.training.errors import ArtifactError, ConfigError
from foldserve.training.fit import EpochRecord
from foldserve.training.run_folder import RunFolder


def record(epoch: int) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        loss=0.5,
        train_accuracy=0.8,
        test_accuracy=0.7,
        train_seconds=1.0,
        examples_per_second=10.0,
        wall_examples_per_second=9.0,
    )


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    """A folder with anything in it is refused, and what lies there stays."""
    with contextlib.closing(RunFolder.create(tmp_path / "run")) as run:
        run.write("config.json", b'{"seed": 1}')
    with pytest.raises(ConfigError, match="never overwritten"):
        RunFolder.create(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"seed": 1}


def test_an_empty_folder_may_be_given(tmp_path: Path) -> None:
    """What a caller has made for the run is no earlier run."""
    assert RunFolder.create(tmp_path).path == tmp_path


def test_two_processes_never_write_one_run(tmp_path: Path) -> None:
    """Neither to begin nor to resume it while another process holds it; kill -9 gives it back at once."""
    folder = tmp_path / "run"
    program = "import sys, pathlib; from foldserve.training.run_folder import RunFolder\n"
    program += "run = RunFolder.create(pathlib.Path(sys.argv[1]))\n"
    program += "run.write('config.json', b'{}'); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for other, flag in ((RunFolder.create, "--out"), (RunFolder.reopen, "--resume")):
            with pytest.raises(ConfigError, match=f"{flag} .*run: another process is training there"):
                other(folder)
        holder.kill()
    assert RunFolder.reopen(folder).path == folder


def test_a_run_that_was_closed_can_be_opened_again(tmp_path: Path) -> None:
    """Held until then, in the same process too."""
    run = RunFolder.create(tmp_path)
    run.write("config.json", b"{}")
    with pytest.raises(ConfigError, match="another process"):
        RunFolder.reopen(tmp_path)
    run.close()
    assert RunFolder.reopen(tmp_path).path == tmp_path


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """A file in the way is said with its path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"--out .*file/run: cannot be made"):
        RunFolder.create(tmp_path / "file" / "run")


def test_metrics_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    """After each epoch the file holds one more whole line under one header."""
    run = RunFolder.create(tmp_path)
    for epoch in (1, 2, 3):
        run.append(record(epoch))
        with (tmp_path / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["epoch"]) for row in rows] == list(range(1, epoch + 1))
    assert float(rows[-1]["test_accuracy"]) == 0.7


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """The system's own reason is passed on, with the file it befell."""
    run = RunFolder.create(tmp_path)
    run.write("config.json", b"{}")
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match=r"metrics\.csv cannot be written \(No space left on device\).* --resume "):
        run.append(record(1))


def test_a_runs_folder_is_named_after_model_time_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that start in one second have folders of their own."""
    monkeypatch.chdir(tmp_path)
    runs = [RunFolder.create_default("lenet-bn", 7, datetime(2026, 1, 2, 3, 4, 5)) for _ in range(3)]
    names = [f"runs/lenet-bn-20260102T030405-seed7{suffix}" for suffix in ("", "-2", "-3")]
    assert [str(run.path) for run in runs] == names
