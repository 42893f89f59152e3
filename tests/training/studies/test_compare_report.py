"""The report on made-up measurements: every file, and what is said of an unfinished study."""

import csv
import io
import json

from foldserve.training.studies.arms import cases_of
from foldserve.training.studies.compare_report import report_files
from tests.support.measurements import CASES, STUDIES, measured_as, whole_study


def test_a_whole_study_gives_every_file():
    """Tables in Markdown, figures as CSV and JSON, and eight pictures that the report shows."""
    files = report_files(CASES, whole_study())
    pictures = {name for name in files if name.endswith(".png")}
    text = files["README.md"].decode()
    assert len(pictures) == 8
    assert all(files[name].startswith(b"\x89PNG") and f"({name})" in text for name in pictures)
    assert len(list(csv.DictReader(io.StringIO(files["runs.csv"].decode())))) == len(CASES)
    assert json.loads(files["figures.json"])["planned"] == len(CASES)
    assert "not measured yet" not in text
    assert "the loss became nan" in text
    assert "A batch of 1 is refused: *--batch-size 1 with --norm torch" in text


def test_a_cut_study_says_what_is_missing():
    """One arm alone: the others are named as not measured, and no question is answered."""
    arm = STUDIES["seeds"].arms[0]
    some = {case.key: measured_as(case) for case in cases_of([arm], 3)}
    text = report_files(CASES, some)["README.md"].decode()
    assert f"3 of {len(CASES)} trainings are measured" in text
    assert "not measured yet" in text
    assert text.count("It waits for trainings that are not measured yet.") == 2
    assert "| not judged |" in text  # three seeds are too few for the gates
    assert "| **no** |" not in text
