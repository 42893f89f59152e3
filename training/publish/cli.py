"""The command `foldserve publish`: what was typed -> `publish`, and what it says."""

import argparse
from pathlib import Path
from typing import Any

from foldserve.arguments import add_json
from foldserve.format.task import OUTPUTS
from foldserve.json_document import fill

_DESCRIPTION = """\
Publish a network of your own: fold it, prove it on your examples, and write a version folder that the service answers
from.

SOURCE is package.module:factory for a PyTorch network, an exported program (.pt2) or an ONNX file. Nothing is written
unless everything is proved.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Register the subcommand `publish` and return its parser; `args.run` is `run`."""
    parser = subparsers.add_parser(
        "publish",
        help="publish a network of your own, proven from its examples to the version folder",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    add_surroundings(parser)
    parser.add_argument("--name", required=True, help="of the model; part of its URL")
    add_publish_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def add_publish_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the version goes, what it has to be good for, and what is printed."""
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="where the version appears (models)")
    parser.add_argument("--card", type=Path, metavar="FILE", help="model card in Markdown, kept as README.md")
    parser.add_argument("--license", type=Path, metavar="FILE", help="text of the licence, kept as LICENSE")
    parser.add_argument("--min-accuracy", type=float, help="publish nothing that is right on a smaller share")
    parser.add_argument("--promote", action="store_true", help="let it go live although it is worse than before")
    parser.add_argument("--dry-run", action="store_true", help="prove it and write nothing")
    add_json(parser)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which network is meant."""
    parser.add_argument("source", metavar="SOURCE", help="package.module:factory, network.pt2 or network.onnx")
    parser.add_argument("--weights", type=Path, help="safetensors, .pt or .pth file for the factory's network")
    parser.add_argument("--factory-args", metavar="JSON", help="keyword arguments of the factory, a JSON object")


def add_surroundings(
    parser: argparse.ArgumentParser, image_default: str | None = None, task_default: str | None = None
) -> None:
    """Add what surrounds the network, with what an archive of another server means where nothing is said."""
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one on each line, or JSON")
    parser.add_argument(
        "--image",
        metavar="KEY=VALUE,...",
        default=image_default,
        help="how pictures become the input, such as resize=256,crop=224,mean=imagenet,std=imagenet; or @file.json",
    )
    parser.add_argument(
        "--examples",
        metavar="PATH",
        help="pictures: file, folder, or a folder for each class; rows: .npy .npz .csv",
    )
    parser.add_argument(
        "--task",
        choices=tuple(OUTPUTS),
        default=task_default,
        help="what outputs mean (classify with labels, else tensors)",
    )
    parser.add_argument("--scores", metavar="OUTPUT", help="the output that the task is about, where there are several")
    parser.add_argument("--threshold", type=float, default=0.5, help="of multilabel (0.5)")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=][DTYPE:]D,D,...",
        help="shape of one input, batch first, such as 1,3,224,224; once per input, in order",
    )
    parser.add_argument("--output", action="append", default=[], metavar="NAME", help="name of an output; once each")


def run(args: argparse.Namespace) -> int:
    """Publish what `args` name, print the report and return the exit code 0.

    Raises:
        ConfigError: an argument, a file or the examples do not fit (exit code 2).
        TrainingError: the network cannot be exported, proved or written (exit code 1).
    """
    from ..fold.patience import shown
    from .api import publish

    with shown("publishing"):
        published = publish(
            args.source,
            name=args.name,
            weights=args.weights,
            factory_args=args.factory_args,
            **publish_arguments(args),
        )
    fill(**published.as_dict())
    if not args.json:
        print(published)
    return 0


def publish_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_surroundings` and `add_publish_arguments` read, as arguments of `publish`."""
    from .wanted import read_labels_file

    return {
        "labels": None if args.labels is None else read_labels_file(args.labels),
        "image": args.image,
        "examples": args.examples,
        "task": args.task,
        "scores": args.scores,
        "threshold": args.threshold,
        "inputs": args.input,
        "outputs": args.output,
        "models_dir": args.models_dir,
        "card": args.card,
        "license": args.license,
        "min_accuracy": args.min_accuracy,
        "promote": args.promote,
        "dry_run": args.dry_run,
    }
