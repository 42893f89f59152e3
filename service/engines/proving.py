"""Have a version run in a process of its own first, so that one that needs more memory than there is ends that process.

The serving side of `prover`. Such a process serves one proof after the other; it is started when one is due, which
takes a third of a second, and is ended when a proof takes too long. Where none can be started nothing is proved
beforehand.
"""

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..artifacts.repository import Artifact
from ..errors import ArtifactInvalid, NotReady
from .measured import Measured

_log = logging.getLogger(__name__)

HELLO = b"ready\n"
LONGEST_REQUEST_BYTES = 65_536

_MODULE = "foldserve.service.engines.prover"
_START_SECONDS = 30.0
_TRIES = 3  # processes for one proof: one that is about to end, one more, and a new one
_IDLE_SECONDS = 5.0  # after which a process that nobody asks ends
_END_SECONDS = 5.0  # in which one that has closed its socket ends, on a machine that is busy


class Proving:
    """Proofs of one serving process, each in an idle process or in a new one: none waits for another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Helper] = []
        self._busy: set[_Helper] = set()
        self._is_possible = True
        self._is_over = False

    def prove(
        self, artifact: Artifact, root: Path, options: Mapping[str, Any], seconds: float, *, is_beside: bool
    ) -> Measured | None:
        """Run a version as it is going to run here, in every batch size; takes as long as that.

        Args:
            artifact: with its sealed file.
            root: the models folder.
            options: of `load_engine`, as JSON knows them.
            seconds: after which the proof is given up.
            is_beside: whether requests are answered meanwhile, to which it gives way.

        Returns:
            What was measured; None where the version cannot be loaded, or no process can be started.

        Raises:
            ArtifactInvalid: it needs more memory than there is, or more time, or it ends the process that runs it.
            NotReady: the service ends, and the proof with it.
        """
        assert artifact.sealed is not None
        request = {
            "name": artifact.name,
            "path": str(artifact.path),
            "root": str(root),
            "is_verified": artifact.is_verified,
            "is_beside": is_beside,
            "options": dict(options),
        }
        for _ in range(_TRIES):
            helper = self._take()
            if self._is_over:
                raise NotReady("the service is shutting down, and proves nothing any more")
            if helper is None:
                return None
            try:
                reason, measured = helper.ask(json.dumps(request).encode(), artifact.sealed.descriptor, seconds)
            except _EndedBeforeError:
                continue
            finally:
                self._put_back(helper)
            if reason:
                raise ArtifactInvalid(f"version {artifact.version} {reason}")
            return measured
        raise ArtifactInvalid(f"version {artifact.version} cannot be proved: each process for it ended before it began")

    def stop(self) -> None:
        """End all processes, and with them the proofs that go on; no more are started."""
        with self._lock:
            self._is_possible, self._is_over = False, True
            helpers, self._idle = [*self._idle, *self._busy], []
        for helper in helpers:
            helper.end()

    def _take(self) -> "_Helper | None":
        with self._lock:
            if not self._is_possible:
                return None
            while self._idle:
                helper = self._idle.pop()
                if helper.is_idle():
                    self._busy.add(helper)
                    return helper
        try:
            helper = _Helper()
        except OSError as err:
            if self._is_over:
                return None
            self._is_possible = False
            _log.warning("no process can be started to prove versions in; they are proved in this one: %s", err)
            return None
        return helper if self._is_kept(helper) else None

    def _is_kept(self, helper: "_Helper") -> bool:
        """Count a new process among the busy ones; where all were stopped while it started, end it."""
        with self._lock:
            if self._is_possible:
                self._busy.add(helper)
                return True
        helper.end()
        return False

    def _put_back(self, helper: "_Helper") -> None:
        with self._lock:
            self._busy.discard(helper)
            if helper.is_alive and self._is_possible:
                self._idle.append(helper)
            else:
                helper.end()


class _EndedBeforeError(Exception):
    """A process has ended by itself between two requests."""


class _Helper:
    """One process.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        self._is_killed = False  # by this process
        self._socket, its_end = socket.socketpair()
        with its_end:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", _MODULE, str(_IDLE_SECONDS)],
                stdin=its_end.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        # It ends by itself when it is idle for long: then too somebody has to have waited for it.
        threading.Thread(target=self._process.wait, name="prover", daemon=True).start()
        self._socket.settimeout(_START_SECONDS)
        try:
            if self._socket.recv(len(HELLO)) != HELLO:
                raise OSError
        except OSError as err:
            code = self.end(_END_SECONDS)
            raise OSError(f"it ended at once: {_ended_by(code)}") from err

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def is_idle(self) -> bool:
        """Return whether it still waits for requests; it ends by itself when none came for a while."""
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            self._socket.recv(1)
            self.end()
            return False
        return self.is_alive

    def ask(self, request: bytes, descriptor: int, seconds: float) -> tuple[str, Measured | None]:
        """Return why a version cannot be loaded, an empty text where nothing was found; and what was measured.

        Raises:
            _EndedBeforeError: it was about to end, as it does when it is idle or holds much memory, and did not begin;
                or it was ended here.
        """
        try:
            self._socket.settimeout(seconds)
            socket.send_fds(self._socket, [request], [descriptor])
            answer = self._socket.recv(LONGEST_REQUEST_BYTES)
        except TimeoutError:
            self.end()
            return f"was not proved within {seconds:g} s and is given up; --load-seconds allows more", None
        except OSError:
            answer = b""
        if answer:
            found = json.loads(answer)
            reason, text = str(found["reason"]), found["measured"]
            measured = None if text is None else Measured.from_json(text)
            return (f"needs more memory than there is: {reason}" if reason else ""), measured
        code = self.end(_END_SECONDS)
        if not code:
            raise _EndedBeforeError
        if code == -signal.SIGKILL:  # nothing but the system and who has a reason of their own sends it
            return f"needs more memory than there is: the process that proved it {_ended_by(code)}", None
        return f"cannot be proved: the process that loaded it {_ended_by(code)}", None

    def end(self, seconds: float = 0.2) -> int | None:
        """Let it end within so many seconds, then kill it; returns its exit code, None where it is killed here."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        if self._process.poll() is None:
            self._is_killed = True
            self._process.kill()
        code = self._process.wait()
        self._socket.close()
        return None if self._is_killed else code


def _ended_by(code: int | None) -> str:
    names = {item.value: item.name for item in signal.Signals}
    if code is None:
        return "did not end and was killed"
    return f"was ended by signal {-code} ({names.get(-code, 'unknown')})" if code < 0 else f"ended with {code}"
