"""The report on the two circles."""

import re

import pytest

from foldserve.training.errors import ConfigError
from foldserve.training.studies import circles_report


def test_circles_report_has_tables_and_pictures(tmp_path):
    """Two seeds of a few steps leave every file, and a single seed is refused."""
    lines = []
    circles_report.report(tmp_path, 2, steps=100, tell=lines.append)
    assert re.fullmatch(r"with BN     epoch 100  loss 0\.\d{4}  test accuracy [01]\.\d{4}", lines[0])
    assert lines[1].startswith("without BN  epoch 100  loss 0.")
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "curves.png",
        "data.png",
        "figures.json",
        "regions.png",
        "runs.csv",
    }
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 1 + 8
    with pytest.raises(ConfigError, match="--seeds 1"):
        circles_report.report(tmp_path, 1)


def test_norms_that_do_not_learn_sooner_fail_the_gates():
    """The mean over the seeds decides, and a network that never learns counts as the last."""
    steps = {"torch": [12, 20], "none": [None, 40]}
    rows = [
        {"varied": varied, "norm": norm, "steps_to_learn": step}
        for varied in ("weights", "data")
        for norm, each in steps.items()
        for step in each
    ]
    assert [gate.is_passed for gate in circles_report.gates_of(rows)] == [True, True]
    swapped = [{**row, "norm": {"torch": "none", "none": "torch"}[row["norm"]]} for row in rows]
    assert [gate.is_passed for gate in circles_report.gates_of(swapped)] == [False, False]
