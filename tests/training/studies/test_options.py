"""Flags that all studies share."""

import argparse

import pytest

from foldserve.training.errors import ConfigError
from foldserve.training.studies.options import check_options


@pytest.mark.parametrize("flag", ["seeds", "jobs"])
def test_counts_below_one_are_refused(flag):
    """The message names the flag."""
    arguments = argparse.Namespace(**{"seeds": 1, "jobs": 1, "device": "cpu", flag: 0})
    with pytest.raises(ConfigError, match=f"--{flag} 0: expected at least 1"):
        check_options(arguments)
