"""What all workers counted, from the files in which each place counts.

Between `workers`, which owns the folder, and the metrics of each process. Only a worker imports this: the supervisor
counts nothing, and what it imports delays every start.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from .allocated import AllocatedDict


def count_in(folder: Path, place: int) -> None:
    """Let this process keep every metric that it makes from now on in the files of a place.

    Args:
        folder: that all workers share.
        place: from 0.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.MmapedDict = AllocatedDict  # type: ignore[attr-defined]
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]


def totals(folder: Path) -> CollectorRegistry:
    """Return a registry that gives the sums over all places, and each place's gauges by themselves."""
    registry = CollectorRegistry()
    registry.register(_Totals(folder))
    return registry


class _Totals(Collector):
    """The sums over all places; the library calls the place of a gauge "pid"."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        for metric in self._files.collect():  # type: ignore[no-untyped-call]
            if metric.type == "gauge":
                metric.samples = [
                    sample._replace(labels={"worker" if key == "pid" else key: to for key, to in sample.labels.items()})
                    for sample in metric.samples
                ]
            yield metric
        yield from self._processes()

    def _processes(self) -> Iterable[Metric]:
        """Time, memory and descriptors of each worker, under its place."""
        families: dict[str, Metric] = {}
        for lock in sorted(self._folder.glob("place-*")):
            if (pid := _worker_at(lock)) is None:
                continue
            place = {"worker": lock.name.removeprefix("place-")}
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                family = families.setdefault(metric.name, metric)
                samples = [sample._replace(labels=place) for sample in metric.samples]
                family.samples = samples if family is metric else [*family.samples, *samples]
        yield from families.values()


def _worker_at(lock: Path) -> int | None:
    """Return the process that took a place, while it is a child of the supervisor; None once it has ended."""
    try:
        pid = int(lock.read_text())
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pid if parent == os.getppid() else None
