"""The report as data and as text; the set of refusal codes is closed."""

import json

import pytest

from foldserve.training.errors import FoldError
from foldserve.training.fold import RefusalCode, Report, Site
from foldserve.training.fold.refusals import REMEDIES, Refusal

CODES = (
    "training batch-stats lazy untracked axis multi-use graph-output shared activation-between pad pool sign quantised "
    "dtype overflow non-finite zero-denominator hook control-flow overridable training-mode spatial subgraph "
    "unknown-op no-producer unjudged"
)


def report() -> Report:
    folded = Site("conv.bn", "batch_norm", "batch_norm", into=("conv",), scale_range=(-1.0, 2.0), max_ulp=0.5)
    refused = Site.refused("tail.bn", "batch_norm_1", "batch_norm", Refusal(RefusalCode.SHARED, "two norms, one conv"))
    return Report((folded,), (refused,))


def test_codes_are_the_closed_list() -> None:
    """Scoreboards count on exactly these codes, each with a remedy."""
    assert {str(code) for code in RefusalCode} == set(CODES.split())
    assert set(REMEDIES) == set(RefusalCode)


def test_json_holds_every_site() -> None:
    """What as_dict says survives JSON, refusals with code, reason and remedy."""
    read = json.loads(report().to_json())
    assert read["folded"][0]["into"] == ["conv"]
    assert (read["refused"][0]["code"], read["refused"][0]["path"]) == ("shared", "tail.bn")
    assert read["refused"][0]["remedy"] == REMEDIES[RefusalCode.SHARED]


def test_table_names_every_norm_with_its_verdict() -> None:
    """A person finds each norm, what became of it and what to do."""
    lines = report().table().splitlines()
    assert "conv.bn" in lines[1]
    assert "into conv" in lines[1]
    assert "shared" in lines[2]
    assert "untie" in lines[2]
    assert lines[-1] == "1 folded, 1 refused"


def test_strict_names_what_had_to_stay() -> None:
    """The error of strict mode lists each refused norm; without any there is none."""
    with pytest.raises(FoldError, match=r"tail\.bn \(shared\)"):
        report().require_all_folded()
    Report(report().folded).require_all_folded()
