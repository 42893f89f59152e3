"""How many requests a second are allowed: a bucket of tokens, in this process or in a file that workers share.

Knows neither keys nor requests.
"""

import contextlib
import fcntl
import os
import struct
import time
from pathlib import Path

from .processes.room import say_once

_STATE = struct.Struct("<dd")  # tokens, and when they were counted


class TokenBucket:
    """Tokens that come back at a steady rate; the fullest bucket holds one second's worth, at least one.

    Args:
        rate: tokens a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = self._tokens = max(1.0, rate)
        self._counted_at = time.monotonic()

    def take(self) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        now = time.monotonic()
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._counted_at) * self._rate)
        self._counted_at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class SharedTokenBucket(TokenBucket):
    """The same in a file, so that processes take from one bucket; their clock is one, since it counts from the boot.

    Args:
        rate: tokens a second.
        path: of the file, which the first one makes.
    """

    def __init__(self, rate: float, path: Path) -> None:
        super().__init__(rate)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self._file, 0, _STATE.size)
        except OSError as err:  # each process has a bucket of its own then
            say_once(path, err)

    def __del__(self) -> None:
        os.close(self._file)

    def take(self) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        fcntl.flock(self._file, fcntl.LOCK_EX)  # held for a microsecond or two
        try:
            data = os.pread(self._file, _STATE.size, 0)
            if len(data) == _STATE.size and any(data):
                self._tokens, self._counted_at = _STATE.unpack(data)
            wait = super().take()
            with contextlib.suppress(OSError):
                os.pwrite(self._file, _STATE.pack(self._tokens, self._counted_at), 0)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return wait
