"""The command line of training: parse, call, print an error as its sentence.

Errors of ours are one message on stderr and the exit code of their class; Ctrl-C ends with 130.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foldserve.arguments import Parser, add_json
from foldserve.exit_codes import DONE, INTERRUPTED
from foldserve.json_document import answering, complain, fill
from foldserve.patience import shown, tell

from . import artifact, train_command
from .data.again import same_data
from .data.flags import add_flags, request_of
from .dataset import Dataset, load
from .errors import ConfigError, TrainingError, VerifyError
from .fold import cli as fold_command
from .publish import cli as publish_command
from .ranks import ranks_of
from .reverify import Outcome, reverify, version_folder
from .studies import best, circles_report, compare, inspection
from .studies.learn import command as learn_command
from .torchserve import cli as import_command
from .user_model.source import open_source


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code: 0, that of the error's class, or 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    return answering(words, lambda: _main(words))


def _main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    try:
        if ranks_of().world_size > 1 and arguments.run is not train_command.run:
            raise ConfigError("torchrun starts train alone on several ranks; type this command without torchrun")
        arguments.run(arguments)
    except TrainingError as err:
        complain(str(err))
        return err.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        complain("interrupted; no unfinished model was published")
        return INTERRUPTED
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="foldserve", description="From data to a proved model file.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    train_command.add_parser(subparsers)
    _add_verify(subparsers)
    commands = (fold_command, publish_command, import_command, inspection, circles_report, compare, best, learn_command)
    for command in commands:
        command.add_parser(subparsers)
    return parser


def _add_verify(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="repeat on a published version what was proved when it was made",
        description="Repeat on a published version what was proved when it was made: digests, place, graph, golden "
        "answers, accuracy and, with the run's weights, the whole chain. The Python function foldserve.verify is "
        "another thing: it compares two networks, and foldserve.verify_onnx two ONNX files.",
    )
    parser.add_argument(
        "model",
        type=Path,
        help="version folder such as models/lenet-bn/1, model.onnx in one, or models/lenet-bn: its newest version",
    )
    parser.add_argument(
        "--weights", type=Path, default=None, help="model.safetensors of the run, or the weights of --source's factory"
    )
    parser.add_argument(
        "--network", metavar="package.module:factory", help="with --weights of a network of your own: what made it"
    )
    parser.add_argument("--source", help="the network that a version of your own was made from, as publish takes it")
    parser.add_argument("--factory-args", metavar="JSON", help="keyword arguments of the factory, a JSON object")
    parser.add_argument("--examples", metavar="PATH", help="pictures or rows for --source (made up)")
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with Fashion-MNIST's four files")
    add_flags(parser)
    add_json(parser)
    parser.set_defaults(run=_run_verify)


def _run_verify(arguments: argparse.Namespace) -> None:
    folder = version_folder(arguments.model)
    words = (arguments.source, arguments.weights, arguments.factory_args)
    checks = reverify(
        folder,
        lambda: _data_of(folder, arguments),
        arguments.weights,
        tell,
        network=arguments.network,
        open_original=None if arguments.source is None else lambda: open_source(*words),
        examples=arguments.examples,
        during=shown,
    )
    fill(folder=str(folder), checks=[check.as_dict() for check in checks])
    failed = [check.what for check in checks if check.outcome is Outcome.FAILED]
    if failed:
        raise VerifyError(f"{folder}: {len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
    passed = sum(check.outcome is Outcome.PASSED for check in checks)
    print(f"{folder}: {passed} of {len(checks)} checks passed, {len(checks) - passed} not checked")


def _data_of(folder: Path, arguments: argparse.Namespace) -> Dataset:
    """Return the data that a version was made from: those that --data names, or Fashion-MNIST."""
    model, manifest = artifact.read(folder)
    own = same_data(model, manifest, request_of(arguments))
    return load(arguments.data_dir) if own is None else own
