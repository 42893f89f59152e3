"""Several worker processes on one port: started, watched, replaced, and ended together.

uvicorn's supervisor with what it lacks: a worker that cannot start ends the service only while none has served, a
worker that keeps dying is not started without pause, the end of a worker is seen at once, and no end takes for ever.
Handles no requests itself.
"""

import logging
import signal
import socket
import time
from multiprocessing.connection import wait

import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from service.processes.worker import Worker
from service.processes.workers import Workers

logger = logging.getLogger(__name__)

START_FAILURE = 3  # uvicorn's own code for an application that did not start

_TICK_SECONDS = 0.5
_START_SECONDS = 120.0  # until a worker answers pings: reading its modules from a slow disk is no hang
_STEADY_SECONDS = 10.0  # a worker that lived so long was not killed by its own start
_LONGEST_PAUSE_SECONDS = 30.0
_GRACE_SECONDS = 5.0


class Supervisor(Multiprocess):
    """Keeps `config.workers` processes alive until a signal ends them.

    Args:
        config: of each worker.
        listener: the socket that they share.
        workers: what else they share.
        drain_seconds: what running requests get when the service ends.
    """

    def __init__(self, config: uvicorn.Config, listener: socket.socket, workers: Workers, drain_seconds: float) -> None:
        super().__init__(config, sockets=[listener])
        self.has_failed = False
        self._workers = workers
        self._drain_seconds = drain_seconds
        self._has_served = False
        self._lives: dict[int, _Life] = {}

    def run(self) -> None:
        """Start the workers and watch them until the end."""
        self.init_processes()
        while not self.should_exit.is_set():
            wait([process.process.sentinel for process in self.processes if process.exitcode is None], _TICK_SECONDS)
            self.handle_signals()
            self.keep_subprocess_alive()
        self.terminate_all()
        self.join_all()

    def init_processes(self) -> None:
        """Start the first worker of each place."""
        self.processes = [Worker(self.config, self.sockets) for _ in range(self.processes_num)]
        for process in self.processes:
            process.start()

    def keep_subprocess_alive(self) -> None:
        """Replace every worker that has ended or does not answer."""
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            life = self._lives.setdefault(index, _Life())
            if process.exitcode is None and self._answers(process, life):
                continue
            if process.exitcode is None:
                logger.error("worker does not answer and is killed", extra={"worker": process.pid})
                process.kill()
                process.join()
            if not life.is_told:
                self._tell(process, life)
            if self.has_failed:
                self.should_exit.set()
                return
            if time.monotonic() >= life.again_at:
                self._replace(index, life)

    def join_all(self) -> None:
        """Wait for the workers; whoever drains for longer than allowed, or past a second signal, is killed."""
        self.signal_queue.clear()
        logger.info("draining")
        until = time.monotonic() + self._drain_seconds + _GRACE_SECONDS
        while left := [process for process in self.processes if process.exitcode is None]:
            is_impatient = any(number in (signal.SIGTERM, signal.SIGINT) for number in self.signal_queue)
            if is_impatient or time.monotonic() > until:
                for process in left:
                    process.process.kill()
            wait([process.process.sentinel for process in left], 0.1)

    def _answers(self, process: Process, life: "_Life") -> bool:
        """Whether a worker that lives also answers, or may still be starting."""
        if not life.has_answered:
            life.has_answered = _has_come_up(process, life)
            if life.has_answered:
                logger.debug("worker answers", extra={"worker": process.pid})
            return life.has_answered or life.seconds < _START_SECONDS
        if not process.ping(self.config.timeout_worker_healthcheck):
            return False
        self._has_served = self._has_served or process.is_ready(1)
        return True

    def _tell(self, process: Process, life: "_Life") -> None:
        """Say how a worker ended and when the next one comes; clear up behind it."""
        life.is_told = True
        if process.exitcode == START_FAILURE and not self._has_served:
            self.has_failed = True  # it has said why, and the next one would say the same
            return
        life.short_lives = 0 if life.seconds > _STEADY_SECONDS else life.short_lives + 1
        pause = 0.0 if life.short_lives < 2 else min(2.0 ** (life.short_lives - 2), _LONGEST_PAUSE_SECONDS)
        life.again_at = time.monotonic() + pause
        fields = {"worker": process.pid, "exit_code": process.exitcode, "again_in_seconds": pause}
        logger.error("worker ended and is replaced", extra=fields)
        self._workers.forget_gone()

    def _replace(self, index: int, life: "_Life") -> None:
        self.processes[index] = Worker(self.config, self.sockets)
        self.processes[index].start()
        self._lives[index] = _Life(life.short_lives)


class _Life:
    """What is known of the process in one place; `short_lives` counts those that ended soon, one after the other."""

    def __init__(self, short_lives: int = 0) -> None:
        self.started = time.monotonic()
        self.short_lives = short_lives
        self.again_at = 0.0
        self.is_asked = False
        self.has_answered = False
        self.is_told = False

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started


def _has_come_up(process: Process, life: _Life) -> bool:
    """Whether a process has answered its first ping, which is sent once: unread answers would hide a hang later."""
    try:
        if not life.is_asked:
            life.is_asked = True
            process.parent_conn.send(b"ping")
        if not process.parent_conn.poll(0):
            return False
        process.parent_conn.recv()
    except (OSError, EOFError):
        return False
    return True
