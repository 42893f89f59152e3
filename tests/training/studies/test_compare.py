"""The command `compare` without a training."""

import argparse

from foldserve.training.studies import compare
from tests.support.measurements import CASES


def test_report_only_trains_nothing(tmp_path, capsys):
    """The command writes a report on an empty store, with empty pictures and tables, and says where."""
    parser = argparse.ArgumentParser()
    compare.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["compare", "--report-only", "--out", str(tmp_path), "--device", "cpu"])
    arguments.run(arguments)
    assert "README.md" in capsys.readouterr().out
    assert not (tmp_path / "runs.jsonl").exists()
    assert f"0 of {len(CASES)} trainings are measured" in (tmp_path / "README.md").read_text()
