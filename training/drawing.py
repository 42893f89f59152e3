"""What all pictures share: colours, a grid of axes, bands of several runs, and the way to PNG."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision can distinguish.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#777777",
)
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)


def canvas(columns: int, rows: int = 1, *, width: float = 4.6, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes in reading order, each with a light grid."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    for each in axes:
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
    return figure, axes


def draw_runs(axes: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], colour: str, label: str) -> None:
    """Draw every run as a thin line and their mean as a thick one."""
    for run in runs:
        axes.plot(x, run, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(
        x,
        np.mean(np.asarray(runs), axis=0),
        ".-",
        color=colour,
        linewidth=2,
        markersize=3,
        label=f"{label} (n = {len(runs)})",
    )


def draw_strip(axes: Axes, groups: Sequence[tuple[str, Sequence[float], str]]) -> None:
    """Draw groups of values (name, values, colour) side by side, every value a dot and the mean a bar."""
    for place, (_, values, colour) in enumerate(groups):
        spread = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(place + spread, values, color=colour, s=14, alpha=0.8, linewidths=0)
        axes.hlines(np.mean(values), place - 0.3, place + 0.3, color=colour, linewidth=2)
    axes.set_xticks(range(len(groups)), [name for name, _, _ in groups])
    axes.grid(visible=False, axis="x")


def add_legend(axes: Axes) -> None:
    """Name what is drawn, if anything is: a report on an unfinished study has empty pictures."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def to_png(figure: Figure) -> bytes:
    """Return `figure` as a PNG without the name of the program that drew it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box in its place, in a name of any script
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
