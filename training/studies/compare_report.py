"""The report of `compare`: from measurements to Markdown, CSV, JSON and pictures.

Every sentence with a number is made from the measurements; what is not measured yet is said to be missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import Recipe
from ..errors import ConfigError
from . import compare_plots as plots
from . import plan, published
from .arms import Arm, Case
from .compare_findings import scatter_finding, speed_finding, sweep_finding
from .compare_plots import ByArm, finished, gap, served_accuracy
from .tables import Spread, csv_bytes, json_bytes, markdown_table, origins_of, origins_text

MISSING = "not measured yet"


def runs_by_arm(cases: Sequence[Case], measured: Mapping[str, Mapping[str, Any]]) -> ByArm:
    """Return the measurements of those of `cases` that are `measured`, by the name of their arm."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for case in cases:
        if case.key in measured:
            arms.setdefault(case.arm.name, []).append(measured[case.key])
    return arms


def gates_of(cases: Sequence[Case], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, list[published.Gate]]:
    """Return the gates of both arms of the book's recipe."""
    arms = runs_by_arm(cases, measured)
    return {arm.name: published.gates(arms.get(arm.name, ())) for arm in (plan.TORCH, plan.SCRATCH)}


def report_files(cases: Sequence[Case], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Return the report on those of `cases` that are `measured`: file name -> content.

    Everything in it follows from the measurements, where they come from included.
    """
    runs = [measured[case.key] for case in cases if case.key in measured]
    arms, tests = runs_by_arm(cases, measured), gates_of(cases, measured)
    summary = {
        "origins": origins_of(runs),
        "measured": len(runs),
        "planned": len(cases),
        "adopted": sum("adopted" in each for each in runs),
        "compiled": sum(bool(each.get("compiled")) for each in runs),
        "gates": {name: [vars(gate) for gate in each] for name, each in tests.items()},
        "arms": {name: summary_of(runs) for name, runs in arms.items()},
    }
    pictures = {
        "curves.png": plots.curves_png(arms),
        "statistics.png": plots.statistics_png(arms),
        "without.png": plots.without_png(arms),
        "learning-rates.png": plots.learning_rates_png(arms),
        "batch-sizes.png": plots.batch_sizes_png(arms),
        "variants.png": plots.variants_png(arms),
        "saturation.png": plots.saturation_png(arms),
        "gap.png": plots.gap_png(arms),
    }
    return pictures | {
        "runs.csv": csv_bytes([row_of(each) for each in runs]),
        "epochs.csv": csv_bytes([row for each in runs for row in epoch_rows(each)]),
        "figures.json": json_bytes(summary),
        "README.md": text_of(arms, tests, summary).encode(),
    }


def row_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return one line of runs.csv: the last figures of a run."""
    last = run["epochs"][-1] if run["epochs"] else {}
    row = {"arm": run["arm"], "seed": run["seed"], "epochs": len(run["epochs"]), "train_rows": run.get("train_rows")}
    row |= {"loss": last.get("loss"), "train_accuracy": last.get("train_accuracy")}
    for part in ("test", "train"):
        for kind, value in run.get(f"{part}_accuracy", {}).items():
            row[f"{part}_{kind}"] = value
    return row | {"seconds": round(run["seconds"], 1), "diverged": run["diverged"]}


def epoch_rows(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of epochs.csv: every epoch of a run."""
    return [{"arm": run["arm"], "seed": run["seed"], **record} for record in run["epochs"]]


def summary_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an arm's figures over its seeds, as plain values for JSON."""
    whole = finished(runs)
    figures: dict[str, Any] = {"runs": len(runs), "diverged": [run["diverged"] for run in runs if run["diverged"]]}
    if not whole:
        return figures
    for key in ("loss", "train_accuracy"):
        figures[key] = vars(Spread.of(run["epochs"][-1][key] for run in whole))
    for kind in whole[0]["test_accuracy"]:
        figures[f"test_accuracy_{kind}"] = vars(Spread.of(run["test_accuracy"][kind] for run in whole))
    return figures | {"gap": vars(Spread.of(gap(run) for run in whole))}


def text_of(arms: ByArm, tests: Mapping[str, Sequence[published.Gate]], summary: Mapping[str, Any]) -> str:
    """Return the report in Markdown."""
    return f"""# Batch normalization compared

{summary["measured"]} of {summary["planned"]} trainings are measured; the same command continues with the rest.
{summary["adopted"]} of them are runs of `train-and-export` with the same recipe, taken in by `--from-run`; the steps of
{summary["compiled"]} went through `torch.compile`. Trained:

{origins_text(summary["origins"])}
Loss and train accuracy are the book's: means over the last epoch while it trains. *Running* are the averages of
training, *population* statistics are recomputed over all training images with the weights frozen. ± is the standard
deviation over seeds, brackets hold the least and the most.

## Does batch normalization speed convergence?

{speed_finding(arms)}
![loss and accuracy without norms](without.png)

## Why are the published test accuracies so scattered?

{scatter_finding(arms)}
![test accuracy of every seed](statistics.png)

## The book's recipe, seed by seed

{_table(arms, (plan.TORCH, plan.SCRATCH, plan.TAIL_LAST, plan.NO_NORM, plan.PLAIN))}
![curves with the published band](curves.png)

{published.gates_table(tests)}
## Learning rate

{plan.SWEEP_EPOCHS} epochs, one seed; a cross is a run whose loss became NaN or infinite, the dotted line chance.
{sweep_finding(arms, "lr-{norm}-{value}", plan.LEARNING_RATES)}
{_table(arms, plan.LEARNING_RATE_SWEEP)}
![learning rates](learning-rates.png)

## Batch size

{plan.SWEEP_EPOCHS} epochs of the first {plan.BATCH_SWEEP_ROWS:,} images at learning rate {plan.BATCH_SWEEP_RATE}, one
seed. A batch of 1 is refused: *{_refusal()}*.
{sweep_finding(arms, "batch-{norm}-{value}", plan.BATCH_SIZES)}
{_table(arms, plan.BATCH_SIZE_SWEEP)}
![batch sizes](batch-sizes.png)

## One thing changed about the norms

{plan.VARIANT_EPOCHS} epochs. *Noise* has a mean and a size drawn anew for every channel and step (Santurkar et al.
2018, arXiv:1805.11604): if norms helped by keeping distributions still, it would undo their help.

{_table(arms, tuple(arm for arm, _ in plots.VARIANTS))}
![variants](variants.png)

## Saturated sigmoids

Share of each layer's sigmoids whose slope is under a tenth of the steepest.

![saturation](saturation.png)

## Train accuracy minus test accuracy

Both in evaluation mode, with population statistics where there are norms.

![gap](gap.png)
"""


def _table(arms: ByArm, rows: Sequence[Arm]) -> str:
    columns = ("arm", "n", "train loss", "train accuracy", "test, running", "test, population or none", "gap, points")
    return markdown_table(columns, [_line(arm, arms.get(arm.name, ())) for arm in rows])


def _line(arm: Arm, runs: Sequence[Mapping[str, Any]]) -> tuple[object, ...]:
    whole = finished(runs)
    if not whole:
        reason = runs[0]["diverged"].split(";")[0] if runs else MISSING
        return (arm.name, len(runs), reason, "", "", "", "")
    digits = 4
    running = [run["test_accuracy"]["running"] for run in whole if "running" in run["test_accuracy"]]
    return (
        arm.name,
        len(whole),
        _text([run["epochs"][-1]["loss"] for run in whole], digits),
        _text([run["epochs"][-1]["train_accuracy"] for run in whole], digits),
        _text(running, digits) if running else "",
        _text([served_accuracy(run) for run in whole], digits),
        _text([100 * gap(run) for run in whole], 2),
    )


def _text(values: Sequence[float], digits: int) -> str:
    return Spread.of(values).text(digits) if len(values) > 1 else f"{values[0]:.{digits}f}"


def _refusal() -> str:
    """Return what a batch of 1 is answered."""
    try:
        Recipe(batch_size=1)
    except ConfigError as err:
        return str(err)
    raise AssertionError("a batch of 1 with norms must be refused")
