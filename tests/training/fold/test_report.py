"""The report as data and as text; the set of refusal codes is closed."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import Proof, RefusalCode, Report, Site, fold, fold_onnx
from foldserve.training.fold import report as report_module
from foldserve.training.fold.refusals import REMEDIES, Refusal
from tests.support.fold_cases import randomise
from tests.support.random_onnx import random_graph

SCHEMA = json.loads(Path(report_module.__file__).with_name("report.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)

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


def test_the_schema_names_what_a_report_has() -> None:
    """Every field of the three classes, and nothing else; codes are the closed list."""
    for schema, kind in [(SCHEMA, Report), (SCHEMA["$defs"]["site"], Site), (SCHEMA["$defs"]["proof"], Proof)]:
        fields = {field.name for field in dataclasses.fields(kind)}
        assert set(schema["properties"]) == set(schema["required"]) == fields
    assert SCHEMA["$defs"]["site"]["properties"]["code"]["enum"] == [None, *CODES.split()]


@pytest.mark.parametrize("seed", [3, 5, 8])
def test_real_reports_keep_to_the_schema(seed: int) -> None:
    """Folded and refused norms, with and without a proof, from both front ends; a report with a slip does not pass."""
    Draft202012Validator.check_schema(SCHEMA)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)]
    of_module = fold(randomise(nn.Sequential(*layers)), (torch.randn(2, 3, 8, 8),)).report
    nothing = fold(nn.Sequential(nn.ReLU()).eval(), (torch.randn(2, 3),)).report
    for one in (of_module, nothing, fold_onnx(random_graph(seed)[0]).report, report()):
        VALIDATOR.validate(json.loads(one.to_json()))
    assert of_module.proof is not None
    assert len(of_module.proof.sizes) == 2
    slip = json.loads(of_module.to_json())
    slip["folded"][0]["proof_error"] = 1.0
    assert not VALIDATOR.is_valid(slip)
