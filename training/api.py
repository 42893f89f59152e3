"""`foldserve.train`: the command `train` as a function, its flags as arguments, the version's folder as answer."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from . import train_command
from .errors import ConfigError

_FLAGS = {"learning_rate": "lr"}


def train(
    data: str | Path | None = None,
    *,
    name: str | None = None,
    models_dir: str | Path = "models",
    out: str | Path | None = None,
    device: str = "auto",
    size: tuple[int, int] | None = None,
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
        models_dir: where the version appears.
        out: the run's own folder, for configuration, curves and weights; by default a new one in `runs`.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        size: height and width of an image in pixels, where the pictures differ or are large.
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
        TrainingError: an argument or the data do not fit, or something is not proved; nothing was published then.
    """
    given: dict[str, Any] = {
        "data": data, "name": name, "models_dir": models_dir, "out": out, "device": device, "val": val, "test": test,
        "init": init, "min_accuracy": min_accuracy,
        "size": None if size is None else "x".join(str(side) for side in size),
        **recipe,
    }  # fmt: skip
    words = [f"--{_FLAGS.get(key, key).replace('_', '-')}={value}" for key, value in given.items() if value is not None]
    return train_command.train_alone(_parse([*words, *(["--promote"] if promote else [])]))


class _Parser(argparse.ArgumentParser):
    """One whose complaints are errors of ours, since a function does not end its caller's process; no short forms."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"train: {message}")


def _parse(words: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="foldserve")
    train_command.add_parser(parser.add_subparsers(parser_class=_Parser))
    return parser.parse_args(["train", *words])
