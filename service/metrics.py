"""Every metric of the service with its unit and buckets, in one list.

Each application has a registry of its own, so that two can live in one process. Batches are counted, not their
members, where the sum is the same; no label holds what a client sent.
"""

import asyncio
import functools
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .batching.request import CHECKS

Floats = npt.NDArray[np.float64]

_SECONDS = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 5)
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# How old the counts may be that one of several workers shows the others. Each count costs about 80 microseconds: done
# for every batch, it took 6 % of a busy worker's time.
_MOMENT_SECONDS = 0.01

OUTCOMES = ("answered", "failed")
REASONS = ("queue_full", "deadline_ahead", "deadline_passed", "cancelled", "closed")


class Metrics:
    """The metrics of one application.

    Args:
        totals: gives the sums over all worker processes; None when there is only this one.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, totals: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry()
        self.before_reading: list[Callable[[], None]] = []  # what counts in bulk brings its counts up to date
        self.registry.register(_BroughtUpToDate(self.before_reading))  # first, so that it is collected first
        self._totals = totals
        self._is_due = False
        counter = functools.partial(Counter, namespace="foldserve", registry=self.registry)
        gauge = functools.partial(Gauge, namespace="foldserve", registry=self.registry)
        histogram = functools.partial(Histogram, namespace="foldserve", registry=self.registry)
        seconds = functools.partial(histogram, buckets=_SECONDS)
        model = ["model"]

        self.requests = counter("requests", "Answers sent.", ["route", "method", "status"])
        self.request_seconds = seconds("request_seconds", "Seconds from request to answer.", ["route"])
        self.model_requests = counter(
            "model_requests",
            "Requests of clients that a version answered, or failed after they were read.",
            ["model", "version", "outcome"],
        )
        self.rows = counter("rows", "Rows of clients answered.", model)
        self.predicted_classes = counter(
            "predicted_classes",
            "Rows of clients by the class that they were given; of models with up to 200 classes.",
            ["model", "version", "class"],
        )
        self.confidence = histogram(
            "confidence",
            "Largest probability of each row of clients, of models that classify.",
            ["model", "version"],
            buckets=_CONFIDENCES,
        )
        self.check_rows = counter(
            "check_rows",
            "Rows that the service ran for itself: golden answers of a load, canaries, shadows.",
            ["model", "source"],
        )
        self.batch_rows = histogram(
            "batch_rows", "Rows of clients in each batch that has any, without padding.", model, buckets=_ROWS
        )
        self.padded_rows = counter("padded_rows", "Rows run only to fill a bucket.", model)
        self.queue_seconds = seconds(
            "queue_seconds", "Longest wait in seconds among the members of each batch with rows of clients.", model
        )
        self.infer_seconds = seconds("infer_seconds", "Seconds that each batch with rows of clients ran.", model)
        self.queued_rows = gauge("queued_rows", "Rows that wait for their batch now.", model)
        self.refused = counter("refused", "Requests that cost no run, by reason.", ["model", "reason"])
        self.refused_decodings = counter("refused_decodings", "Requests whose pictures were not decoded.", ["reason"])
        self.batch_failures = counter(
            "batch_failures",
            "Batches that failed and whose members ran alone; a lone request that the model cannot take is none.",
            model,
        )
        self.ready = gauge("ready", "1 when every model gave its golden answers, else 0.")
        self.model_info = gauge(
            "model_info",
            "1 for each model that is served.",
            ["model", "version", "sha256", "provider", "verified"],
        )
        self.latest_version = gauge(
            "latest_version", "The version of each model that answers where none is named.", model
        )
        self.refused_versions = counter(
            "refused_versions", "Versions that were not loaded, because they were damaged or answered wrongly.", model
        )
        self.changed_versions = gauge(
            "changed_versions",
            "Versions in memory whose folder changed or went since; they answer with what was proved.",
            model,
        )
        self.abandoned_loads = counter(
            "abandoned_loads", "Loads that took longer than a load may, and were given up.", model
        )
        self.refused_keys = counter(
            "refused_keys", "Requests that no key opened: missing, unknown, scope, or over its rate.", ["reason"]
        )
        self.refused_changes = counter(
            "refused_changes", "Calls that would change models and were refused, since no decision could be kept."
        )
        self.state_lost = gauge(
            "state_lost", "1 while decisions about models are those of an earlier moment, since their file is lost."
        )
        self.declared_lost = gauge(
            "declared_lost", "1 while the deployment file cannot be used, and what it declared before holds."
        )
        self.device_fallback = gauge(
            "device_fallback", "1 when a model runs on the CPU because no GPU was available.", model
        )
        self.batch_invariant = gauge(
            "batch_invariant", "1 when answers were measured not to depend on the batch.", model
        )
        self.batch_deviation_ratio = gauge(
            "batch_deviation_ratio", "Largest relative difference between batch sizes tried at load.", model
        )
        self.golden_deviation_ratio = gauge(
            "golden_deviation_ratio",
            "Largest difference from the golden answers, relative to the largest value; NaN where there are none.",
            model,
        )
        self.bucket_seconds = gauge(
            "bucket_seconds", "Seconds of one run of each bucket, measured at load.", ["model", "bucket"]
        )
        self.load_seconds = gauge("load_seconds", "Seconds to load and prove a model.", model)
        if totals is None:
            ProcessCollector(registry=self.registry)
        self.ready.set(0)
        gauge("build_info", "1; the Python that runs the service.", ["python"]).labels(platform.python_version()).set(1)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer.

        Args:
            route: the route's own pattern, never the path of the request.
            method: the HTTP method.
            status: of the answer; 0 when the client had gone.
            seconds: from the request's arrival to its answer.
        """
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
        self.requests.labels(route, known, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def observe_requests(self, route: str, method: str, status: int, seconds: Sequence[float]) -> None:
        """Count many answers at once; the arguments are those of `observe_request`."""
        if not seconds:
            return
        self.requests.labels(route, method, str(status)).inc(len(seconds))
        _observe_many(self.request_seconds.labels(route), seconds)

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        if self._totals is None:
            return generate_latest(self.registry)
        self.bring_up_to_date()
        return generate_latest(self._totals)

    async def others_have_counted(self) -> None:
        """Wait until the other workers, if there are any, have counted what they have answered so far."""
        if self._totals is not None:
            await asyncio.sleep(3 * _MOMENT_SECONDS)

    def has_news(self) -> None:
        """Note that something waits to be counted.

        A single process counts it when the metrics are read. One of several workers counts it a moment later, since
        another may be read, or this one may be killed.
        """
        if self._totals is not None and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_MOMENT_SECONDS, self.bring_up_to_date)

    def bring_up_to_date(self) -> None:
        """Have everything counted that is known so far."""
        self._is_due = False
        for bring_up_to_date in self.before_reading:
            bring_up_to_date()

    def forget_model(self, *identity: str) -> None:
        """Take an unloaded version out of `model_info`; in a sum over processes it stays, as 0."""
        self.model_info.labels(*identity).set(0)
        if self._totals is None:
            self.model_info.remove(*identity)

    def for_version(self, name: str, version: int) -> "VersionMetrics":
        """The counters of one version of a model, ready to be given to its statistics."""
        return VersionMetrics(self, name, version)


