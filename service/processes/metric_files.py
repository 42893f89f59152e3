"""What all workers counted, from the files in which each place counts.

Between `workers`, which owns the folder, and the metrics of each process. Only a worker imports this: the supervisor
counts nothing, and what it imports delays every start.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, values
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
        self._files = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        for metric in self._files.collect():  # type: ignore[no-untyped-call]
            if metric.type == "gauge":
                metric.samples = [
                    sample._replace(labels={"worker" if key == "pid" else key: to for key, to in sample.labels.items()})
                    for sample in metric.samples
                ]
            yield metric
