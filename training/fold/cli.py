"""The command `foldserve fold`: an ONNX file or the user's own network in, the folded one and a report out.

The outermost layer of the package: it parses, checks paths, calls `fold` or `fold_onnx`, prints and writes.

Exit codes: 0 when the fold was done and proved, refusals included; 1 when it was not (a proof failed, the model is
broken, `--strict` and a norm stays); 2 when an argument has to be mended. Errors are raised as `TrainingError`, whose
message is one sentence; the caller prints it and takes the code from it.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from foldserve.arguments import add_json
from foldserve.json_document import fill

from ..errors import ConfigError
from ..user_model.factory import is_factory
from .patience import limited_to, shown
from .report import Report

_DESCRIPTION = """\
Take the norms out of a network by folding them into neighbouring weights, exactly, with proof, or say why not.

SOURCE is an ONNX file, package.module:factory for a PyTorch network (set to eval mode), or an exported program.
Without OUT or --export nothing is written, and the report says what a fold does.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Register the subcommand `fold` and return its parser; `args.run` is `run`."""
    parser = subparsers.add_parser(
        "fold",
        help="fold the norms of an ONNX file or a PyTorch network into its weights",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="in.onnx, package.module:factory or net.pt2")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="folded ONNX file; must not exist")
    parser.add_argument("--weights", type=Path, help="safetensors, .pt or .pth file for the factory's network")
    parser.add_argument("--factory-args", metavar="JSON", help="keyword arguments of the factory, a JSON object")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[DTYPE:]D,D,...",
        help="shape of one input, batch first, such as 1,3,224,224 or uint8:1,1,28,28; once per input, in order; "
        "an ONNX file needs it only where no free size that is tried fits",
    )
    parser.add_argument("--export", type=Path, metavar="OUT.onnx", help="write the factory's folded network as ONNX")
    parser.add_argument("--padding", choices=("refuse", "exact"), default="refuse", help="norms before padded convs")
    parser.add_argument(
        "--entrances",
        choices=("traced", "any"),
        default="traced",
        help='"any" for a factory\'s network that is meant to be used in other ways than its forward as traced',
    )
    parser.add_argument(
        "--duplicate",
        choices=("refuse", "allow"),
        default="refuse",
        help='"allow" computes layers of a factory\'s network twice for norms beside other readers',
    )
    parser.add_argument("--strict", action="store_true", help="fail when any norm has to stay")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this long (default: never)")
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Fold what `args` names, print the report and return the exit code 0.

    Raises:
        ConfigError: an argument or a path cannot be used (exit code 2).
        FoldError: the model cannot be read, folded or proved (exit code 1).
    """
    is_module = is_factory(args.source) or Path(args.source).suffix == ".pt2"
    with limited_to(args.timeout), shown():
        report = _fold_module(args) if is_module else _fold_file(args)
    written = args.out or args.export
    fill(**report.as_dict(), wrote=None if written is None else str(written))
    if not args.json:
        print(report.table())
        if written is not None:
            print(f"wrote {written}")
    return 0


def _fold_file(args: argparse.Namespace) -> Report:
    from .onnx.api import fold_onnx
    from .onnx.files import load_onnx, require_writable, write_onnx

    for name in ("weights", "export", "factory_args"):
        if getattr(args, name):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for package.module:factory; {args.source} is taken for an ONNX file")
    if args.out is not None:
        require_writable(args.out)
    model = load_onnx(Path(args.source))
    shapes = _shapes(model, args.input) if args.input else None
    folded = fold_onnx(model, strict=args.strict, padding=args.padding, input_shapes=shapes)
    if args.out is not None:
        write_onnx(folded.model, args.out)
    return folded.report


def _shapes(model: Any, specs: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape that `--input` gives to each input of an ONNX model."""
    from ..user_model.inputs import make_inputs

    parameters = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in parameters]
    if len(specs) != len(names):
        raise ConfigError(f"--input: got {len(specs)} shapes, expected {len(names)}, for {', '.join(names)}")
    return {name: tuple(tensor.shape) for name, tensor in zip(names, make_inputs(specs), strict=True)}


def _fold_module(args: argparse.Namespace) -> Report:
    from ..user_model.inputs import make_inputs
    from ..user_model.source import open_source
    from .api import fold
    from .onnx.files import require_writable

    if args.out is not None:
        raise ConfigError(f"OUT {args.out} is for an ONNX source; write a PyTorch network with --export OUT.onnx")
    if args.export is not None:
        require_writable(args.export)
    made = make_inputs(args.input)
    source = open_source(args.source, args.weights, args.factory_args)
    inputs = made or source.example
    if not inputs:
        raise ConfigError("a PyTorch network needs --input, such as --input 1,3,224,224")
    options = {"strict": args.strict, "padding": args.padding}
    folded = fold(source.module, inputs, entrances=args.entrances, duplicate=args.duplicate, **options)
    if args.export is not None:
        _export(folded, inputs, args.export)
    return replace(folded.report, notes=(*source.notes, *folded.report.notes))


def _export(folded: Any, inputs: tuple[Any, ...], path: Path) -> None:
    from .onnx.exporter import export_folded
    from .onnx.files import write_onnx

    write_onnx(export_folded(folded, inputs), path)
