"""The command `best`: how the preset was chosen and how well it does, seed by seed.

The candidates are compared on training images held out; then the preset alone meets the test set, after its last epoch
and with no choice among epochs or seeds. The preset itself stands in `config`.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from ..dataset import load
from ..drawing import BLUE, GREEN, GREY, canvas, draw_runs, draw_strip, to_png
from .arms import Arm, Case, cases_of
from .options import add_options, check_options, command_of
from .published import Gate, check_gates, gates_table
from .runner import measure_cases
from .selection import CANDIDATES, HELD_OUT
from .store import Store
from .tables import Spread, csv_bytes, json_bytes, markdown_table, origin, origins_of, origins_text, write_report

KINDS = ("population", "running")  # of statistics; of equals the first
BEST = Arm(name="best", preset="best")
GOAL = 0.918
GOAL_SEEDS = 10
PUBLISHED = 0.897  # the best published single run of this network that we know of; it chose nothing, n = 1


def add_parser(subparsers: Any) -> None:
    """Register the subcommand `best`."""
    parser = subparsers.add_parser("best", help="choose and measure the preset `best` over many seeds")
    add_options(parser, study="best", seeds=10)
    parser.set_defaults(run=study)


def study(arguments: argparse.Namespace) -> None:
    """Train what is missing and write the report.

    Raises:
        TrainingError: as the trainings and the disk do.
        GateError: the preset misses its goals; the report is written before.
    """
    device = check_options(arguments)
    store = Store(arguments.out / "runs.jsonl")
    chosen = cases_of([BEST], arguments.seeds)
    cases = [*cases_of(CANDIDATES, 1), *chosen]
    is_changed = (
        arguments.report_only
        or measure_cases(
            cases,
            store,
            device,
            lambda: load(arguments.data_dir),
            origin(command_of(arguments, "best")),
            jobs=arguments.jobs,
            compiled=arguments.compile,
        )
        > 0
    )
    measured = store.read()
    if is_changed:
        write_report(arguments.out, report_files(cases, measured))
        print(f"report {arguments.out / 'README.md'}")
    runs = [measured[case.key] for case in cases if case.key in measured]
    check_gates({BEST.name: [*gates(_chosen(runs)), *statistics_gates(_candidates(runs))]})


def gates(chosen: Sequence[Mapping[str, Any]]) -> list[Gate]:
    """Return the goals of the preset over its seeds; with fewer than `GOAL_SEEDS` none is judged."""
    whole = [run for run in chosen if not run["diverged"]]
    if not whole:
        return []
    mean = {kind: Spread.of(run["test_accuracy"][kind] for run in whole).mean for kind in KINDS}
    is_judged = len(chosen) >= GOAL_SEEDS
    text = f"{mean['population']:.4f}"
    return [
        Gate("no seed diverged", f"{len(whole)} of {len(chosen)}", len(whole) == len(chosen) if is_judged else None),
        Gate(f"mean test accuracy at least {GOAL}", text, mean["population"] >= GOAL if is_judged else None),
        Gate(
            "population statistics at least as good as running ones, on average",
            f"{text} against {mean['running']:.4f}",
            mean["population"] >= mean["running"] if is_judged else None,
        ),
    ]


def statistics_gates(candidates: Sequence[Mapping[str, Any]]) -> list[Gate]:
    """Return whether the preset exports the statistics that did better on the images held out, over the candidates."""
    if not candidates:
        return []
    kind = chosen_statistics(candidates)
    exported = BEST.recipe(0).statistics
    return [Gate("it exports the statistics that did better on the images held out", kind, kind == exported)]


def chosen_statistics(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Return `population` or `running`: the higher mean accuracy over the candidates, on the images held out."""
    return max(KINDS, key=lambda kind: sum(each["test_accuracy"][kind] for each in candidates))


def _chosen(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in runs if each["arm"] == BEST.name]


def _candidates(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in runs if each["arm"] != BEST.name and not each["diverged"]]


