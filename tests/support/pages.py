"""The blocks of a page of documentation, and what stands before those that a usual machine cannot run.

A line `<!-- needs NAME -->` before a block says what it needs; `NEEDS` says which target runs it then. It is a comment,
since words behind the language of a block would keep the site from showing it as code.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RUNNABLE = ("sh", "python", "js")
NEEDS = {
    "triton": "clients-test",
    "minutes": "pages-test",
    "ray": "cluster-test",
}  # what a block needs -> the target that runs it
_BLOCK = re.compile(r"^(?:<!-- needs (\S+) -->\n)?```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: all that stands behind the fence.
        text: between the fences.
        needs: a key of `NEEDS`; "" where a usual machine runs it.
    """

    language: str
    text: str
    needs: str


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page in order, of some languages or of all; `page` is its path in the repository."""
    found = [Block(language, text, needs) for needs, language, text in _BLOCK.findall((ROOT / page).read_text())]
    return [block for block in found if not languages or block.language in languages]


def lines(page: str) -> list[str]:
    """What a page has its reader type into a shell, command by command, less what is marked."""
    typed = [block.text for block in blocks(page, "sh") if not block.needs]
    return [line for text in typed for line in text.replace("\\\n", " ").splitlines() if line]
