"""Flags that all commands of studies share, and what they mean."""

import argparse
from pathlib import Path

import torch

from ..device import resolve_device
from ..disk import obstacle
from ..errors import ConfigError


def report_folder(study: str) -> Path:
    """Return where a study reports unless told: beside the committed figures in a checkout, elsewhere under runs/."""
    results = Path("docs/results")
    return (results if results.is_dir() else Path("runs")) / study


def require_folder(out: Path) -> None:
    """Raise ConfigError when no report can be written into `out`: nothing is trained in vain."""
    existing = obstacle(out)
    if existing is not None:
        raise ConfigError(f"--out {out}: {existing} is no folder that can be written; choose another")


def add_options(parser: argparse.ArgumentParser, *, study: str, seeds: int) -> None:
    """Give `parser` the flags of a study whose main arms have `seeds` seeds."""
    out = report_folder(study)
    parser.add_argument("--seeds", type=int, default=seeds, help=f"trainings of each main arm ({seeds})")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, one thread each (1)")
    parser.add_argument("--compile", action="store_true", help="compile the steps of long trainings: faster on CPU")
    parser.add_argument("--device", default="auto", help="where it trains: auto, cpu, cuda or cuda:1 (auto)")
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--out", type=Path, default=out, help=f"folder of figures and report ({out})")
    parser.add_argument("--report-only", action="store_true", help="train nothing; report on what is measured already")


def command_of(arguments: argparse.Namespace, name: str) -> str:
    """Return the command `name` with the flags that decide its figures."""
    jobs = f" --jobs {arguments.jobs}" if arguments.jobs > 1 else ""
    compiled = " --compile" if arguments.compile else ""
    return f"foldserve {name} --seeds {arguments.seeds}{jobs}{compiled}"


def check_options(arguments: argparse.Namespace) -> torch.device:
    """Return the device that the flags name.

    Raises:
        ConfigError: a count below 1, several jobs on one GPU, or no report can be written.
        DeviceError: the device is not there.
    """
    for flag in ("seeds", "jobs"):
        if getattr(arguments, flag) < 1:
            raise ConfigError(f"--{flag} {getattr(arguments, flag)}: expected at least 1")
    require_folder(arguments.out)
    device = resolve_device(arguments.device)
    if device.type == "cuda" and arguments.jobs > 1:
        raise ConfigError(
            f"--jobs {arguments.jobs} with --device cuda: one GPU takes one training at a time; leave it out"
        )
    return device
