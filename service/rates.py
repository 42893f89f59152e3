"""How many requests a second somebody may send: a bucket of tokens, in this process or in a file that workers share.

Knows neither keys nor requests.
"""

import fcntl
import os
import struct
import time
from pathlib import Path
from typing import Protocol

_STATE = struct.Struct("<dd")  # tokens, and when they were counted


class TokenBucket(Protocol):
    """Tokens that come back at a steady rate."""

    def take(self) -> float:
        """Take a token; returns 0, or the seconds until there is one."""


class LocalTokenBucket:
    """A bucket of this process; the fullest holds one second's worth, at least one.

    Args:
        rate: tokens a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._state = (max(1.0, rate), time.monotonic())

    def take(self) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        self._state, wait = spend(self._state, self._rate)
        return wait


class SharedTokenBucket:
    """The same in a file, so that processes take from one bucket; their clock is one, since it counts from the boot.

    Args:
        rate: tokens a second.
        path: of the file, which the first one makes.
    """

    def __init__(self, rate: float, path: Path) -> None:
        self._rate = rate
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        os.close(self._file)

    def take(self) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        fcntl.flock(self._file, fcntl.LOCK_EX)  # held for a microsecond or two
        try:
            data = os.pread(self._file, _STATE.size, 0)
            state = _STATE.unpack(data) if len(data) == _STATE.size else (max(1.0, self._rate), time.monotonic())
            (tokens, at), wait = spend((state[0], state[1]), self._rate)
            os.pwrite(self._file, _STATE.pack(tokens, at), 0)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return wait


def spend(state: tuple[float, float], rate: float) -> tuple[tuple[float, float], float]:
    """Return a bucket's state after somebody asked for a token, and 0 or the seconds until there is one.

    Args:
        state: tokens, and the moment at which they were counted.
        rate: tokens a second.
    """
    now = time.monotonic()
    tokens = min(max(1.0, rate), state[0] + max(0.0, now - state[1]) * rate)
    return ((tokens, now), (1 - tokens) / rate) if tokens < 1 else ((tokens - 1, now), 0.0)
