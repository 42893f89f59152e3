"""Code of the user's that runs inside ours: whatever it raises becomes one sentence and does not end the process."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import TrainingError

_OURS = Path(__file__).parents[1]


@contextmanager
def foreign_code(refusal: Callable[[BaseException], TrainingError]) -> Iterator[None]:
    """Raise `refusal` of whatever the block raises, `sys.exit` included, but for Ctrl-C and errors of ours."""
    try:
        yield
    except (TrainingError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as err:  # the user's code may raise anything, and end in any way
        raise refusal(err) from err


def cause(err: BaseException) -> str:
    """Return what happened in a few words, such as `raised ValueError: no such layer`."""
    if isinstance(err, SystemExit):
        return f"called sys.exit({'' if err.code is None else repr(err.code)})"
    lines = str(err).strip().splitlines()
    return f"raised {type(err).__name__}{f': {lines[0]}' if lines else ''}"


def place(err: BaseException) -> str:
    """Return where in the user's code `err` was raised, such as ` (mynets.py, line 7)`; empty where it is not there."""
    others = ("<", str(_OURS))
    frames = traceback.extract_tb(err.__traceback__)
    own = [each for each in frames if not each.filename.startswith(others) and "site-packages" not in each.filename]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
