"""The table of promises is whole, its controls can fail, and a few of its rows run in seconds."""

import pytest

from benchmarks.trust import weakened
from benchmarks.trust.report import is_green, page
from benchmarks.trust.row import Bench, Measured, Row
from benchmarks.trust.rows import EXPECTED, PARTS, ROWS

QUICK = [row for row in ROWS if row.is_quick]
PSEUDO = {"auto", "good-start", "unsafe", "as-root"}  # the measurement itself asks for what has to work


def test_every_promise_of_the_reference_has_a_row():
    """R1 to R33 and S1 to S25, each once; a row that cannot be run says why."""
    assert {row.id for row in ROWS} >= EXPECTED
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert all(row.why_not for row in ROWS if row.measure is None)


def test_every_row_that_is_run_has_a_control():
    """A guard that is switched off, by a setting or by a change that exists, or a control of the measurement's own."""
    for row in ROWS:
        if row.measure is None or row.own_control:
            continue
        assert bool(row.flags) != bool(row.change), row.id
        assert not row.change or row.change in {*weakened.CHANGES, "leaking", *PSEUDO}, row.id


def test_every_part_is_named():
    """Parts are numbered without a gap, so that all of them can be run."""
    assert list(range(1, len(PARTS) + 1)) == PARTS


def row_of(outcome):
    """A row whose measurement is `outcome(bench)`."""
    return Row("R1", "a promise", "a figure", outcome, flags="--off")


def broken(_: Bench) -> Measured:
    raise RuntimeError("it did not start")


def test_a_control_that_does_not_fail_is_red():
    """Neither a measurement that passes without its guard, nor one that breaks, shows that the guard does anything."""
    blind = row_of(lambda bench: Measured("fine", is_kept=True))
    seeing = row_of(lambda bench: Measured("fine", is_kept=bench.flags != "--off"))
    assert not blind.control(Bench()).is_kept
    assert seeing.control(Bench()).is_kept
    assert not row_of(broken).control(Bench()).is_kept
    assert not row_of(broken).run(Bench()).is_kept


@pytest.mark.parametrize(
    ("runs", "is_kept"),
    [
        ({"1": (True, True), "2": (True, True)}, True),
        ({"1": (True, True)}, False),
        ({"1": (True, True), "2": (False, True)}, False),
        ({"1": (True, False), "2": (True, True)}, False),
        ({}, False),
    ],
)
def test_what_was_not_run_not_kept_or_not_controlled_is_red(runs, is_kept):
    """Both worker counts, both the promise and its control."""
    row = row_of(broken)
    kept = {"runs": {count: {"is_kept": kept, "control_fails": fails} for count, (kept, fails) in runs.items()}}
    assert is_green(row, kept) == is_kept
    assert not is_green(row, None)
    assert "Red: R1." in page([row], {})


@pytest.mark.slow
@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.id)
def test_a_promise_is_kept_and_seen_to_be_broken(row):
    """The short form: one worker, a short load, and the same with the guard switched off."""
    found = row.run(Bench(seconds=0.5))
    assert found.is_kept, found.figure
    control = row.control(Bench(seconds=0.5))
    assert control.is_kept, control.figure
