"""The flags that name data of one's own, for every command that takes such data, and what they mean."""

import argparse
from pathlib import Path

from foldserve.format.names import MODEL_NAME_RULE, is_model_name

from ..errors import ConfigError
from .request import COLOURS, RESIZES, DataRequest, read_image_file

PICTURE_FLAGS = ("size", "resize", "colour", "image")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Register `--data` and the flags beside it."""
    group = parser.add_argument_group("data of your own (without --data: Fashion-MNIST)")
    group.add_argument(
        "--data",
        metavar="PATH",
        help="folder with one folder of pictures for each class, or with train, val and test that hold such folders; "
        ".npz file; folder with IDX files as MNIST's; folder of CIFAR-10 or CIFAR-100",
    )
    group.add_argument("--val", metavar="PATH|SHARE", help="images to choose by: a set of its own, or a share (0.1)")
    group.add_argument("--test", metavar="PATH|SHARE", help="images to test on, which choose nothing; likewise (0.1)")
    group.add_argument("--split-seed", type=int, help="another one holds out other images (0)")


def add_picture_flags(parser: argparse.ArgumentParser) -> None:
    """Register the flags that say how a picture becomes an image."""
    group = parser.add_argument_group("pictures (the same is done in training and in the service)")
    group.add_argument("--size", metavar="HxW", help="of an image in pixels, such as 64x64 (that of the pictures)")
    group.add_argument("--resize", choices=RESIZES, help="stretched, its middle, or all of it on black (exact)")
    group.add_argument("--colour", choices=COLOURS, help="RGB, or grey as 0.299 R + 0.587 G + 0.114 B (RGB)")
    group.add_argument("--image", type=Path, metavar="FILE", help="JSON of a whole recipe, in place of the three")


def request_of(arguments: argparse.Namespace) -> DataRequest:
    """Return the request that the flags make.

    Raises:
        ConfigError: flags contradict one another.
    """
    given = {name: getattr(arguments, name, None) for name in ("data", "val", "test", "split_seed", *PICTURE_FLAGS)}
    for name in ("data", "val", "test"):
        if given[name] == "":
            raise ConfigError(f"--{name} is empty: expected a path; was it a variable that is not set?")
    if not given["data"]:
        for name in ("test", *PICTURE_FLAGS):
            if given[name] is not None:
                raise ConfigError(f"--{name} without --data: Fashion-MNIST has its own; give --data, or leave it out")
    if given["image"] is not None:
        for name in ("size", "resize", "colour"):
            if given[name] is not None:
                raise ConfigError(f"--{name} with --image: the recipe in the file says it; leave one out")
        given["image"] = read_image_file(given["image"])
    if given["split_seed"] is not None and given["split_seed"] < 0:
        raise ConfigError(f"--split-seed {given['split_seed']}: expected 0 or more")
    request = DataRequest(**{name: value for name, value in given.items() if value is not None})
    if not request.data and request.val and request.shares[0] is None:
        raise ConfigError(f"--val {request.val} without --data: expected a share such as 0.1 of the training images")
    return request.absolute()


def model_name(data: str) -> str:
    """Return the name of a model for data at a path: that of the folder or file.

    Raises:
        ConfigError: it cannot be the name of a model.
    """
    name = Path(data).absolute().name.removesuffix(".npz")
    if not is_model_name(name):
        raise ConfigError(f"--data {data}: {name!r} is no name for a model ({MODEL_NAME_RULE}); give one by --name")
    return name
