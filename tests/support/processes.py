"""`python -m service` as a process of its own: how it is started, what it writes, and how it fails."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

OCTETS = {"Content-Type": "application/octet-stream"}
FAST = ("--provider", "cpu", "--buckets", "1,4", "--threads", "1")


def command(*flags: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", "service", "--port", "0", *FAST, *flags]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FOLDSERVE_")}


@contextlib.contextmanager
def started(
    *flags: str,
    ready_lines: int = 1,
    shell: str = ":",
    python: str = sys.executable,
    variables: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A service that has said `ready_lines` times that it is ready, and its address.

    No process of it outlives the block: where the service was killed, its workers end by themselves.
    Its `events` are the lines that it has written until then; `shell` is run before it, such as `ulimit -n 128`.
    It runs by `python`, with `variables` beside those of this process.
    """
    argv = ["/bin/sh", "-c", f'{shell}; exec "$@"', "sh", *command(*flags, python=python)]
    given = environment() | (variables or {})
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=given)
    process.events = []
    try:
        address, left = "", ready_lines
        while left:
            line = process.stderr.readline()
            assert line, "the service ended before it was ready"
            event = json.loads(line)
            process.events.append(event)
            address = event.get("address", address)
            left -= event["event"] == "ready"
        yield process, address
    finally:
        workers = children(process.pid)
        process.kill()
        process.wait(10)
        process.stderr.close()
        until = time.monotonic() + 20
        while left := [worker for worker in workers if not is_gone(worker)]:
            assert time.monotonic() < until, f"processes {left} outlive the service"
            time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The worker processes of a service, oldest first."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_gone(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return True


def rss_kib(pid: int) -> int:
    """Resident memory of a process, 0 where it has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024
    return 0


def read_until(process: subprocess.Popen, event: str, **fields: object) -> dict:
    """The next event of this name and with these fields."""
    for line in process.stderr:
        found = json.loads(line)
        if found["event"] == event and fields.items() <= found.items():
            return found
    raise AssertionError(f"the service ended without {event!r}")


def failed(*flags: str) -> tuple[int, list[str]]:
    """Exit code and lines of a service that does not start."""
    done = subprocess.run(command(*flags), capture_output=True, text=True, env=environment(), timeout=120)
    assert done.stdout == ""
    return done.returncode, [
        line for line in done.stderr.splitlines() if '"level":' not in line or '"info"' not in line
    ]
