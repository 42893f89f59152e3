"""A process of its own in which a version runs before it runs in one that serves: what needs too much memory ends here.

`python -m foldserve.service.engines.prover SECONDS`, started by `proving`. It answers one request after the other over
the socket that is its standard input, and ends when none comes for so long. What is wrong with a version besides memory
and time is for the serving process to find, with its own words.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from foldserve.format.golden import Golden, read_golden
from foldserve.format.manifest import read_manifest

from ..artifacts.repository import Artifact
from ..errors import ServiceError
from .load import load_engine
from .measured import Measured
from .proving import HELLO, LONGEST_REQUEST_BYTES

_POLL_SECONDS = 0.5
_KEPT_BYTES = 64 * 1024 * 1024  # over what it began with; with more it ends, which gives all of it back
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "bad allocation", "BFCArena")
_NICE = 10  # a tenth of what a process gets that is not
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Answer requests until there are no more."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the process that asks is told too, and ends this one in its time
    _be_the_first_to_go()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as requests:
        requests.settimeout(float(sys.argv[1]))
        requests.sendall(HELLO)
        before = _memory_bytes()
        while _memory_bytes() < before + _KEPT_BYTES:
            try:
                message, descriptors, _, _ = socket.recv_fds(requests, LONGEST_REQUEST_BYTES, 1)
            except TimeoutError:
                break
            if not descriptors:
                break
            reason, measured = _prove(json.loads(message), descriptors[0])
            text = None if measured is None else measured.to_json()
            requests.sendall(json.dumps({"reason": reason, "measured": text}).encode() + b"\n")
    return 0


def _prove(request: dict[str, Any], descriptor: int) -> tuple[str, Measured | None]:
    """Load a version as the serving process is going to, and try every batch size that may be worth having.

    Returns:
        What it lacked, an empty text where nothing; and what was measured, None where it cannot be loaded.
    """
    if request["is_beside"]:
        _give_way()
    try:
        engine = load_engine(_artifact(request, descriptor), provider="cpu", is_deferring=True, **request["options"])
        while engine.pending:
            engine.prove_next()
    except MemoryError:
        return "no memory was left", None
    except ServiceError as err:
        text = f"{err} {err.__cause__}"
        reason = str(err).replace(f"/proc/self/fd/{descriptor}", "model.onnx")
        return (reason if any(sign in text for sign in _NO_MEMORY) else ""), None
    finally:
        os.close(descriptor)
    return "", engine.measured


def _give_way() -> None:
    """Let processes that answer requests have the cores first, also one that has just been woken."""
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _artifact(request: dict[str, Any], descriptor: int) -> Artifact:
    """Return the version whose sealed model file was sent; of its folder only the golden answers are read."""
    path, root = Path(request["path"]), Path(request["root"])
    model = Path(f"/proc/self/fd/{descriptor}")
    if not request["is_verified"]:
        return Artifact(request["name"], 0, path, model, "", {}, Golden({}, {}, {}), is_verified=False)
    return Artifact(request["name"], 0, path, model, "", {}, read_golden(read_manifest(path, root).get("golden")))


def _be_the_first_to_go() -> None:
    """Have the system choose this process where memory runs out, and no other."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with(parent: int) -> None:
    """End when the serving process has ended, also in the middle of a run."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _memory_bytes() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


if __name__ == "__main__":
    sys.exit(main())
