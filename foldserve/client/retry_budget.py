"""How long a call goes on trying: its attempts, the pauses between them, and its deadline. Knows no socket.

The `Retry-After` of a refusal is kept; where that is later than the deadline, the call ends at once.
"""

import random
import time
from collections.abc import Mapping

from .errors import ClientError, DeadlineExceeded

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0


class RetryBudget:
    """One call's share of time and attempts.

    Args:
        seconds: within which the answer is of use; None waits as long as it takes.
        retries: further attempts after the first.
    """

    def __init__(self, seconds: float | None, retries: int) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds
        self._retries = retries
        self._tried = 0

    def left(self) -> float | None:
        """Return the seconds that are left.

        Raises:
            DeadlineExceeded: there are none.
        """
        if self._until is None:
            return None
        left = self._until - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"no answer within the deadline, after {self._tried} attempts")
        return left

    def headers(self) -> dict[str, str]:
        """Return what tells the server how long it has."""
        left = self.left()
        return {} if left is None else {"X-Deadline-Ms": str(max(1, int(left * 1000)))}

    def pause(self, error: ClientError, headers: Mapping[str, str] | None = None) -> float:
        """Return the seconds to wait before the next attempt.

        Args:
            error: why the last one failed.
            headers: of the answer, where there is one.

        Raises:
            ClientError: `error` itself, when there is no attempt left or the next one would come too late.
        """
        self._tried += 1
        if self._tried > self._retries:
            raise error
        seconds = _retry_after(headers or {})
        if seconds is None:
            # Callers that failed together should not come back together.
            most = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (self._tried - 1))
            seconds = random.uniform(most / 2, most)  # noqa: S311
        if self._until is not None and time.monotonic() + seconds >= self._until:
            raise error
        return seconds


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None
