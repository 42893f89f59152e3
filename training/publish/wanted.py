"""What a user wants published, as typed or as given in Python: one object for the commands and the function."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldserve.format.errors import FormatError
from foldserve.format.task import CLASSIFY, OUTPUTS, TENSORS
from foldserve.format.text import decoded

from ..errors import ConfigError

_HOLDERS = ("object_type_names", "id2label", "class_to_idx")  # keys of larger files, under which class names stand


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A network's surroundings.

    Attributes:
        labels: class names, index = class id.
        image: how pictures become its input, in any form that `recipes.read_image` takes; None: it takes no pictures.
        examples: pictures or rows, in any form that `examples` takes; None: made up.
        task: of `foldserve.format.task`; None: `classify` where there are labels, else `tensors`.
        scores: the output that the task is about, where there are several.
        threshold: of `multilabel`.
        columns: names of the values of a row.
        inputs: `[NAME=][DTYPE:]D,D,...` for each input, batch first, or example tensors.
        outputs: names of the outputs, in order; empty: the network's own.
    """

    labels: Sequence[str] | None = None
    image: Any = None
    examples: Any = None
    task: str | None = None
    scores: str | None = None
    threshold: float = 0.5
    columns: Sequence[str] | None = None
    inputs: Sequence[Any] = ()
    outputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in OUTPUTS:
            raise ConfigError(f"task {self.task!r}: expected one of {', '.join(OUTPUTS)}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold}: expected a probability, 0 to 1")
        if self.labels is not None and self.chosen_task not in (CLASSIFY, "multilabel"):
            raise ConfigError(f"labels with task {self.task}: expected classify or multilabel; leave one of both out")

    @property
    def chosen_task(self) -> str:
        """The task, by default what the labels suggest."""
        return self.task or (TENSORS if self.labels is None else CLASSIFY)


def read_labels_file(path: Path) -> tuple[str, ...]:
    """Return the class names of a file: one on each line, JSON as `labels_in_json` reads it, or CSV of ids and names.

    Raises:
        ConfigError: it cannot be read, or a name is empty or stands there twice.
    """
    import json
    import re

    try:
        text = decoded(path.read_bytes(), f"--labels {path}")
    except OSError as err:
        raise ConfigError(
            f"--labels {path} cannot be read: {err.strerror or err}; expected UTF-8 text, one class name on each line"
        ) from err
    except FormatError as err:
        raise ConfigError(str(err)) from err
    if path.suffix.lower() == ".json":
        try:
            stated = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise ConfigError(f"--labels {path} is not JSON: {err}; expected an array of names") from err
        return labels_in_json(stated, f"--labels {path}")
    names = [line.strip() for line in re.split("\r\n|\n|\r", text)]
    while names and not names[-1]:
        names.pop()
    if path.suffix.lower() == ".csv":
        names = _labels_in_csv(names, f"--labels {path}")
    return checked_labels(names, f"--labels {path}")


def _labels_in_csv(lines: list[str], what: str) -> list[str]:
    """Return the class names of lines `name` or `id,name`, with or without a line of headings before the latter."""
    import csv

    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    widths = {len(row) for row in rows}
    if widths == {2} and not rows[0][0].isdecimal():
        del rows[0]
    if widths == {1}:
        return [name for (name,) in rows]
    by_id = {row[0]: row[1] for row in rows} if widths == {2} else {}
    if set(by_id) != {str(number) for number in range(len(rows))}:
        raise ConfigError(f"{what}: expected lines of a name, or of a class id and a name with the ids 0, 1, 2 and on")
    return [by_id[str(number)] for number in range(len(rows))]


def labels_in_json(stated: Any, what: str) -> tuple[str, ...]:
    """Return the class names of a JSON array or object, as TorchServe, Hugging Face and torchvision's users write them.

    Args:
        stated: names, or lists whose last entry is one; or an object: names by class id, class ids by name
            (`class_to_idx`), or one of these under `object_type_names`, `id2label` or `class_to_idx`.
        what: where it was read, for messages.

    Raises:
        ConfigError: it is neither, a class id is missing, or a name is empty or stands there twice.
    """
    if isinstance(stated, dict):
        stated = next((stated[key] for key in _HOLDERS if isinstance(stated.get(key), list | dict)), stated)
    if isinstance(stated, dict) and stated and all(type(number) is int for number in stated.values()):
        by_id = {str(number): name for name, number in stated.items()}
        if len(by_id) < len(stated):
            raise ConfigError(
                f"{what}: {len(stated)} names for {len(by_id)} class ids; expected an id of its own for each"
            )
        stated = by_id
    if isinstance(stated, dict):
        ids = [str(number) for number in range(len(stated))]
        missing = [key for key in ids if key not in stated]
        if missing:
            raise ConfigError(f"{what}: {len(stated)} names and none for class {missing[0]}; expected 0 and up")
        stated = [stated[key] for key in ids]
    if not isinstance(stated, list):
        raise ConfigError(f"{what}: got {type(stated).__name__}, expected an array of names, or names by class id")
    return checked_labels([name[-1] if isinstance(name, list) and name else name for name in stated], what)


def checked_labels(names: Sequence[str], what: str = "labels") -> tuple[str, ...]:
    """Return class names that can stand one on a line each.

    Raises:
        ConfigError: one is empty, holds a line break, or stands there twice; or there are none.
    """
    if not names:
        raise ConfigError(f"{what}: no class name; expected one for each class")
    for number, name in enumerate(names):
        if not isinstance(name, str) or name.splitlines() != [name] or "\0" in name or _is_undecoded(name):
            raise ConfigError(f"{what}: class {number} is {name!r:.80}; expected one line of text for each class")
    twice = sorted({name for name in names if list(names).count(name) > 1}) if len(set(names)) < len(names) else []
    if twice and len(names) < 100:
        raise ConfigError(f"{what}: {twice[0]!r} stands there twice; expected a name of its own for each class")
    return tuple(names)


def _is_undecoded(name: str) -> bool:
    """Return whether a name holds bytes that were no text, as the name of a folder in another encoding does."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)
