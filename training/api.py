"""`foldserve.train`: the command `train` as a function, its flags as arguments, the version's folder as answer."""

import argparse
import difflib
import numbers
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from . import train_command
from .errors import ConfigError
from .ranks import ranks_of

_OTHER_NAMES = {"lr": "learning_rate"}


def train(
    data: str | Path | None = None,
    *,
    name: str | None = None,
    models_dir: str | Path | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    device: str | None = None,
    size: tuple[int, int] | int | str | None = None,
    val: str | Path | float | None = None,
    test: str | Path | float | None = None,
    init: str | Path | None = None,
    min_accuracy: float | None = None,
    promote: bool = False,
    **recipe: str | int | float,
) -> Path:
    """Train, prove and publish the next version as `foldserve train` does, lines of progress included.

    Args:
        data: folder of pictures with one folder a class, .npz file, IDX or CIFAR files; None: Fashion-MNIST.
        name: of the model; by default that of the folder or file, else lenet-bn.
        models_dir: where the version appears, `models` by default.
        out: the run's own folder, for configuration, curves and weights; by default a new one in `runs`.
        resume: the folder of a run that was stopped, or that trains on to more `epochs`; it keeps its data and recipe.
        device: `auto` (the default), `cpu`, `cuda` or `cuda:1`.
        size: height and width of an image in pixels, where the pictures differ or are large; one number for both.
        val: images to choose by: a folder, or a share of each class.
        test: images to test on, likewise.
        init: weights file to start from.
        min_accuracy: publish nothing below it.
        promote: let it go live although it is worse than the version before.
        recipe: any other flag of the command, with underscores: `network`, `preset`, `epochs`, `learning_rate`,
            `batch_size`, `seed`, `optimizer` and so on.

    Returns:
        The folder of the version.

    Raises:
        TrainingError: an argument or the data do not fit, or something is not proved; nothing was published then. A
            network that was trained is kept all the same, and the message says where.
    """
    given: dict[str, Any] = {
        "data": data, "name": name, "models_dir": models_dir, "out": out, "resume": resume, "device": device,
        "size": _sides(size), "val": val, "test": test, "init": init, "min_accuracy": min_accuracy, "promote": promote,
        **{_OTHER_NAMES.get(key, key): value for key, value in recipe.items()},
    }  # fmt: skip
    if ranks_of().world_size > 1:
        raise ConfigError(
            "train: torchrun started this program several times, and each would train a network of its own; start it "
            "without torchrun, or train by `torchrun ... -m foldserve.training`"
        )
    parser = _Parser(prog="foldserve")
    flags = train_command.add_parser(parser.add_subparsers(parser_class=_Parser))
    return train_command.train_alone(parser.parse_args(["train", *_words(given, flags)]))


class _Parser(argparse.ArgumentParser):
    """One whose complaints are errors of ours, since a function does not end its caller's process; no short forms."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"train: {message}")


def _words(given: Mapping[str, Any], parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield what somebody would type for the arguments, so that the command's own parser judges their values.

    Raises:
        ConfigError: there is no such flag, or the value is of a type that it does not take.
    """
    flags = {action.dest: action for action in parser._actions if action.dest not in ("help", "json")}
    for key, value in given.items():
        if key not in flags:
            near = difflib.get_close_matches(key, flags, 1)
            known = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(flags))}"
            raise ConfigError(f"train: there is no argument {key}; {known}")
        if value is None:
            continue
        flag, is_switch = flags[key].option_strings[-1], flags[key].nargs == 0
        expected = _expected_type(flags[key])
        if isinstance(value, bool) != is_switch or not isinstance(value, expected):
            raise ConfigError(f"train: {key} is {value!r}, a {type(value).__name__}; expected {_TYPE_NAMES[expected]}")
        if "\0" in str(value):
            raise ConfigError(f"train: {key} is {value!r}; expected text without a null character")
        if is_switch:
            yield from [flag] if value else []
        else:
            yield f"{flag}={value}"


_NUMBER: tuple[type, ...] = (numbers.Real, str)  # as text a number is parsed like one that was typed
_TEXT: tuple[type, ...] = (str, os.PathLike)
_TYPE_NAMES: Mapping[tuple[type, ...], str] = {
    (bool,): "True or False",
    _NUMBER: "a number",
    _TEXT: "text or a path",
    _NUMBER + _TEXT: "a path or a number",
}


def _expected_type(action: argparse.Action) -> tuple[type, ...]:
    if action.nargs == 0:
        return (bool,)
    if action.dest in ("val", "test"):
        return _NUMBER + _TEXT
    return _NUMBER if action.type in (int, float) else _TEXT


def _sides(size: Any) -> str | None:
    """Return a size as the flag takes it.

    Raises:
        ConfigError: it is none.
    """
    if size is None or (isinstance(size, str) and size):
        return size
    sides = (size,) if isinstance(size, numbers.Integral) else size
    if (
        isinstance(sides, tuple | list)
        and len(sides) == (1 if sides is not size else 2)
        and all(isinstance(side, numbers.Integral) and not isinstance(side, bool) for side in sides)
    ):
        return "x".join(map(str, sides))
    raise ConfigError(f"train: size is {size!r}; expected (height, width) in pixels, such as (64, 64), or one number")