def report_files(cases: Sequence[Case], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Return the report on those of `cases` that are `measured`: file name -> content."""
    runs = [measured[case.key] for case in cases if case.key in measured]
    chosen = [each for each in _chosen(runs) if not each["diverged"]]
    candidates = _candidates(runs)
    files = {
        "runs.csv": csv_bytes([_row(each) for each in runs]),
        "figures.json": json_bytes({"origins": origins_of(runs), "goal": GOAL, "runs": [_row(each) for each in runs]}),
        "README.md": _text(candidates, chosen).encode(),
    }
    return files | ({"best.png": picture(chosen)} if chosen else {})


def picture(chosen: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG: accuracy over the epochs, and the test accuracy of every seed beside the goal."""
    figure, (curves, seeds) = canvas(2)
    numbers = [record["epoch"] for record in chosen[0]["epochs"]]
    for key, colour, name in (
        ("train_accuracy", GREY, "train, while training"),
        ("test_accuracy", BLUE, "test, running statistics"),
    ):
        draw_runs(curves, numbers, [[record[key] for record in each["epochs"]] for each in chosen], colour, name)
    curves.set(xlabel="epoch", ylabel="accuracy", ylim=(0.75, 1.0))
    curves.legend(loc="lower right")
    kinds = (("running", BLUE), ("population", GREEN))
    draw_strip(seeds, [(kind, [each["test_accuracy"][kind] for each in chosen], colour) for kind, colour in kinds])
    seeds.axhline(GOAL, color="black", linestyle="--", linewidth=1, label=f"goal {GOAL}")
    seeds.axhline(PUBLISHED, color=GREY, linestyle=":", linewidth=1, label=f"best published run {PUBLISHED}")
    seeds.set(xlabel="statistics", ylabel="test accuracy")
    seeds.legend(loc="center right")
    return to_png(figure)


def _row(each: Mapping[str, Any]) -> dict[str, Any]:
    recipe, last = each["recipe"], each["epochs"][-1] if each["epochs"] else {}
    tested = "held-out" if each["arm"] != BEST.name else "test"
    return {
        "arm": each["arm"],
        "seed": each["seed"],
        **{key: recipe.get(key) for key in ("optimizer", "learning_rate", "schedule", "augment", "epochs")},
        "train_rows": each.get("train_rows"),
        "loss": last.get("loss"),
        "train_accuracy": last.get("train_accuracy"),
        "tested_on": tested,
        "accuracy_running": each.get("test_accuracy", {}).get("running"),
        "accuracy_population": each.get("test_accuracy", {}).get("population"),
        "seconds": round(each["seconds"], 1),
    }


def _text(candidates: Sequence[Any], chosen: Sequence[Any]) -> str:
    return f"""# The preset `best`: the same 44,878 parameters, trained as well as we know how

The book's network (sigmoid, average pooling); only how it is trained differs. Trained:

{origins_text(origins_of([*candidates, *chosen]))}
## Chosen on {HELD_OUT:,} training images held out

Trained on the first 55,000 training images, judged on the last {HELD_OUT:,} after the last epoch, ranked by
population statistics; the test set was not looked at.

{_candidates_table(candidates)}
{_statistics_text(candidates)}
## Measured on the test set, n = {len(chosen)}

{_result(chosen, candidates)}"""


def _candidates_table(candidates: Sequence[Any]) -> str:
    ranked = sorted((_row(each) for each in candidates), key=lambda row: -(row["accuracy_population"] or 0))
    columns = ("candidate", "epochs", "learning rate", "mirrored", "train accuracy")
    return markdown_table(
        (*columns, *(f"held out, {kind}" for kind in KINDS)),
        (
            (
                row["optimizer"],
                row["epochs"],
                f"{row['learning_rate']:g}",
                "yes" if row["augment"] == "mirror" else "no",
                f"{row['train_accuracy']:.4f}",
                *(f"{row[f'accuracy_{kind}']:.4f}" for kind in KINDS),
            )
            for row in ranked
        ),
    )


def _statistics_text(candidates: Sequence[Any]) -> str:
    if not candidates:
        return "Which statistics it exports is not chosen yet.\n"
    kind = chosen_statistics(candidates)
    means = {name: Spread.of(each["test_accuracy"][name] for each in candidates).mean for name in KINDS}
    return (
        f"It exports {kind} statistics: over these candidates they classify {means[kind]:.4f} of the images held out "
        f"rightly, the others {min(means.values()):.4f}.\n"
    )


def _result(chosen: Sequence[Any], candidates: Sequence[Any]) -> str:
    if not chosen:
        return "No seed is finished yet.\n"
    rows = [
        (f"test accuracy, {kind} statistics", Spread.of(each["test_accuracy"][kind] for each in chosen).text())
        for kind in KINDS
    ]
    train = Spread.of(each["train_accuracy"]["population"] for each in chosen)
    rows.append(("train accuracy, population statistics", train.text()))
    judged = gates_table({BEST.name: [*gates(chosen), *statistics_gates(candidates)]})
    return (
        markdown_table(("figure", "mean ± sd [least, most]"), rows)
        + f"\n{judged}\nThe best published run of this network that we know of has "
        f"{PUBLISHED}.\n\n![accuracy over the epochs and over the seeds](best.png)\n"
    )
