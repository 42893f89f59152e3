"""What every check of `endurance.py` needs: a service of its own, what that holds, what it counts and what it wrote.

Starts and ends services through `serving_setup`; sends no load.
"""

import http.client
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.overload import ask_alone
from benchmarks.serving.servers import BINARY, Peer, Running, golden, newest_model, start

PAGE_KIB = os.sysconf("SC_PAGESIZE") // 1024


@dataclass(frozen=True)
class Figure:
    """One promise: what was wanted, what was measured, and whether that will do."""

    what: str
    wanted: str
    measured: str
    is_met: bool


@dataclass
class Found:
    """What came of one check."""

    promise: str
    recipe: str
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, wanted: str, measured: str, is_met: bool) -> None:
        """Note a figure and whether it is as promised."""
        self.figures.append(Figure(what, wanted, measured, is_met))

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Service:
    """A service that answers, its folder, and the answer to each image when nothing else ran."""

    running: Running
    folder: Path
    bodies: list[bytes]
    alone: list[bytes]

    @property
    def port(self) -> int:
        """Of 127.0.0.1."""
        return self.running.port

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """What it wrote so far, or the lines of one name; the last one may not be whole yet."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]
        return [event for event in events if name is None or event["event"] == name]

    def tracebacks(self) -> int:
        """How many lines of the log hold one."""
        return (self.folder / "log").read_text(errors="replace").count("Traceback (most recent call last)")

    def workers(self) -> list[int]:
        """The processes that answer: the workers, or the one process where there are none."""
        first, *others = self.running.processes()
        found = [pid for pid in others if b"resource_tracker" not in read(f"/proc/{pid}/cmdline")]
        leaves = [pid for pid in found if not read(f"/proc/{pid}/task/{pid}/children").strip()]
        return leaves or [first]

    def rss_kib(self) -> int:
        """Resident memory of the processes that answer."""
        return sum(int((read(f"/proc/{pid}/statm") or b"0 0").split()[1]) * PAGE_KIB for pid in self.workers())

    def open_files(self) -> int:
        """Descriptors of the processes that answer."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers())

    def threads(self) -> int:
        """Threads of the processes that answer."""
        return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in self.workers())

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric over all its samples with these labels."""
        text = get(self.port, "/metrics").decode()
        found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for have, value in found if all(label in have for label in wanted))


@contextmanager
def serving(
    models: Path,
    flags: str = "",
    changes: str = "",
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    """Start a service on the newest version in a folder; end it afterwards.

    Args:
        models: folder of models.
        flags: of `foldserve serve`.
        changes: as `service.py` and `benchmarks.trust.weakened` know them.
        workers: processes.
        environment: further variables.
    """
    model = newest_model(models)
    images = golden(model, "inputs", "image")
    images = images.reshape(len(images), -1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = "{python} -m benchmarks.trust.weakened --port {port} --models-dir {models} --workers {workers}"
        env = {"FOLDSERVE_LOG_LEVEL": "info", "FOLDSERVE_PROVIDER": "cpu", "BENCH_CHANGE": changes}
        env |= {"BENCH_NOTES": str(folder / "notes"), **(environment or {})}
        peer = Peer("endurance", f"{command} {flags}", {"binary": BINARY}, env=env)
        with start(peer, workers, models.resolve(), folder, images[0].tobytes(), folder / "log") as running:
            class_ids = golden(model, "outputs", "class_id").ravel()
            alone = [text.encode() for text in ask_alone(running.port, images, class_ids)]
            service = Service(running, folder, [image.tobytes() for image in images], alone)
            if "--log-file" not in flags:
                wait_until(lambda: len(service.events("ready")) >= workers, 60)
            yield service


def get(port: int, path: str) -> bytes:
    """Return the body behind a path; asks once more where the connection broke, since workers are killed meanwhile."""
    try:
        return _get(port, path)
    except (ConnectionError, http.client.HTTPException):
        return _get(port, path)


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def read(path: str) -> bytes:
    """Return the bytes of a file of /proc, none where its process has gone."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def wait_until(holds: Callable[[], bool], seconds: float) -> float | None:
    """Return after how many seconds it held, None when it did not in time."""
    started = time.perf_counter()
    while not holds():
        if time.perf_counter() - started > seconds:
            return None
        time.sleep(0.05)
    return time.perf_counter() - started
