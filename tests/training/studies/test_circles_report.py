"""The report on the two circles."""

import pytest

from foldserve.training.errors import ConfigError
from foldserve.training.studies import circles_report


def test_circles_report_has_tables_and_pictures(tmp_path):
    """Two seeds of a few steps leave every file, and a single seed is refused."""
    circles_report.report(tmp_path, 2, steps=10, tell=lambda _: None)
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
