"""The command `circles`: many seeds with and without norms, and a report with tables and pictures.

Of every network it reports how soon it has learnt the circles, and whether its evaluation mode computes what its
training mode does. The training itself is in `circles`.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from foldserve.patience import shown, tell

from ..errors import ConfigError
from . import circles_plots
from .circles import DATA_SEED, LEARNING_RATE, LEARNT, STEPS, CirclesTraining, build, circles, train
from .circles_plots import NAMES
from .options import report_folder, require_folder
from .published import Gate, check_gates, gates_table
from .tables import Spread, csv_bytes, json_bytes, markdown_table, origin, origins_of, origins_text, write_report

FEWEST_SEEDS = 2
PRINTED_EVERY = 100  # steps
REGIONS_STEP = 30  # where with norms the circles are learnt, and without them not yet
Trainings = Mapping[str, Sequence[CirclesTraining]]


def add_parser(subparsers: Any) -> None:
    """Register the subcommand `circles`."""
    parser = subparsers.add_parser("circles", help="the two circles with and without norms: tables and pictures")
    parser.add_argument("--seeds", type=int, default=20, help="trainings of each kind (20)")
    parser.add_argument("--out", type=Path, default=report_folder("circles"), help="folder of the report")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Train, report, and hold the figures to what norms are said to do.

    Raises:
        ConfigError: fewer than 2 seeds.
        ArtifactError: the disk refuses.
        GateError: norms did not learn sooner; the report is written before.
    """
    check_gates({"circles": report(arguments.out, arguments.seeds)})


def report(folder: Path, seeds: int, *, steps: int = STEPS, tell: Callable[[str], None] = tell) -> list[Gate]:
    """Train, write README.md, figures.json, runs.csv and three pictures into `folder`, and return the gates.

    Args:
        folder: of the report; what has these names there is replaced.
        seeds: of the initial weights on the data of seed 42, and again as many data sets with the weights of seed 0.
        steps: of each training.
        tell: takes a line of progress.

    Raises:
        ConfigError: fewer than 2 seeds, or no report can be written into the folder.
        ArtifactError: the disk refuses.
    """
    if seeds < FEWEST_SEEDS:
        raise ConfigError(f"--seeds {seeds}: expected at least {FEWEST_SEEDS}, since a report states the spread")
    require_folder(folder)
    torch.set_num_threads(1)  # the layers are too small to share
    made_by = {"origin": origin(f"foldserve circles --seeds {seeds}")}
    keep = (min(REGIONS_STEP, steps), steps)
    with shown("training with each seed of the weights"):
        by_weights = _trainings([(DATA_SEED, seed) for seed in range(seeds)], steps, keep, tell)
    with shown("training with each seed of the data"):
        by_data = _trainings([(seed, 0) for seed in range(seeds)], steps, (), lambda _: None)
    rows = [*_rows("weights", by_weights), *_rows("data", by_data)]
    origins = origins_of([made_by] * len(rows))
    gates = gates_of(rows)
    files = {
        "runs.csv": csv_bytes(rows),
        "figures.json": json_bytes({"origins": origins, "runs": rows}),
        "data.png": circles_plots.data_png(circles()),
        "curves.png": circles_plots.curves_png(by_weights),
        "regions.png": circles_plots.regions_png({norm: runs[0] for norm, runs in by_weights.items()}, circles()),
        "README.md": _text(rows, steps, gates, origins).encode(),
    }
    write_report(folder, files)
    tell(f"report {folder / 'README.md'}")
    return gates


def gates_of(rows: Sequence[Mapping[str, Any]]) -> list[Gate]:
    """Return whether norms learn sooner, on average over the weights and over the data; never is later than all."""
    gates = []
    for varied in ("weights", "data"):
        means = {}
        for norm in NAMES:
            steps = [row["steps_to_learn"] for row in rows if (row["varied"], row["norm"]) == (varied, norm)]
            means[norm] = Spread.of(STEPS if step is None else step for step in steps).mean
        measured = f"after {means['torch']:.0f} steps with BN, {means['none']:.0f} without"
        gates.append(Gate(f"learnt sooner with BN, {varied} varied", measured, means["torch"] < means["none"]))
    return gates


