"""The command `foldserve`: one help text, and each command loaded only when it is typed.

The first word chooses; what follows is parsed by the command itself. Exit codes are those of `exit_codes`.
"""

import argparse
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import __version__
from .arguments import Parser
from .exit_codes import DONE, INTERRUPTED, USAGE
from .extras import what_to_install
from .json_document import answering, complain

ALIASES = {"train-and-export": "train"}
# onnxruntime's official packages send events to their maker from 1.31 on. It reads this before its first line runs;
# `disable_telemetry_events()` comes too late and leaves the connection in place, and an empty value is none.
TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"
# The library of gRPC writes to standard error what a client says in a frame, line breaks and all.
GRPC_LINES = "GRPC_VERBOSITY"
# pydantic would read what every installed distribution says of itself, to find plugins that the service does not have.
PLUGINS_OFF = "PYDANTIC_DISABLE_PLUGINS"


def _demo(words: Sequence[str]) -> int:
    from . import demo

    return demo.main(words[1:])


def _training(words: Sequence[str]) -> int:
    from .training import command

    return command.main(words)


def _serve(words: Sequence[str]) -> int:
    gc.disable()  # until all is imported, see `foldserve.service.factory`
    os.environ.setdefault(PLUGINS_OFF, "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))  # until the service drains, there is nothing to drain
    from .service.processes.signals import ignore_strays

    ignore_strays()  # before what takes long to import
    from .service.floors import below_floors

    if (reason := below_floors()) is not None:
        sys.stderr.write(f"foldserve serve: {reason}\n")
        return USAGE
    from .service import command

    return command.main(words[1:])


def _doctor(words: Sequence[str]) -> int:
    from .service import doctor

    return doctor.main(words[1:])


def _pull(words: Sequence[str]) -> int:
    from . import pull

    return pull.main(words[1:])


def _operator(words: Sequence[str]) -> int:
    from .service import models_cli

    return models_cli.main(words)


def _predict(words: Sequence[str]) -> int:
    from .client import cli

    return cli.main(words[1:])


def _bench(words: Sequence[str]) -> int:
    from . import bench

    return bench.main(words[1:])


def _completion(words: Sequence[str]) -> int:
    from . import completion

    return completion.main(words[1:], {name: command.help for name, command in COMMANDS.items()})


def _gpu_check(words: Sequence[str]) -> int:
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "benchmarks/training/gpu_check.py").is_file():
        sys.stderr.write(
            "foldserve gpu-check needs a checkout of the repository: it runs the tests and benchmarks there\n"
        )
        return USAGE
    command = [sys.executable, "-m", "benchmarks.training.gpu_check", *words[1:]]
    return subprocess.call(command, cwd=checkout)  # noqa: S603 - this interpreter, and what was typed


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        help: what it does, in a line.
        run: takes all words, the command's own first; returns the exit code.
        extras: that it needs.
    """

    help: str
    run: Callable[[Sequence[str]], int]
    extras: tuple[str, ...] = ()


_TRAINING = ("training", "cpu")
COMMANDS = {
    "demo": Command("serve the model that comes along, with a page to try it on", _demo, _TRAINING),
    "train": Command("train, fold, export, verify and publish as the next version", _training, _TRAINING),
    "compare": Command("with and without norms, over seeds, rates, batch sizes: a report", _training, _TRAINING),
    "best": Command("choose and measure the preset `best` over many seeds", _training, _TRAINING),
    "circles": Command("two circles with and without norms: tables and pictures", _training, _TRAINING),
    "learn": Command("what the book says of batch normalization, shown by running it", _training, _TRAINING),
    "inspect": Command("gamma, beta, mean and variance of every norm of a run", _training, _TRAINING),
    "fold": Command("fold the norms of an ONNX file or a PyTorch network into its weights", _training, _TRAINING),
    "publish": Command("publish a network of your own, proven from its examples", _training, _TRAINING),
    "import": Command("take over a TorchServe archive (.mar) as a published version", _training, _TRAINING),
    "verify": Command("repeat on a version folder what was proved when it was made", _training, _TRAINING),
    "serve": Command("serve the models of a folder over HTTP and gRPC (--demo: the one that comes along)", _serve),
    "pull": Command("bring versions from a bucket into a models folder, digests checked", _pull, ("pull",)),
    "doctor": Command("say what a service finds here: devices, cores, memory, ports, models, keys", _doctor),
    "predict": Command("ask a running service about pictures or rows", _predict, ("client",)),
    "models": Command("list, load, promote, roll back and compare models of a running service", _operator),
    "keys": Command("make API keys", _operator),
    "bench": Command("ask a service of this machine for some seconds, and say how fast it answers", _bench),
    "completion": Command("print what makes a shell complete commands and flags", _completion),
    "gpu-check": Command("run everything that needs a GPU (in a checkout)", _gpu_check, _TRAINING),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Mistakes and a missing extra are one line on standard error.

    It is a command's own process that keeps libraries from calling home, and from writing what is no event of a log;
    only where its user did not decide.
    """
    os.environ[TELEMETRY_OFF] = os.environ.get(TELEMETRY_OFF) or "1"
    os.environ.setdefault(GRPC_LINES, "NONE")
    words = list(sys.argv[1:] if argv is None else argv)
    return answering(words, lambda: _run(words))


def _run(words: list[str]) -> int:
    name = ALIASES.get(words[0], words[0]) if words else ""
    if name not in COMMANDS:
        _parser().parse_args(words)  # prints the help or the version, or says what is wrong, and ends
    command = COMMANDS[name]
    try:
        return command.run([name, *words[1:]])
    except ModuleNotFoundError as err:
        advice = what_to_install(err, command.extras)
        if advice is None:
            raise
        complain(f"foldserve {name}: {advice}")
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


def train_and_export() -> int:
    """Run `foldserve train`; the script train-and-export."""
    return main(["train", *sys.argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="foldserve",
        description="Train a BatchNorm network, fold it exactly, export it with its proof, and serve it.",
        epilog="`foldserve COMMAND --help` explains a command. Exit codes: 0 done, 1 failed, 2 a mistake that you can "
        "mend, 3 the service cannot start, 4 the service hung and ended itself, 130 Ctrl-C.",
    )
    parser.add_argument("--version", action="version", version=f"foldserve {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser
