"""The parser of every command: what is wrong with the words that were typed is one sentence, not a page of usage."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from .exit_codes import USAGE
from .json_document import FLAG, complain

_INNERMOST = "parser of the innermost command"  # a key of the namespace that no flag can have


class Parser(argparse.ArgumentParser):
    """The library's, whose mistakes fill one line under the name of the command that was typed; likewise below it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.set_defaults(**{_INNERMOST: self})  # a subcommand's defaults win over those of the parser around it

    # The library's types tell apart who gives a namespace.
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Return what was typed; words too many are the mistake of the subcommand behind which they stand."""
        known, extra = self.parse_known_args(args, namespace)
        if extra:
            getattr(known, _INNERMOST).error(f"unrecognized arguments: {' '.join(extra)}")
        delattr(known, _INNERMOST)
        return known

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the rest is explained, and end the process as a mistake that can be mended."""
        complain(f"{self.prog}: error: {message}; `{self.prog} --help` explains it")
        self.exit(USAGE)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give a command the flag that makes it print one JSON document; `json_document` says what that holds."""
    parser.add_argument(FLAG, action="store_true", help="print one JSON document and nothing else on standard output")