def _trainings(
    seeds: Iterable[tuple[int, int]], steps: int, keep: tuple[int, ...], tell: Callable[[str], None]
) -> Trainings:
    """Return a training of each network for each pair of data seed and weight seed; print those of the first pair."""
    trainings: dict[str, list[CirclesTraining]] = {norm: [] for norm in NAMES}
    for data_seed, weight_seed in seeds:
        for norm, runs in trainings.items():
            runs.append(train(build(norm, weight_seed), circles(data_seed), steps=steps, keep=keep))
            if len(runs) == 1:
                for step in range(PRINTED_EVERY, steps + 1, PRINTED_EVERY):
                    figures = f"loss {runs[0].eval_losses[step]:.4f}  test accuracy {runs[0].test_accuracies[step]:.4f}"
                    tell(f"{NAMES[norm]:<10}  epoch {step}  {figures}")
    return trainings


def _rows(varied: str, trainings: Trainings) -> list[dict[str, Any]]:
    return [
        {
            "varied": varied,
            "norm": norm,
            "seed": seed,
            "train_mode_loss": training.train_mode_loss,
            "eval_mode_loss": training.eval_losses[-1],
            "mode_gap": training.mode_gap,
            "test_accuracy": training.test_accuracies[-1],
            "steps_to_learn": training.steps_to_learn,
        }
        for norm, runs in trainings.items()
        for seed, training in enumerate(runs)
    ]


def _text(
    rows: Sequence[Mapping[str, Any]], steps: int, gates: Sequence[Gate], origins: Sequence[Mapping[str, Any]]
) -> str:
    return f"""# Two circles, with and without batch normalization

2,000 points on two circles (noise 0.1, factor 0.4), 1,400 to train on and 600 to test with; a network 2-64-32-2 with
ReLU, PyTorch's default initial weights, plain SGD at {LEARNING_RATE}, {steps} steps on all points at once. Trained:

{origins_text(origins)}
![the data](data.png)

## Initial weights varied, data of seed {DATA_SEED}

{_table(rows, "weights", steps)}
## Data varied, initial weights of seed 0

{_table(rows, "data", steps)}
Mean ± standard deviation [least, most]. *Learnt* is the first step after which the test accuracy is {LEARNT}, in
evaluation mode, in which the running statistics lag behind at first, as the curves show. *Mode gap* is the loss in
evaluation mode over the loss in training mode of the same weights on the same points, minus 1: what the running
statistics are off by.

{gates_table({"circles": gates})}
![loss and accuracy](curves.png)

Where the networks of seed 0 decide: above after {min(REGIONS_STEP, steps)} steps, where only the network with norms
tells the circles apart, below at the end.

![decision regions of seed 0](regions.png)
"""


def _table(rows: Sequence[Mapping[str, Any]], varied: str, steps: int) -> str:
    lines = []
    for norm, name in NAMES.items():
        chosen = [row for row in rows if row["varied"] == varied and row["norm"] == norm]
        learnt = [row["steps_to_learn"] for row in chosen if row["steps_to_learn"] is not None]
        spread = {key: Spread.of(row[key] for row in chosen) for key in ("eval_mode_loss", "test_accuracy", "mode_gap")}
        gap = spread["mode_gap"]
        lines.append(
            (
                name,
                len(chosen),
                spread["eval_mode_loss"].text(),
                spread["test_accuracy"].text(),
                f"{Spread.of(learnt).text(0)}, {len(learnt)} of {len(chosen)}" if learnt else "never",
                f"{100 * gap.mean:+.2f} % [{100 * gap.least:+.2f}, {100 * gap.most:+.2f}]",
            )
        )
    columns = ("network", "n", f"loss after {steps} steps", "test accuracy", "learnt after step", "mode gap")
    return markdown_table(columns, lines)
