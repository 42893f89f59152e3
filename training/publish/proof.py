"""What was proved of a served graph: its answers against a float64 run of the unfolded network on the same rows.

The tolerance is what float32 costs the unfolded network itself on these rows, with a margin for another order of sums;
it is stated in the manifest, and above its cap nothing is published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foldserve.format.golden import Golden

from .. import golden
from ..errors import VerifyError
from ..served_session import RUNTIME_LEVELS, Session
from .network import Array, Feeds

CAP = 1e-3  # of the largest |value| of an output: a thousandth of a probability, or of the range
_LEAST = 1e-5  # in float32 another runtime or machine differs by so much though nothing is wrong
_MARGIN = 8.0  # another order of the sums, another kernel
_GPU_MARGIN = 10.0  # of a GPU over a CPU, as `golden.TOLERANCE`


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a served output may be from the oracle.

    Attributes:
        float32_cost: largest |difference| of the unfolded network in float32, relative to the output's largest |value|.
        cpu: what is allowed, likewise.
        cuda: what is allowed on a GPU.
    """

    float32_cost: float
    cpu: float
    cuda: float


def tolerance_of(oracle: Mapping[str, Array], deployed: Mapping[str, Array]) -> Tolerance:
    """Return the tolerance that the unfolded network's own rounding justifies.

    Args:
        oracle: expected outputs in float64.
        deployed: the same outputs, from a run of the unfolded network in its own precision.

    Raises:
        VerifyError: that rounding alone is above the cap.
    """
    costs = {name: distance(deployed[name], value) for name, value in oracle.items() if value.dtype.kind == "f"}
    worst = max(costs, key=lambda name: costs[name], default=None)
    cost = 0.0 if worst is None else costs[worst]
    if not cost <= CAP:
        raise VerifyError(
            f"output {worst!r}: float32 alone moves the unfolded network by {cost:.1e} of its largest value on these "
            f"rows; at most {CAP:.0e} can be proved, so nothing is published"
        )
    allowed = min(CAP, max(_LEAST, _MARGIN * cost))
    return Tolerance(float32_cost=cost, cpu=allowed, cuda=min(CAP, max(1e-4, _GPU_MARGIN * allowed)))


def distance(got: Array, expected: Array) -> float:
    """Return the largest |got - expected| over the largest |expected|; infinite where one of both is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(got.astype(np.float64) - expected).max(initial=0.0)) / scale


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was measured of the served graph, the worst of all runs.

    Attributes:
        oracle: what the answers were compared with, in words.
        examples: `pictures`, `rows` or `made`.
        rows: how many of them.
        deviations: output -> largest |difference| over its largest |value|.
        probability_difference: largest |difference of a probability|; None where there are none.
        agreement: share of rows with the oracle's class; None where there are no classes.
        undecided: rows on which the unfolded network's own float32 could name another class.
        tolerance: what was allowed.
    """

    oracle: str
    examples: str
    rows: int
    deviations: Mapping[str, float]
    probability_difference: float | None
    agreement: float | None
    undecided: int
    tolerance: Tolerance

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest's `proof`."""
        return {
            "oracle": self.oracle,
            "examples": self.examples,
            "rows": self.rows,
            "largest_probability_difference": self.probability_difference,
            "agreement": self.agreement,
            "undecided": self.undecided,
            "deviations": dict(self.deviations),
            "tolerance": self.tolerance.cpu,
            "float32_cost": self.tolerance.float32_cost,
        }


def undecided_rows(expected: Mapping[str, Array], deployed: Mapping[str, Array], tolerance: Tolerance) -> Array:
    """Return for each row whether rounding could rightly change an integer of its answer, (N,) bool.

    That is where the unfolded network in float32 gives another integer than in float64, or where the two best scores
    are nearer than the tolerance could move them.
    """
    rows = len(next(iter(expected.values())))
    unsure = np.zeros(rows, bool)
    for name, value in expected.items():
        if value.dtype.kind != "f":
            unsure |= (deployed[name] != value).reshape(rows, -1).any(axis=1)
    if "class_id" in expected:
        scores = expected.get("logits", expected["probabilities"])
        unsure |= golden.margins(scores) <= 4 * tolerance.cpu * np.abs(scores).max()
    return unsure


def check_served(
    served: bytes, feeds: Feeds, expected: Mapping[str, Array], unsure: Array, tolerance: Tolerance
) -> tuple[dict[str, float], dict[str, Array]]:
    """Return the largest deviation of each output and the default runtime's answers, for every optimisation level.

    Raises:
        VerifyError: an answer is off by more than the tolerance, or an integer differs where it is decided.
    """
    worst: dict[str, float] = {}
    answers: dict[str, Array] = {}
    for form, level in RUNTIME_LEVELS.items():
        answers = Session(served, level).run(feeds)
        for name, value in expected.items():
            error = _error(form, name, answers.get(name), value, unsure, tolerance)
            worst[name] = max(worst.get(name, 0.0), error)
    return {name: error for name, error in worst.items() if expected[name].dtype.kind == "f"}, answers


def _error(form: str, name: str, got: Array | None, expected: Array, unsure: Array, tolerance: Tolerance) -> float:
    if got is None or got.shape != expected.shape:
        raise VerifyError(
            f"{form}: output {name!r} is {'missing' if got is None else got.shape}, expected {expected.shape}; nothing "
            "is published"
        )
    if expected.dtype.kind != "f":
        differs = (got != expected).reshape(len(expected), -1).any(axis=1) & ~unsure
        if differs.any():
            row = int(np.flatnonzero(differs)[0])
            places = got[row] != expected[row]
            hint = "" if name == "class_id" else ". Where scores are nearly equal, rounding decides: return the scores"
            raise VerifyError(
                f"{form}: output {name!r} is {got[row][places][0]} for example {row}, the unfolded "
                f"network says {expected[row][places][0]} ({int(differs.sum())} of {len(expected)} rows differ){hint}; "
                "nothing is published"
            )
        return 0.0
    error = distance(got, expected)
    if not error <= tolerance.cpu:
        raise VerifyError(
            f"{form}: output {name!r} is off by {error:.1e} of its largest value, allowed are {tolerance.cpu:.0e} "
            f"(float32 costs the unfolded network {tolerance.float32_cost:.0e}); nothing is published"
        )
    return error


def golden_of(
    feeds: Feeds, expected: Mapping[str, Array], answers: Mapping[str, Array], rows: Array, tolerance: Tolerance
) -> Golden:
    """Return the golden answers of the chosen rows, each float rounded once to the type that the graph gives."""
    outputs = {name: value[rows].astype(answers[name].dtype) for name, value in expected.items()}
    limits = {"cpu": tolerance.cpu, "cuda": tolerance.cuda}
    return Golden({name: np.ascontiguousarray(value[rows]) for name, value in feeds.items()}, outputs, limits)
