"""The page of all lessons' results: made of their JSON files, so that it says what they hold and nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..tables import markdown_table, origins_text
from .lesson import Lesson

PAGE = "README.md"
_HEAD = """# What the book says, measured

Each part is a lesson: `foldserve learn NAME` measures it again and writes its part of this page. *As said* compares
with the text or with a formula; a number that is not as said stays here as it is. [The walk through the book's
section](../../learn/README.md) tells what they mean.
"""


def page(lessons: Sequence[Lesson], folder: Path) -> str:
    """Return the page of those of `lessons` whose files lie in `folder`, in Markdown."""
    files = [(lesson, folder / f"{lesson.name}.json") for lesson in lessons]
    parts = [_part(lesson, json.loads(path.read_text(encoding="utf-8"))) for lesson, path in files if path.is_file()]
    return "\n".join([_HEAD, *parts])


def _part(lesson: Lesson, held: Any) -> str:
    reading = lesson.read(held["figures"])
    findings = [
        (each["what"], each["measured"], each["said"], "as said" if each["agrees"] else "**not as said**")
        for each in held["findings"]
    ]
    lines = [
        f"## {lesson.name}",
        f"Said: {held['says']}.",
        markdown_table(("what", "measured", "said", ""), findings),
        *([markdown_table(reading.columns, reading.rows)] if reading.rows else []),
        *([f"![{lesson.name}]({lesson.name}.png)"] if lesson.draw is not None else []),
        origins_text(held["origins"]),
    ]
    return "\n\n".join(line.strip("\n") for line in lines) + "\n"
