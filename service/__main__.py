"""`python -m service`: the same as `foldserve serve`, in a checkout and in the image."""

import gc
import sys

gc.disable()  # until all is imported, see `foldserve.service.factory`

from foldserve.service.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
