"""The lesson `kalman`: a moving average as a Kalman filter, whose gain is e_e / (e_e + e_m).

A constant quantity gives the gain 1/k and so the plain mean; one that drifts, a constant gain: the momentum of a norm.

Source: Kalman 1960, A New Approach to Linear Filtering and Prediction Problems; of one value.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...drawing import CYCLE, canvas
from ..tables import Spread
from .lesson import Figures, Finding, Lesson, Reading, Setting

RATIOS = (1e-6, 0.01, 1.0, 100.0, 1e6)  # e_e / e_m before the first measurement
STEPS = 50
MOMENTUM = 0.1
MOMENTA = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
DRIFT_STEPS = 20_000


def gain(estimate_error: float, measurement_error: float) -> float:
    """Return K = e_e / (e_e + e_m), from the variances of the estimate's error and of the measurement's."""
    return estimate_error / (estimate_error + measurement_error)


def gains(ratio: float, steps: int, *, drift: float = 0.0) -> list[float]:
    """Return K_1, K_2, ...: e_e starts at `ratio` times e_m = 1, and each step makes (1 - K) e_e + drift of it."""
    error, listed = ratio, []
    for _ in range(steps):
        listed.append(gain(error, 1.0))
        error = (1.0 - listed[-1]) * error + drift
    return listed


def drift_of(momentum: float) -> float:
    """Return the drift, its variance a step in units of e_m, under which the gain settles at `momentum`: K²/(1 - K)."""
    return momentum**2 / (1.0 - momentum)


def expected_error(momentum: float, drift: float) -> float:
    """Return the mean squared error, in units of e_m, that a constant gain has once it is settled.

    From P = (1 - K)² (P + drift) + K².
    """
    kept = (1.0 - momentum) ** 2
    return (kept * drift + momentum**2) / (1.0 - kept)


def simulated_error(momentum: float, drift: float, steps: int, seed: int) -> float:
    """Return the mean squared error of a moving average of measurements of a quantity that drifts, e_m = 1."""
    generator = np.random.default_rng(seed)
    truth = np.cumsum(generator.normal(scale=np.sqrt(drift), size=steps))
    measured = truth + generator.normal(size=steps)
    estimate, errors = 0.0, np.empty(steps)
    for at, value in enumerate(measured):
        estimate += momentum * (value - estimate)
        errors[at] = estimate - truth[at]
    return float(np.square(errors[steps // 10 :]).mean())


def measure(setting: Setting) -> dict[str, Any]:
    """Return gains by step for each first ratio, where a drift settles them, and errors by momentum over seeds."""
    drift = drift_of(MOMENTUM)
    steps = DRIFT_STEPS // 20 if setting.quick else DRIFT_STEPS
    return {
        "gains": {f"{ratio:g}": gains(ratio, STEPS) for ratio in RATIOS},
        "drift": drift,
        "settled": gains(1.0, 500, drift=drift)[-1],
        "errors": {
            f"{momentum:g}": {
                "expected": expected_error(momentum, drift),
                "simulated": [simulated_error(momentum, drift, steps, seed) for seed in range(setting.seeds)],
            }
            for momentum in MOMENTA
        },
    }


def read(figures: Figures) -> Reading:
    """Return the two limits of the gain, the plain mean, the gain that a drift settles, and the errors by momentum."""
    unsure, sure = figures["gains"]["1e+06"], figures["gains"]["1e-06"]
    mean_away = max(abs(value - 1 / step) for step, value in enumerate(unsure, start=1))
    errors = {name: Spread.of(each["simulated"]).mean for name, each in figures["errors"].items()}
    best = min(errors, key=lambda name: errors[name])
    findings = [
        Finding("e_e a million times e_m: first gain", f"{unsure[0]:.6f}", "1, believe the measurement",
                unsure[0] > 0.99999),
        Finding("e_e a millionth of e_m: first gain", f"{sure[0]:.6f}", "0, keep the estimate", sure[0] < 1e-5),
        Finding("the first, over 50 steps: largest distance from 1/k", f"{mean_away:.1e}", "K = 1/k is the plain mean",
                mean_away < 1e-5),
        Finding(f"gain that a drift of {figures['drift']:.4f} e_m a step settles at", f"{figures['settled']:.4f}",
                f"{MOMENTUM}, a norm's momentum", abs(figures["settled"] - MOMENTUM) < 1e-6),
        Finding("momentum with the least error under that drift", best, f"{MOMENTUM:g}", best == f"{MOMENTUM:g}"),
    ]  # fmt: skip
    rows = [
        (name, f"{each['expected']:.4f}", Spread.of(each["simulated"]).text())
        for name, each in figures["errors"].items()
    ]
    return Reading(findings, ("momentum", "error by the formula / e_m", "simulated"), rows)


def draw(figures: Figures) -> Figure:
    """Return gains over the steps, and errors over the momentum."""
    figure, (left, right) = canvas(2)
    for (ratio, values), colour in zip(figures["gains"].items(), CYCLE, strict=False):
        left.plot(range(1, len(values) + 1), values, ".-", color=colour, label=f"e_e / e_m = {ratio} at first")
    left.axhline(MOMENTUM, color="black", linestyle="--", linewidth=1, label="with drift: settles at 0.1")
    left.set(xlabel="measurement k", ylabel="gain K", xscale="log", ylim=(-0.03, 1.03))
    left.legend(fontsize=7)
    fine = np.geomspace(0.008, 0.999, 200)
    right.plot(fine, [expected_error(value, figures["drift"]) for value in fine], color=CYCLE[0], label="formula")
    for name, each in figures["errors"].items():
        right.plot([float(name)] * len(each["simulated"]), each["simulated"], ".", color=CYCLE[1], markersize=5)
    right.plot([], [], ".", color=CYCLE[1], label="simulated, each seed")
    right.set(
        xlabel="momentum (weight of the new value)", ylabel="mean squared error / e_m", xscale="log", yscale="log"
    )
    right.legend(fontsize=7)
    return figure


KALMAN = Lesson(
    "kalman",
    "a running statistic is a Kalman filter with gain e_e / (e_e + e_m); 1/k is the plain mean, 0.1 follows a drift",
    measure,
    read,
    draw,
    seeds=5,
)
