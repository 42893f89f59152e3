"""Flags that all studies share."""

import argparse
from pathlib import Path

import pytest

from foldserve.training import command
from foldserve.training.errors import ConfigError
from foldserve.training.studies.options import check_options


@pytest.mark.parametrize("flag", ["seeds", "jobs"])
def test_counts_below_one_are_refused(flag):
    """The message names the flag."""
    arguments = argparse.Namespace(**{"seeds": 1, "jobs": 1, "device": "cpu", "out": Path("x"), flag: 0})
    with pytest.raises(ConfigError, match=f"--{flag} 0: expected at least 1"):
        check_options(arguments)


@pytest.mark.parametrize("study", [["circles"], ["compare"], ["best"], ["learn", "kalman"], ["inspect", "models"]])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_trained(study, tmp_path, capsys):
    """Where --out is a file, or lies below one."""
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert command.main([*study, "--out", str(out)]) == 2
        assert f"--out {out}: {tmp_path / 'file'} is no folder that can be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
