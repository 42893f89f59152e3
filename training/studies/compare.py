"""The command `compare`: train what the plan says and is not measured yet, then report on all of it."""

import argparse
from pathlib import Path
from typing import Any

from ..dataset import load
from . import plan
from .adoption import adopt
from .compare_report import report_files
from .options import add_options, check_options
from .runner import measure_cases, summary
from .store import Store
from .tables import origin, write_report

OUT = "docs/results/compare"


def add_parser(subparsers: Any) -> None:
    """Register the subcommand `compare`."""
    parser = subparsers.add_parser("compare", help="with and without norms, over seeds, rates, batch sizes: a report")
    add_options(parser, out=OUT, seeds=8)
    parser.add_argument("--quick", action="store_true", help="one epoch on few images: that it runs, not what is true")
    parser.add_argument("--only", choices=sorted(plan.studies(1)), action="append", help="train one study; repeatable")
    parser.add_argument(
        "--from-run", type=Path, action="append", default=[], help="a finished run's folder to take in; repeatable"
    )
    parser.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> None:
    """Train and report as the flags say.

    Raises:
        TrainingError: as the trainings and the disk do; what is measured is kept.
    """
    device = check_options(arguments)
    out = arguments.out
    if arguments.quick and str(out) == OUT:
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
    if not arguments.report_only:
        measure_cases(wanted, store, device, load(arguments.data_dir), jobs=arguments.jobs, compiled=arguments.compile)
    write_report(out, report_files(cases, store.read(), origin(_command(arguments))))
    print(f"report {out / 'README.md'}")


def _command(arguments: argparse.Namespace) -> str:
    """Return the command that makes the report's figures, whatever parts of it made them."""
    jobs = f" --jobs {arguments.jobs}" if arguments.jobs > 1 else ""
    flags = " --compile" * arguments.compile + " --quick" * arguments.quick
    return f"foldserve compare --seeds {arguments.seeds}{jobs}{flags}"
