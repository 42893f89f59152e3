"""Golden answers: clear examples of every class, and a comparison that lets nothing by."""

import numpy as np
import pytest
import torch

from foldserve.format.golden import Golden
from foldserve.training import golden
from foldserve.training.errors import VerifyError


def known(answers: dict[str, np.ndarray]) -> Golden:
    return Golden({}, answers, golden.TOLERANCE)


def random_logits(rows: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, (rows, 10))


def test_the_chosen_images_cover_every_class() -> None:
    """Sixteen rows, in order, none twice, all ten classes among them, though one class is rare."""
    labels = np.sort(np.random.default_rng(1).integers(0, 9, 500))
    labels[-1] = 9
    chosen = golden.choose(labels, np.eye(10)[labels] * 8)
    assert len(chosen) == len(set(chosen.tolist())) == 16
    assert chosen.tolist() == sorted(chosen.tolist())
    assert set(labels[chosen]) == set(range(10))


def test_a_near_tie_is_never_chosen() -> None:
    """An image on which another processor might rightly name another class proves nothing."""
    labels = np.arange(40) % 10
    logits = np.eye(10)[labels] * 8
    logits[:10] = 0.0  # the first of each class are ties
    assert golden.choose(labels, logits).min() >= 10


def test_one_class_without_a_clear_image_keeps_nothing_from_being_chosen() -> None:
    """Of 300 classes one has ties alone: it is named, and sixteen clear images of others are chosen."""
    labels = np.arange(600) % 300
    logits = np.eye(300)[labels] * 8
    logits[labels == 7] = 0.0
    assert golden.unclear_classes(labels, logits).tolist() == [7]
    chosen = golden.choose(labels, logits)
    assert len(chosen) == 16
    assert 7 not in labels[chosen]
    assert golden.are_clear(logits)[chosen].all()


def test_a_network_that_decides_nothing_has_scores_to_prove() -> None:
    """Whether that is worth serving is judged elsewhere; what was trained is not lost over it."""
    labels = np.arange(40) % 10
    assert len(golden.choose(labels, np.zeros((40, 10)))) == 16
    assert golden.unclear_classes(labels, np.zeros((40, 10))).tolist() == list(range(10))


def test_expected_answers_are_the_float64_ones_rounded_once() -> None:
    """Compared with PyTorch's softmax in double precision; huge logits do not overflow."""
    logits = random_logits(20) * 100
    answers = golden.expected_outputs(logits)
    exact = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    np.testing.assert_array_equal(answers["logits"], logits.astype(np.float32))
    np.testing.assert_allclose(answers["probabilities"], exact, rtol=2**-23, atol=1e-37)
    np.testing.assert_array_equal(answers["class_id"], logits.argmax(1)[:, None])


def test_answers_within_the_tolerance_pass() -> None:
    """A few units in the last place are no difference."""
    answers = golden.expected_outputs(random_logits(16))
    nudged = {name: np.nextafter(a, np.float32(9)) if a.dtype.kind == "f" else a for name, a in answers.items()}
    golden.check(known(answers), nudged)


@pytest.mark.parametrize("output", ["logits", "probabilities", "class_id"])
def test_a_wrong_output_is_named(output: str) -> None:
    """One value of one output beyond the tolerance is enough, and the message says which output."""
    answers = golden.expected_outputs(random_logits(16))
    changed = answers[output].copy()
    changed[3, 0] += 1e-3 if changed.dtype.kind == "f" else 1
    with pytest.raises(VerifyError, match=output):
        golden.check(known(answers), {**answers, output: changed})


def test_not_a_number_is_no_agreement() -> None:
    """NaN compares false with everything; that must not read as within the tolerance."""
    answers = golden.expected_outputs(random_logits(16))
    broken = answers["logits"].copy()
    broken[0, 0] = np.nan
    with pytest.raises(VerifyError, match="logits"):
        golden.check(known(answers), {**answers, "logits": broken})


def test_a_missing_output_is_named() -> None:
    """A model that answers with less than was promised does not pass."""
    answers = golden.expected_outputs(random_logits(16))
    with pytest.raises(VerifyError, match="'class_id' on the golden inputs: got nothing"):
        golden.check(known(answers), {name: answers[name] for name in ("logits", "probabilities")})
