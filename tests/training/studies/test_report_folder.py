"""Where studies report unless told."""

from pathlib import Path

from foldserve.training.studies.options import report_folder

ROOT = Path(__file__).parents[3]


def test_a_study_leaves_no_folder_of_ours_in_a_users_project(tmp_path, monkeypatch):
    """In a checkout beside the committed figures, elsewhere where runs lie too."""
    monkeypatch.chdir(ROOT)
    assert (ROOT / report_folder("compare") / "figures.json").is_file()
    monkeypatch.chdir(tmp_path)
    assert report_folder("learn") == Path("runs/learn")
