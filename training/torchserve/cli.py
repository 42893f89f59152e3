"""The command `foldserve import`: a TorchServe archive -> a published version, by the way that `publish` goes."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from foldserve.json_document import fill

from ..errors import ConfigError
from ..publish.cli import add_publish_arguments, add_surroundings, publish_arguments
from .archive import Archive, open_archive
from .stated import IMAGE, Stated, read_stated

_DESCRIPTION = """\
Take over a TorchServe archive of the handler image_classifier: its weights, its class names, and the pictures'
preparation that this handler has. The archive's Python is never imported or run: a network in Python is given anew
with --network.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Register the subcommand `import` and return its parser; `args.run` is `run`."""
    parser = subparsers.add_parser(
        "import",
        help="take over a TorchServe archive (.mar) of the handler image_classifier",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="a .mar, a .tar.gz or the folder of one")
    parser.add_argument(
        "--network", metavar="package.module:factory", help="what makes the network whose weights the archive holds"
    )
    parser.add_argument("--factory-args", metavar="JSON", help="keyword arguments of the factory, a JSON object")
    parser.add_argument(
        "--run-torchscript",
        action="store_true",
        help="run the archive's TorchScript, a program that can write files: only where you trust its maker",
    )
    parser.add_argument("--name", help="of the model; part of its URL (as the archive says)")
    add_surroundings(parser, image_default=IMAGE, task_default="classify")
    add_publish_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Publish what the archive holds, print the report and return the exit code 0.

    Raises:
        ConfigError: the archive, an argument or the examples do not fit (exit code 2).
        TrainingError: the network cannot be exported, proved or written (exit code 1).
    """
    from ..fold.patience import shown
    from ..publish.api import publish

    with open_archive(args.archive) as archive:
        stated = read_stated(archive)
        options = publish_arguments(args)
        options["name"] = args.name or stated.name
        if options["labels"] is None:
            options["labels"] = stated.labels
        with _unpacked(archive, stated) as file, shown("publishing"):
            published = publish(**_source(args, stated, file), **options)
    fill(**published.as_dict())
    if not args.json:
        print(f"{_taken_over(args.archive, stated)}\n{published}")
    return 0


@contextmanager
def _unpacked(archive: Archive, stated: Stated) -> Iterator[Path]:
    """Give the archive's weights as a file of their own, under a name without a path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PurePosixPath(stated.weights).name
        archive.copy(stated.weights, path)
        try:
            yield path
        except ConfigError as err:  # in words of the archive, not of a file that is gone when they are read
            raise ConfigError(str(err).replace(str(path), f"{archive.path}: {stated.weights}")) from err


def _source(args: argparse.Namespace, stated: Stated, file: Path) -> dict[str, Any]:
    if stated.is_eager:
        if args.network is None:
            raise ConfigError(
                f"{args.archive} holds weights of a network whose code is Python, which is never run from an archive; "
                "copy that code to a file of your own and name what makes the network: --network package.module:factory"
            )
        return {"model": args.network, "weights": file, "factory_args": args.factory_args}
    if args.network is not None:
        raise ConfigError(f"--network: {args.archive} holds a whole network ({stated.weights}), not weights for one")
    if file.suffix in (".onnx", ".pt2"):
        return {"model": str(file)}
    return {"model": _script(args, stated, file)}


def _script(args: argparse.Namespace, stated: Stated, file: Path) -> Any:
    if not args.run_torchscript:
        raise ConfigError(
            f"{args.archive}: {stated.weights} is TorchScript, a program that can write files where it runs; if you "
            "trust its maker, add --run-torchscript; otherwise publish the network that it was made from"
        )
    from ..user_model.torchscript import load_script

    return load_script(file)


def _taken_over(path: Path, stated: Stated) -> str:
    return f"taken over from {path.name}: {stated.name} {stated.version}, handler image_classifier, {stated.weights}"
