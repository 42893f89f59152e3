"""The committed results: what their figures say is what stands beside them, and on every page that quotes them."""

import json
import re
from pathlib import Path

import pytest

from foldserve.training.studies.learn import catalogue
from foldserve.training.studies.learn.command import STUDIES
from foldserve.training.studies.learn.page import page

ROOT = Path(__file__).parents[4]
RESULTS = ROOT / "docs/results/learn"
WALK = (ROOT / "docs/learn/README.md").read_text()
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def held_of(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("lesson", catalogue.LESSONS, ids=lambda lesson: lesson.name)
def test_findings_follow_from_their_figures(lesson):
    """An edited figure, or an edited finding, is seen; a full figure has five seeds and the revision that made it."""
    held = held_of(lesson.name)
    assert [finding.as_dict() for finding in lesson.read(held["figures"]).findings] == held["findings"]
    assert held["says"] == lesson.says
    for origin in held["origins"]:
        assert re.fullmatch(r"[0-9a-f]{40}", origin["revision"]), "made by code that was not committed"
        assert origin["command"].startswith("foldserve learn ")
        assert "--quick" not in origin["command"]
    if lesson.seeds:
        groups = held["figures"].get("arms") or held["figures"].get("errors") or held["figures"]["runs"]
        counts = [len(group) for group in groups.values()] if isinstance(groups, dict) else [len(groups)]
        assert lesson.name == "kalman" or min(counts) >= 5
    assert (RESULTS / f"{lesson.name}.png").is_file() == (lesson.draw is not None)


def test_the_page_of_results_is_made_of_them():
    """Word for word."""
    assert (RESULTS / "README.md").read_text() == page(catalogue.LESSONS, RESULTS)


def rows_of_walk() -> dict[str, tuple[str, str]]:
    """Name of each lesson -> what is said and what was measured, by the table of the walk."""
    rows = re.findall(r"^\| ([^|]+) \| `foldserve learn ([a-z-]+)` \| ([^|]+) \|$", WALK, re.MULTILINE)
    return {name: (said, measured) for said, name, measured in rows if name not in STUDIES}


def test_every_lesson_has_its_row_in_the_walk():
    """What the book says, the command, what we measured."""
    assert sorted(rows_of_walk()) == sorted(lesson.name for lesson in catalogue.LESSONS)


@pytest.mark.parametrize("lesson", catalogue.LESSONS, ids=lambda lesson: lesson.name)
def test_numbers_of_the_walk_are_those_that_were_measured(lesson):
    """Each number in the row of a lesson stands in what it found; the row has one at least."""
    found = " ".join(f"{each['what']} {each['measured']} {each['said']}" for each in held_of(lesson.name)["findings"])
    known = set(_NUMBER.findall(found))
    named = _NUMBER.findall(rows_of_walk()[lesson.name][1])
    assert named
    assert [number for number in named if number not in known] == []


def test_pictures_of_the_walk_exist():
    """Each is shown from where the lesson wrote it."""
    shown = re.findall(r"\]\((\.\./results/[^)]+\.png)\)", WALK)
    assert len(shown) >= 8
    assert [path for path in shown if not (ROOT / "docs/learn" / path).is_file()] == []


def test_the_python_of_the_walk_runs():
    """The layer as the book calls it, and as we do."""
    blocks = re.findall(r"```python\n(.*?)```", WALK, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/learn/README.md", "exec"), {})
