"""How long threads were ready to run without a core: a process that is starved does not hang.

Linux counts it for each thread. Where that cannot be read the wait is 0, and a process that stands still hangs.
"""

import time
from pathlib import Path

_RUNNABLE = "R"


class CpuStarvation:
    """The waits of one thread, or of all threads of a process.

    Args:
        pid: of the process.
        thread: its native id; None for all of the process's threads.
    """

    def __init__(self, pid: int, thread: int | None = None) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._thread = thread
        self._read_at = time.monotonic()
        self._threads = self._read()

    def seconds(self) -> float:
        """Seconds without a core, of the thread that waited most, that were counted since the last call.

        The system counts a wait when it ends: one that goes on is known by a thread that could run and did not, and
        one that has ended may be longer than the time since the last call.
        """
        before, then = self._threads, self._read_at
        self._threads, self._read_at = self._read(), time.monotonic()
        elapsed, most = self._read_at - then, 0.0
        for name, (ran, waited, is_runnable) in self._threads.items():
            if name in before:
                still_waits = is_runnable and ran == before[name][0]
                most = max(most, (waited - before[name][1]) / 1e9, elapsed if still_waits else 0.0)
        return most

    def _read(self) -> dict[str, tuple[int, int, bool]]:
        """Each thread's ns on a core and ns without one, and whether it could run now."""
        threads = {}
        try:
            names = [str(self._thread)] if self._thread else [task.name for task in self._tasks.iterdir()]
        except OSError:  # no such place on this system, or the process has ended
            return {}
        for name in names:
            try:
                ran, waited, _ = (self._tasks / name / "schedstat").read_text().split()
                state = (self._tasks / name / "stat").read_text().rpartition(") ")[2][:1]
            except (OSError, ValueError):  # the thread has ended
                continue
            threads[name] = (int(ran), int(waited), state == _RUNNABLE)
        return threads
