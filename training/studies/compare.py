"""The command `compare`: train what the plan says and is not measured yet, then report on all of it."""

import argparse
from pathlib import Path
from typing import Any

from ..dataset import load
from . import plan
from .adoption import adopt
from .compare_report import gates_of, report_files
from .options import add_options, check_options, command_of, report_folder
from .published import check_gates
from .runner import measure_cases, summary
from .store import Store
from .tables import origin, write_report


def add_parser(subparsers: Any) -> None:
    """Register the subcommand `compare`."""
    parser = subparsers.add_parser("compare", help="with and without norms, over seeds, rates, batch sizes: a report")
    add_options(parser, study="compare", seeds=8)
    parser.add_argument("--quick", action="store_true", help="one epoch on few images: that it runs, not what is true")
    parser.add_argument("--only", choices=sorted(plan.studies(1)), action="append", help="train one study; repeatable")
    parser.add_argument(
        "--from-run", type=Path, action="append", default=[], help="a finished run's folder to take in; repeatable"
    )
    parser.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> None:
    """Train what is missing, report on it, and hold the figures to the published ones.

    The report is written when there are new figures, or with `--report-only`.

    Raises:
        TrainingError: as the trainings and the disk do; what is measured is kept.
        GateError: a gate failed; the report is written before.
    """
    device = check_options(arguments)
    out = arguments.out
    if arguments.quick and out == report_folder("compare"):
        out = out.with_name("compare-quick")  # made-up budgets must not land among true figures
    studies = plan.studies(min(arguments.seeds, plan.QUICK_SEEDS) if arguments.quick else arguments.seeds)
    cases = plan.in_turns(studies.values())
    wanted = plan.in_turns(studies[name] for name in arguments.only or studies)
    if arguments.quick:
        cases, wanted = plan.quickened(cases), plan.quickened(wanted)
    store = Store(out / "runs.jsonl")
    for folder in arguments.from_run:
        case, measurement = adopt(folder, cases, load(arguments.data_dir))
        store.add(case.key, measurement)
        print(f"taken in: {summary(measurement)}")
    is_changed = arguments.report_only or bool(arguments.from_run)
    if not arguments.report_only:
        command = command_of(arguments, "compare") + (" --quick" if arguments.quick else "")
        is_changed |= (
            measure_cases(
                wanted,
                store,
                device,
                lambda: load(arguments.data_dir),
                origin(command),
                jobs=arguments.jobs,
                compiled=arguments.compile,
            )
            > 0
        )
    measured = store.read()
    if is_changed:
        write_report(out, report_files(cases, measured))
        print(f"report {out / 'README.md'}")
    check_gates(gates_of(cases, measured))
