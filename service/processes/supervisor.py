"""Several worker processes on one port: started, watched, replaced, and ended together.

uvicorn's supervisor with what it lacks: a worker that cannot start ends the service only while none has served, a
worker that keeps dying is not started without pause, the end of a worker is seen at once, a shutdown has a time limit.
Handles no requests itself.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any

import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from foldserve.exit_codes import START_FAILED

from .worker import Worker
from .worker_health import TICK_SECONDS, WorkerHealth
from .workers import GRACE_SECONDS, Workers

logger = logging.getLogger(__name__)


class Supervisor(Multiprocess):
    """Keeps `config.workers` processes alive until a signal ends them.

    Args:
        config: of each worker.
        listener: the socket that they share.
        workers: what else they share.
        drain_seconds: what running requests get when the service ends.
        leave_seconds: how long new ones are answered before, while ready is 503.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        workers: Workers,
        drain_seconds: float,
        leave_seconds: float,
    ) -> None:
        super().__init__(config, sockets=[listener])
        self.has_failed = False
        self._workers = workers
        self._drain_seconds = drain_seconds
        self._leave_seconds = leave_seconds
        self._has_served = False
        self._health: list[WorkerHealth] = []
        self._is_to_replace = threading.Event()
        signal.signal(signal.SIGUSR2, lambda *_: self._is_to_replace.set())
        signal.signal(signal.SIGQUIT, lambda *_: self.signal_queue.append(signal.SIGTERM))

    def run(self) -> None:
        """Start the workers and watch them until the end."""
        self.init_processes()
        while not self.should_exit.is_set():
            self._sync_health()
            wait(list(self._events()), TICK_SECONDS)
            self.handle_signals()
            if self._is_to_replace.is_set():
                self._is_to_replace.clear()
                self.restart_all()
            if not self._is_told_to_end():
                self.keep_subprocess_alive()
        if self._leave_seconds and not self.has_failed:
            self._workers.leave()
        self.terminate_all()
        self.join_all()

    def init_processes(self) -> None:
        """Start the first worker of each place."""
        self.processes = [self._start() for _ in range(self.processes_num)]

    def handle_hup(self) -> None:
        """SIGHUP: have each worker reload what operators change."""
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGHUP)

    def restart_all(self) -> None:
        """SIGUSR2: replace the workers one after the other, each once the next one serves."""
        for index, old in enumerate(self.processes):
            new = self._start()
            if not new.wait_until_ready(self.config.timeout_worker_healthcheck, self.should_exit):
                new.kill()
                new.join()
                if not self.should_exit.is_set():
                    logger.error("a new worker was not ready in time, the old ones stay", extra={"worker": new.pid})
                return
            self.processes[index] = new
            self._retire(old)
            if self._is_told_to_end():
                return

    def handle_ttin(self) -> None:
        """SIGTTIN: one worker more."""
        self.processes_num += 1
        self.processes.append(self._start())

    def handle_ttou(self) -> None:
        """SIGTTOU: one worker less, as long as there is more than one."""
        if self.processes_num > 1:
            self.processes_num -= 1
            self._retire(self.processes.pop())

    def _retire(self, process: Process) -> None:
        """End a worker whose place is taken, or that is one too many; one that drains for too long is killed."""
        process.terminate()
        until = time.monotonic() + self._drain_seconds + GRACE_SECONDS
        while process.exitcode is None and not self._is_told_to_end():
            if time.monotonic() > until:
                process.process.kill()
            wait([process.process.sentinel], 0.1)
        if process.exitcode is None:
            self.processes.append(process)  # it ends with all others

    def _is_told_to_end(self) -> bool:
        return any(number in (signal.SIGTERM, signal.SIGINT) for number in self.signal_queue)

    def keep_subprocess_alive(self) -> None:
        """Replace every worker that has ended or does not answer."""
        self._sync_health()
        for index, health in enumerate(self._health):
            if self.should_exit.is_set():
                return
            process = health.process
            if process.exitcode is None and health.check(self.config.timeout_worker_healthcheck, time.monotonic()):
                self._has_served = self._has_served or health.has_served
                continue
            if process.exitcode is None:
                logger.error("worker does not answer and is killed", extra={"worker": process.pid})
                process.kill()
                process.join()
            if not health.is_reported:
                self._report_end(health)
            if self.has_failed:
                self.should_exit.set()
                return
            if time.monotonic() >= health.restart_at:
                self._replace(index, health)

    def join_all(self) -> None:
        """Wait for the workers; those that drain for too long, or past a second signal, are killed."""
        self.signal_queue.clear()
        if self._workers.are_leaving():
            logger.info("leaving", extra={"seconds": self._leave_seconds})
        else:
            logger.info("draining")
        until = time.monotonic() + self._leave_seconds + self._drain_seconds + GRACE_SECONDS
        while left := [process for process in self.processes if process.exitcode is None]:
            if self._is_told_to_end() or time.monotonic() > until:
                for process in left:
                    process.process.kill()
            wait([process.process.sentinel for process in left], 0.1)

    def _sync_health(self) -> None:
        """Keep up with what signals do: SIGUSR2 replaces workers, SIGTTIN and SIGTTOU add and take one."""
        known = {health.process: health for health in self._health}
        self._health = [known.get(process) or WorkerHealth(process) for process in self.processes]

    def _events(self) -> Iterator[Any]:
        """What to wait for: the end of a worker, or its answer to a ping."""
        for health in self._health:
            if health.process.exitcode is None:
                yield health.process.process.sentinel
                if health.awaits_answer:
                    yield health.process.parent_conn

    def _report_end(self, health: WorkerHealth) -> None:
        """Log how a worker ended and when the next one starts; remove its gauges."""
        health.is_reported = True
        if health.process.exitcode == START_FAILED and not self._has_served:
            self.has_failed = True  # it has logged the reason, which the next one would repeat
            return
        pause = health.restart_pause(time.monotonic())
        fields = {"worker": health.process.pid, "exit_code": health.process.exitcode, "again_in_seconds": pause}
        logger.error("worker ended and is replaced", extra=fields)
        self._workers.forget_gone()

    def _replace(self, index: int, health: WorkerHealth) -> None:
        self.processes[index] = process = self._start()
        self._health[index] = WorkerHealth(process, health.short_runs)

    def _start(self) -> Worker:
        process = Worker(self.config, self.sockets, self._workers, self._leave_seconds)
        process.start()
        return process
