"""`python -m training`: the commands of training, in a checkout."""

import sys

from foldserve.training.command import main

if __name__ == "__main__":
    sys.exit(main())
