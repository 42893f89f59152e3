"""The command `circles`: many seeds with and without norms, and a report with tables and pictures.

It asks two things of every network: how soon it has learnt the circles, and whether its evaluation mode answers as its
training mode. The training itself is in `circles`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from . import circles_plots
from .circles import DATA_SEED, EVALUATE_EVERY, LEARNING_RATE, STEPS, Lesson, build, circles, learn
from .tables import Spread, csv_bytes, json_bytes, markdown_table, origin, origins_of, origins_text, write_report

NORMS = ("torch", "none")
LEARNT = 0.95  # test accuracy that counts as having learnt the circles
FEWEST_SEEDS = 2


def add_parser(subparsers: Any) -> None:
    """Register the subcommand `circles`."""
    parser = subparsers.add_parser("circles", help="the two circles with and without norms: tables and pictures")
    parser.add_argument("--seeds", type=int, default=20, help="trainings of each kind (20)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/circles"), help="folder of the report")
    parser.set_defaults(run=lambda arguments: report(arguments.out, arguments.seeds))


def report(folder: Path, seeds: int, *, steps: int = STEPS, tell: Callable[[str], None] = print) -> None:
    """Train, and write README.md, figures.json, runs.csv and three pictures into `folder`.

    Args:
        folder: of the report; what has these names there is replaced.
        seeds: of the initial weights on the data of seed 42, and again as many data sets with the weights of seed 0.
        steps: of each training.
        tell: takes a line of progress.

    Raises:
        ConfigError: fewer than 2 seeds.
        ArtifactError: the disk refuses.
    """
    if seeds < FEWEST_SEEDS:
        raise ConfigError(f"--seeds {seeds}: expected at least {FEWEST_SEEDS}, since a report tells the spread")
    torch.set_num_threads(1)  # the layers are too small to share
    by_weights = _lessons(seeds, lambda seed: (DATA_SEED, seed), steps, tell)
    by_data = _lessons(seeds, lambda seed: (seed, 0), steps, tell)
    rows = [*_rows("weights", by_weights), *_rows("data", by_data)]
    origins = origins_of([{"origin": origin(f"foldserve circles --seeds {seeds}")}] * len(rows))
    first = {norm: runs[0] for norm, runs in by_weights.items()}
    files = {
        "runs.csv": csv_bytes(rows),
        "figures.json": json_bytes({"origins": origins, "runs": rows}),
        "data.png": circles_plots.data_png(circles()),
        "curves.png": circles_plots.curves_png(by_weights),
        "regions.png": circles_plots.regions_png(first, circles()),
        "README.md": _text(rows, steps, origins).encode(),
    }
    write_report(folder, files)
    tell(f"report {folder / 'README.md'}")


def steps_to_learn(lesson: Lesson) -> int | None:
    """Return the first examined step at which the test accuracy reached `LEARNT`, or None."""
    reached = (at for at, value in zip(lesson.evaluated, lesson.test_accuracies, strict=True) if value >= LEARNT)
    return next(reached, None)


def _lessons(
    seeds: int, seeds_of: Callable[[int], tuple[int, int]], steps: int, tell: Callable[[str], None]
) -> dict[str, list[Lesson]]:
    lessons: dict[str, list[Lesson]] = {norm: [] for norm in NORMS}
    for number in range(seeds):
        data_seed, weight_seed = seeds_of(number)
        for norm, runs in lessons.items():
            runs.append(learn(build(norm, weight_seed), circles(data_seed), steps=steps))
        last = "  ".join(
            f"{circles_plots.NAMES[norm]} {runs[-1].eval_losses[-1]:.4f}" for norm, runs in lessons.items()
        )
        tell(f"data seed {data_seed}, weight seed {weight_seed}: loss {last}")
    return lessons


def _rows(varied: str, lessons: Mapping[str, Sequence[Lesson]]) -> list[dict[str, Any]]:
    return [
        {
            "varied": varied,
            "norm": norm,
            "seed": seed,
            "train_mode_loss": lesson.train_mode_loss,
            "eval_mode_loss": lesson.eval_losses[-1],
            "mode_gap": lesson.mode_gap,
            "train_accuracy": lesson.train_accuracies[-1],
            "test_accuracy": lesson.test_accuracies[-1],
            "steps_to_learn": steps_to_learn(lesson),
        }
        for norm, runs in lessons.items()
        for seed, lesson in enumerate(runs)
    ]


def _text(rows: Sequence[Mapping[str, Any]], steps: int, origins: Sequence[Mapping[str, Any]]) -> str:
    return f"""# Two circles, with and without batch normalization

2,000 points on two circles (noise 0.1, factor 0.4), 1,400 to train on and 600 to test with; a network 2-64-32-2 with
ReLU, plain SGD at {LEARNING_RATE}, {steps} steps on all points at once. Trained:

{origins_text(origins)}
![the data](data.png)

## Initial weights varied, data of seed {DATA_SEED}

{_table(rows, "weights", steps)}
## Data varied, initial weights of seed 0

{_table(rows, "data", steps)}
Mean ± standard deviation [least, most]. *Learnt* is the first step, looked at every {EVALUATE_EVERY} steps, with a
test accuracy of {LEARNT} in evaluation mode, in which the running statistics lag behind at first, as the curves show.
*Mode gap* is the loss in evaluation mode over the loss in training mode of the same weights on the same points, minus
1: what the running statistics are off by.

![loss and accuracy](curves.png)

![decision regions of seed 0](regions.png)
"""


def _table(rows: Sequence[Mapping[str, Any]], varied: str, steps: int) -> str:
    lines = []
    for norm in NORMS:
        chosen = [row for row in rows if row["varied"] == varied and row["norm"] == norm]
        learnt = [row["steps_to_learn"] for row in chosen if row["steps_to_learn"] is not None]
        spread = {key: Spread.of(row[key] for row in chosen) for key in ("eval_mode_loss", "test_accuracy", "mode_gap")}
        lines.append(
            (
                circles_plots.NAMES[norm],
                len(chosen),
                spread["eval_mode_loss"].text(),
                spread["test_accuracy"].text(),
                f"{Spread.of(learnt).text(0)}, {len(learnt)} of {len(chosen)}" if learnt else "never",
                f"{100 * spread['mode_gap'].mean:+.2f} % [{100 * spread['mode_gap'].least:+.2f}, "
                f"{100 * spread['mode_gap'].most:+.2f}]",
            )
        )
    columns = ("network", "n", f"loss after {steps} steps", "test accuracy", "learnt at step", "mode gap")
    return markdown_table(columns, lines)
