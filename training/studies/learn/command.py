"""The command `learn`: one door to everything that can be learnt here by running it.

`foldserve learn` alone lists the lessons and studies; `foldserve learn NAME` runs one. The studies `circles`,
`compare`, `best` and `inspect` are the same commands as without `learn`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...dataset import load
from ...disk import write_file
from ...errors import ConfigError
from .. import best, circles_report, compare, inspection
from ..options import report_folder, require_folder
from . import catalogue
from .lesson import Lesson, Setting
from .page import PAGE, page
from .report import report, report_again

STORE = "trainings.jsonl"  # shared: several lessons look at the same network
STUDIES: Mapping[str, Any] = {
    "circles": circles_report,
    "compare": compare,
    "best": best,
    "inspect": inspection,
}


def add_parser(subparsers: Any) -> None:
    """Register the subcommand `learn` with all that it takes."""
    parser = subparsers.add_parser(
        "learn",
        help="what the book says of batch normalization, shown by running it",
        description="Without a name it lists what can be learnt. A lesson prints what is said and what was measured, "
        f"and writes NAME.json and NAME.png into --out ({report_folder('learn')} of the current folder).",
    )
    parser.set_defaults(run=_list)
    names = parser.add_subparsers(metavar="NAME")
    for lesson in catalogue.LESSONS:
        _add_lesson(names, lesson)
    for study in STUDIES.values():
        study.add_parser(names)


def listing() -> str:
    """Return one line for each lesson and study."""
    width = max(len(lesson.name) for lesson in catalogue.LESSONS)
    lessons = [f"  {lesson.name:<{width}}  {lesson.says}" for lesson in catalogue.LESSONS]
    studies = [f"  {name:<{width}}  foldserve {name}" for name in STUDIES]
    return "\n".join(["lessons, foldserve learn NAME:", *lessons, "studies of many trainings:", *studies])


def _list(_arguments: argparse.Namespace) -> None:
    print(listing())


def _add_lesson(subparsers: Any, lesson: Lesson) -> None:
    parser = subparsers.add_parser(lesson.name, help=lesson.says, description=lesson.says)
    parser.set_defaults(run=lambda arguments: _run(lesson, arguments), seeds=0, jobs=1, quick=False)
    if lesson.seeds:
        parser.add_argument("--seeds", type=int, default=lesson.seeds, help=f"repetitions ({lesson.seeds})")
        parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, one thread each (1)")
        parser.add_argument("--quick", action="store_true", help="as little as shows that it runs, not what is true")
    parser.add_argument(
        "--report-only", action="store_true", help="measure nothing; findings and picture of the figures that are there"
    )
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with Fashion-MNIST's four files")
    parser.add_argument(
        "--out", type=Path, default=None, help=f"folder of figures and picture ({report_folder('learn')})"
    )


def _run(lesson: Lesson, arguments: argparse.Namespace) -> None:
    """Measure one lesson and write its report.

    Raises:
        ConfigError: a count below 1.
        TrainingError: as trainings and the disk do.
    """
    if lesson.seeds and arguments.seeds < 1:
        raise ConfigError(f"--seeds {arguments.seeds}: expected at least 1")
    if arguments.jobs < 1:
        raise ConfigError(f"--jobs {arguments.jobs}: expected at least 1")
    # Made-up budgets must not land among true figures.
    out = arguments.out or report_folder("learn-quick" if arguments.quick else "learn")
    require_folder(out)
    setting = Setting(
        seeds=arguments.seeds,
        load=lambda: load(arguments.data_dir),
        store=out / STORE,
        command=_command(lesson, arguments),
        jobs=arguments.jobs,
        quick=arguments.quick,
    )
    torch.set_num_threads(1)  # the layers are too small to share
    if arguments.report_only:
        report_again(lesson, out)
    else:
        report(lesson, setting, out)
    write_file(out / PAGE, page(catalogue.LESSONS, out).encode(), "choose another --out")


def _command(lesson: Lesson, arguments: argparse.Namespace) -> str:
    seeds = f" --seeds {arguments.seeds}" if lesson.seeds else ""
    jobs = f" --jobs {arguments.jobs}" if arguments.jobs > 1 else ""
    return f"foldserve learn {lesson.name}{seeds}{jobs}{' --quick' if arguments.quick else ''}"
