"""Who changed what: one line in the log for each change of models and keys, and for keys that were refused.

Both are written whatever the log level is. What comes in numbers is rationed, so that guessing keys fills no disk; the
metrics have all of it.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import clip
from .request_context import Caller

_log = logging.getLogger("foldserve.audit")

_REFUSAL_SECONDS = 1.0  # between two lines
_MOST_ADDRESSES = 8  # that a line names

DONE = "done"


def audit(action: str, caller: Caller, result: str = DONE, model: str | None = None, **more: Any) -> None:
    """Write one line.

    Args:
        action: what was to be changed: `promote`, `load`, `key-added` and so on.
        caller: who did it; of a change of keys, the key.
        result: `done`, or why not.
        model: the model, if it is one.
        more: further fields, such as the version.
    """
    fields = {"version": None, **more, "key": caller.key, "address": caller.address}
    _log.info("audit", extra={"action": action, "model": model and clip(model), **fields, "result": result})


@contextmanager
def audited(action: str, caller: Caller, model: str, **more: Any) -> Iterator[None]:
    """Write one line about what happens within, with its error if it ends in one."""
    try:
        yield
    except Exception as err:
        audit(action, caller, f"{type(err).__name__}: {err}", model, **more)
        raise
    except BaseException:  # the client has gone, or the service ends
        audit(action, caller, "cancelled", model, **more)
        raise
    audit(action, caller, DONE, model, **more)


class RefusedKeys:
    """Lines about keys that were refused: the first at once, those that follow within a second together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written_at = float("-inf")
        self._count = 0
        self._addresses: dict[str | None, None] = {}

    def note(self, reason: str, caller: Caller, target: str) -> None:
        """Write or remember a refusal.

        Args:
            reason: why.
            caller: the key, where it is known, and the address.
            target: what was called.
        """
        with self._lock:
            if time.monotonic() - self._written_at >= _REFUSAL_SECONDS and not self._count:
                self._written_at = time.monotonic()
                fields = {"reason": reason, "key": caller.key, "address": caller.address, "target": target}
                _log.warning("API key refused", extra=fields)
                return
            self._count += 1
            if len(self._addresses) < _MOST_ADDRESSES:
                self._addresses[caller.address] = None
        self.write_rest()

    def write_rest(self) -> None:
        """Write what was remembered, once its time has come."""
        with self._lock:
            if self._count and time.monotonic() - self._written_at >= _REFUSAL_SECONDS:
                fields = {"count": self._count, "addresses": list(self._addresses)}
                _log.warning("more API keys refused", extra=fields)
                self._written_at, self._count, self._addresses = time.monotonic(), 0, {}
