"""The parser of every command: what is wrong with the words that were typed is one sentence, not a page of usage."""

import argparse
from typing import NoReturn

from .exit_codes import USAGE


class Parser(argparse.ArgumentParser):
    """The library's, whose mistakes fill one line; its subcommands are parsed in the same way."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the rest is explained, and end the process as a mistake that can be mended."""
        self.exit(USAGE, f"{self.prog}: {message}; `{self.prog} --help` explains it\n")
