"""Every metric of the service with its unit and buckets, in one list.

Each application has a registry of its own, so that two can live in one process. Batches are counted, not their
members, where the sum is the same; no label ever holds what a client sent.
"""

import platform
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

_SECONDS = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

REASONS = ("queue_full", "deadline_ahead", "deadline_passed", "cancelled", "closed")

# (attribute, kind, name, help with its unit, labels, buckets)
METRICS: tuple[tuple[str, type[MetricWrapperBase], str, str, tuple[str, ...], tuple[float, ...] | None], ...] = (
    ("requests", Counter, "foldserve_requests", "Answers sent.", ("route", "method", "status"), None),
    (
        "request_seconds",
        Histogram,
        "foldserve_request_seconds",
        "Seconds from request to answer.",
        ("route",),
        _SECONDS,
    ),
    ("rows", Counter, "foldserve_rows", "Rows answered.", ("model",), None),
    ("batch_rows", Histogram, "foldserve_batch_rows", "Rows in each batch, without padding.", ("model",), _ROWS),
    ("padded_rows", Counter, "foldserve_padded_rows", "Rows run only to fill a bucket.", ("model",), None),
    (
        "queue_seconds",
        Histogram,
        "foldserve_queue_seconds",
        "Longest wait in seconds among the members of each batch.",
        ("model",),
        _SECONDS,
    ),
    ("infer_seconds", Histogram, "foldserve_infer_seconds", "Seconds that each batch ran.", ("model",), _SECONDS),
    ("queued_rows", Gauge, "foldserve_queued_rows", "Rows that wait for their batch now.", ("model",), None),
    ("refused", Counter, "foldserve_refused", "Requests that cost no run, by reason.", ("model", "reason"), None),
    ("batch_failures", Counter, "foldserve_batch_failures", "Batches whose members ran alone.", ("model",), None),
    ("ready", Gauge, "foldserve_ready", "1 when every model gave its golden answers, else 0.", (), None),
    (
        "model_info",
        Gauge,
        "foldserve_model_info",
        "1 for each model that is served.",
        ("model", "version", "sha256", "provider"),
        None,
    ),
    (
        "device_fallback",
        Gauge,
        "foldserve_device_fallback",
        "1 when a model runs on the CPU because no GPU could be had.",
        ("model",),
        None,
    ),
    (
        "batch_invariant",
        Gauge,
        "foldserve_batch_invariant",
        "1 when answers were measured not to depend on the batch.",
        ("model",),
        None,
    ),
    (
        "batch_deviation",
        Gauge,
        "foldserve_batch_deviation_ratio",
        "Largest relative difference between batch sizes tried at load.",
        ("model",),
        None,
    ),
    (
        "golden_deviation",
        Gauge,
        "foldserve_golden_deviation_ratio",
        "Largest difference from the golden answers, relative to the largest value.",
        ("model",),
        None,
    ),
    (
        "bucket_seconds",
        Gauge,
        "foldserve_bucket_seconds",
        "Seconds of one run of each bucket, measured at load.",
        ("model", "bucket"),
        None,
    ),
    ("load_seconds", Gauge, "foldserve_load_seconds", "Seconds to load and prove a model.", ("model",), None),
    ("build_info", Gauge, "foldserve_build_info", "1; the Python that runs the service.", ("python",), None),
)


class Metrics:
    """The metrics of one application; each stands under its attribute in `METRICS`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._by_attribute: dict[str, Any] = {}
        for attribute, kind, name, text, labels, buckets in METRICS:
            options: dict[str, Any] = {"buckets": buckets} if buckets else {}
            self._by_attribute[attribute] = kind(name, text, labels, registry=self.registry, **options)
        self.build_info.labels(platform.python_version()).set(1)
        self.ready.set(0)

    def __getattr__(self, attribute: str) -> Any:
        try:
            return self.__dict__["_by_attribute"][attribute]
        except KeyError:
            raise AttributeError(f"there is no metric {attribute!r}") from None

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer.

        Args:
            route: the route's own pattern, never the path that came.
            method: the HTTP method.
            status: of the answer; 0 when the client had gone.
            seconds: from the request's arrival to its answer.
        """
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
        self.requests.labels(route, known, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)

    def for_model(self, name: str) -> "ModelMetrics":
        """The counters of one model, ready to be given to its batcher."""
        return ModelMetrics(self, name)


class ModelMetrics:
    """Counts for one model, with every label looked up beforehand."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._rows = metrics.rows.labels(name)
        self._batch_rows = metrics.batch_rows.labels(name)
        self._padded_rows = metrics.padded_rows.labels(name)
        self._queue_seconds = metrics.queue_seconds.labels(name)
        self._infer_seconds = metrics.infer_seconds.labels(name)
        self._batch_failures = metrics.batch_failures.labels(name)
        self._refused = {reason: metrics.refused.labels(name, reason) for reason in REASONS}

    def batch(self, rows: int, bucket: int, queue_seconds: float, infer_seconds: float) -> None:
        """Count a batch that ran."""
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        if bucket > rows:
            self._padded_rows.inc(bucket - rows)
        self._queue_seconds.observe(queue_seconds)
        self._infer_seconds.observe(infer_seconds)

    def batch_failed(self) -> None:
        """Count a batch whose members ran alone."""
        self._batch_failures.inc()

    def refused(self, reason: str) -> None:
        """Count a request that cost no run."""
        self._refused[reason].inc()
