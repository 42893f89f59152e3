"""The parser of every command: what is wrong with the words that were typed is one sentence, not a page of usage."""

import argparse
from typing import NoReturn

from .exit_codes import USAGE
from .json_document import FLAG, complain


class Parser(argparse.ArgumentParser):
    """The library's, whose mistakes fill one line; its subcommands are parsed in the same way."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the rest is explained, and end the process as a mistake that can be mended."""
        complain(f"{self.prog}: {message}; `{self.prog} --help` explains it")
        self.exit(USAGE)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give a command the flag that makes it print one JSON document; `json_document` says what that holds."""
    parser.add_argument(FLAG, action="store_true", help="print one JSON document and nothing else on standard output")
