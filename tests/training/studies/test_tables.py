"""Figures as text."""

import pytest

from foldserve.training.errors import ConfigError
from foldserve.training.studies.tables import Spread, csv_bytes, json_bytes, markdown_table


def test_spread_of_a_sample():
    """Mean, deviation with divisor n - 1, range; one value has no deviation and none is refused."""
    spread = Spread.of([3.0, 1.0, 2.0])
    assert (spread.n, spread.mean, spread.sd, spread.least, spread.most) == (3, 2.0, 1.0, 1.0, 3.0)
    assert Spread.of([5.0]).sd == 0.0
    assert spread.text(1) == "2.0 ± 1.0 [1.0, 3.0]"
    with pytest.raises(ConfigError, match="no values"):
        Spread.of([])


def test_tables_are_well_formed():
    """Markdown has a line of marks; CSV takes the columns of all rows; JSON refuses what is no number."""
    assert markdown_table(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    assert csv_bytes([{"a": 1}, {"b": 2}]) == b"a,b\n1,\n,2\n"
    with pytest.raises(ValueError, match="JSON"):
        json_bytes(float("nan"))
