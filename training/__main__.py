"""`python -m foldserve.training`: the same as `foldserve`, and what torchrun starts; `train` may be left out there.

torchrun --nproc-per-node 2 -m foldserve.training --preset best
"""

import sys

from foldserve.command import main
from foldserve.training.ranks import is_launched, leave


def words(given: list[str]) -> list[str]:
    """Return the words of the command line, with `train` before flags alone where torchrun started the process."""
    return ["train", *given] if is_launched() and (not given or given[0].startswith("-")) else given


if __name__ == "__main__":
    leave(main(words(sys.argv[1:])))
