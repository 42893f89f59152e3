"""`python -m training`: the same as `foldserve`, in a checkout."""

import sys

from foldserve.command import main

if __name__ == "__main__":
    sys.exit(main())
