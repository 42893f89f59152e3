"""`python -m service`: the same as `foldserve serve`, `foldserve models` and `foldserve keys`, in a checkout."""

import sys

from foldserve.command import main

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(words if words[:1] in (["models"], ["keys"]) else ["serve", *words]))