class _BroughtUpToDate(Collector):
    """Has no metric of its own; lets others finish theirs before they are collected."""

    def __init__(self, callbacks: list[Callable[[], None]]) -> None:
        self._callbacks = callbacks

    def collect(self) -> Iterable[Metric]:
        """Call all of them."""
        for bring_up_to_date in self._callbacks:
            bring_up_to_date()
        return ()


class VersionMetrics:
    """Counts for one version of a model, with every label looked up beforehand.

    Counted one by one, batches would cost a lone request a tenth of its time: what they did is given in bulk.

    Args:
        metrics: which.
        name: of the model; its versions share all counters but those of requests.
        version: of it.

    Attributes:
        has_news: as that of the metrics.
    """

    def __init__(self, metrics: Metrics, name: str, version: int) -> None:
        self.has_news = metrics.has_news
        self._outcomes = [metrics.model_requests.labels(name, str(version), outcome) for outcome in OUTCOMES]
        self._rows = metrics.rows.labels(name)
        self._check_rows = {source: metrics.check_rows.labels(name, source) for source in CHECKS}
        self._batch_rows = metrics.batch_rows.labels(name)
        self._padded_rows = metrics.padded_rows.labels(name)
        self._queue_seconds = metrics.queue_seconds.labels(name)
        self._infer_seconds = metrics.infer_seconds.labels(name)
        self._batch_failures = metrics.batch_failures.labels(name)
        for seldom in (metrics.refused_versions, metrics.abandoned_loads, metrics.changed_versions):
            seldom.labels(name)  # a series that begins with 1 would show no increase
        self._refused = {reason: metrics.refused.labels(name, reason) for reason in REASONS}

    def requests(self, answered: int, failed: int) -> None:
        """Count requests of clients."""
        for counter, requests in zip(self._outcomes, (answered, failed), strict=True):
            counter.inc(requests)

    def batches(self, rows: Floats, padded_rows: Floats, queue_seconds: Floats, infer_seconds: Floats) -> None:
        """Count batches with rows of clients; each argument has one element for each of them."""
        self._rows.inc(int(rows.sum()))
        self._padded_rows.inc(int(padded_rows.sum()))
        _observe_many(self._batch_rows, rows)
        _observe_many(self._queue_seconds, queue_seconds)
        _observe_many(self._infer_seconds, infer_seconds)

    def checked(self, source: str, rows: int) -> None:
        """Count rows that the service asked itself."""
        self._check_rows[source].inc(rows)

    def batch_failed(self) -> None:
        """Count a batch whose members ran alone."""
        self._batch_failures.inc()

    def refused(self, reason: str) -> None:
        """Count a request that cost no run."""
        self._refused[reason].inc()


class PredictionMetrics:
    """What one version of a model predicted.

    Args:
        metrics: which.
        name: of the model.
        version: of it.
    """

    def __init__(self, metrics: Metrics, name: str, version: int) -> None:
        self._classes = metrics.predicted_classes
        self._identity = name, str(version)
        self._confidence = metrics.confidence.labels(*self._identity)

    def classes(self, rows: Mapping[str, int]) -> None:
        """Count rows by the class that they were given."""
        for name, count in rows.items():
            self._classes.labels(*self._identity, name).inc(count)

    def confidences(self, values: Floats) -> None:
        """Count the largest probability of each row."""
        _observe_many(self._confidence, values)


def _observe_many(histogram: Any, values: Sequence[float] | Floats) -> None:
    """Observe many values at once; the client library takes one at a time, a microsecond each.

    There is no public way to do so: its counters, one for each bucket and a sum, are added to in the way that its own
    `observe` does. A test pins their names and compares the two ways.
    """
    places = np.searchsorted(histogram._upper_bounds, values)  # bucket i holds what is <= bound i and > bound i - 1
    for place, count in enumerate(np.bincount(places)):
        if count:
            histogram._buckets[place].inc(int(count))
    histogram._sum.inc(float(np.sum(values)))
