"""`python -m foldserve`: the same as the command `foldserve`."""

import sys

from foldserve.command import main

if __name__ == "__main__":
    sys.exit(main())
