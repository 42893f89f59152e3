"""What the unfolded network says to the examples, and what a served graph therefore has to answer.

It is worked out once, and publishing, golden pictures, accuracy and `verify` all use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .network import Array, Feeds, Network
from .opened import Opened
from .proof import Tolerance, tolerance_of, undecided_rows
from .tasks import Meaning


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the unfolded network says to some rows, in float64 and in its own precision.

    Attributes:
        rows: indices of the examples.
        oracle: outputs by name.
        deployed: the same in the network's own precision.
    """

    rows: Array
    oracle: dict[str, Array]
    deployed: dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a served graph is held to.

    Attributes:
        rows: indices of the examples.
        expected: outputs of the task, from the float64 oracle.
        deployed: the same from the network in its own precision.
        tolerance: how far a float may be off.
        unsure: rows whose integers rounding might change, (N,) bool.
    """

    rows: Array
    expected: Mapping[str, Array]
    deployed: Mapping[str, Array]
    tolerance: Tolerance
    unsure: NDArray[np.bool_]


def ask(opened: Opened) -> Answers:
    """Return what the unfolded network says to the examples that are checked, after seeing that it says it twice."""
    rows = opened.examples.checked
    feeds = opened.examples.take_original(rows)
    opened.network.require_reproducible(feeds)
    return answers_of(opened.network, rows, feeds)


def answers_of(network: Network, rows: Array, feeds: Feeds) -> Answers:
    """Return what the unfolded network says to `feeds`, the inputs of `rows`."""
    return Answers(rows=rows, oracle=network.oracle(feeds), deployed=network.deployed(feeds))


def reference_of(answers: Answers, meaning: Meaning) -> Reference:
    """Return what a served graph has to answer where the unfolded network said `answers`.

    Raises:
        VerifyError: an output is NaN or infinite, or rounding alone moves it by more than can be proved.
    """
    expected, deployed = meaning.expected(answers.oracle), meaning.expected(answers.deployed)
    tolerance = tolerance_of(expected, deployed)
    unsure = undecided_rows(expected, deployed, tolerance)
    return Reference(rows=answers.rows, expected=expected, deployed=deployed, tolerance=tolerance, unsure=unsure)
