"""What `--json` means for every command that knows it: one JSON object on standard output, all else on standard error.

`ok` says whether the command did what was asked, which its exit code says too. Where it is false, `error` is the
sentence that also stands on standard error, if there is one. The other keys are the command's own.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from .exit_codes import DONE

FLAG = "--json"
_open: list[dict[str, Any]] = []  # of the command that runs, if it was typed with the flag


def answering(words: Sequence[str], command: Callable[[], int]) -> int:
    """Run a command and return its exit code; with the flag among its words, print its document once it has ended.

    One inside another adds to the outer one's document.
    """
    if FLAG not in words or _open:
        return command()
    document: dict[str, Any] = {}
    _open.append(document)
    code: object = None
    try:
        with redirect_stdout(sys.stderr):
            code = command()
        return code
    except SystemExit as end:
        code = DONE if end.code is None else end.code
        raise
    except BaseException as err:
        document.setdefault("error", f"{type(err).__name__}: {err}")
        raise
    finally:
        _open.pop()
        print(json.dumps(_plain({"ok": code == DONE, **document}), indent=2, ensure_ascii=False), flush=True)


def fill(**entries: Any) -> None:
    """Add to the document; does nothing where none was asked for."""
    if _open:
        _open[-1].update(entries)


def complain(sentence: str) -> None:
    """Say on standard error, and in the document where one was asked for, why a command does not do what was asked."""
    fill(error=sentence)
    sys.stderr.write(f"{sentence}\n")


def _plain(value: Any) -> Any:
    """Return values with None for the floats that JSON does not know."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
