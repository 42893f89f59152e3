"""Golden answers in the manifest: exact encoding, and a comparison that lets nothing by."""

import base64
import json

import numpy as np
import pytest

from foldserve.format.errors import FormatError, GoldenError
from foldserve.format.golden import Golden, read_golden
from foldserve.format.tensors import DTYPES, decode_tensor, encode_tensor
from tests.support import artifacts

GOLDEN = Golden({"image": artifacts.images(16)}, artifacts.classify(artifacts.images(16)), {"cpu": 1e-5, "cuda": 1e-4})


@pytest.mark.parametrize("datatype", DTYPES)
def test_a_tensor_survives_the_manifest(datatype: str) -> None:
    """Type, shape and every bit come back, and the bytes are little-endian."""
    array = (np.arange(6) % 2).astype(DTYPES[datatype]).reshape(2, 3)
    encoded = json.loads(json.dumps(encode_tensor(array)))
    assert encoded["datatype"] == datatype
    assert base64.b64decode(encoded["data"]) == array.astype(array.dtype.newbyteorder("<")).tobytes()
    decoded = decode_tensor(encoded)
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


def test_encoding_agrees_with_one_written_apart() -> None:
    """The tests' own encoder, which shares no code with this one, writes the same."""
    assert {name: encode_tensor(array) for name, array in GOLDEN.outputs.items()} == artifacts.encode(GOLDEN.outputs)


@pytest.mark.parametrize("change", [{"datatype": "FP8"}, {"shape": [7]}, {"shape": ["x"]}, {"data": "?"}, {"data": 1}])
def test_a_garbled_tensor_is_refused(change: dict[str, object]) -> None:
    """A cut or edited manifest is said to be one."""
    with pytest.raises(FormatError, match="cannot be decoded"):
        decode_tensor({**encode_tensor(np.zeros((2, 3), np.float32)), **change})


def test_golden_answers_survive_the_manifest() -> None:
    """What training writes, the service reads."""
    read = read_golden(json.loads(json.dumps(GOLDEN.as_dict())))
    assert read.rows == 16
    assert read.tolerance == GOLDEN.tolerance
    for ours, theirs in ((GOLDEN.inputs, read.inputs), (GOLDEN.outputs, read.outputs)):
        assert {name: array.tobytes() for name, array in ours.items()} == {n: a.tobytes() for n, a in theirs.items()}


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_the_tolerance_is_of_the_largest_value(provider: str) -> None:
    """Just inside passes and says by how much, just outside does not, whatever the magnitude of the small values."""
    largest = float(np.abs(GOLDEN.outputs["logits"]).max())
    for factor in (0.5, 2.0):
        off = GOLDEN.outputs["logits"].copy()
        off[3, 0] += np.float32(factor * GOLDEN.tolerance[provider] * largest)
        answers = {**GOLDEN.outputs, "logits": off}
        if factor > 1:
            with pytest.raises(GoldenError, match="'logits' is off by"):
                GOLDEN.check(answers, provider)
        else:
            deviations = GOLDEN.check(answers, provider)
            assert deviations["logits"] == pytest.approx(0.5 * GOLDEN.tolerance[provider], rel=0.2)
            assert deviations["probabilities"] == 0.0
            assert "class_id" not in deviations


def test_another_class_is_refused_with_its_row() -> None:
    """Integers have no tolerance."""
    named = GOLDEN.outputs["class_id"].copy()
    named[5] = (named[5] + 1) % 10
    with pytest.raises(GoldenError, match=r"golden row 5, expected .* \(1 of 16 rows differ\)"):
        GOLDEN.check({**GOLDEN.outputs, "class_id": named}, "cpu")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_agreement(value: float) -> None:
    """NaN compares false with everything; that must not read as within the tolerance."""
    broken = GOLDEN.outputs["probabilities"].copy()
    broken[0, 0] = value
    with pytest.raises(GoldenError, match="'probabilities' holds NaN or infinity"):
        GOLDEN.check({**GOLDEN.outputs, "probabilities": broken}, "cpu")


@pytest.mark.parametrize("change", ["missing", "shape", "dtype"])
def test_an_answer_of_another_form_is_refused(change: str) -> None:
    """A model that answers with less, or with something else, than was promised does not pass."""
    logits = {"missing": None, "shape": GOLDEN.outputs["logits"][:, :1], "dtype": GOLDEN.outputs["logits"].astype("f8")}
    answers = {**GOLDEN.outputs, "logits": logits[change]}
    with pytest.raises(GoldenError, match=r"'logits' on the golden inputs: got .*, expected float32 \(16, 10\)"):
        GOLDEN.check({name: array for name, array in answers.items() if array is not None}, "cpu")
