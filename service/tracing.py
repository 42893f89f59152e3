"""Spans for an OpenTelemetry collector: one for each traced request, and below it where its time went.

Off by default, and nothing of OpenTelemetry is imported before the first span can be sent. Spans are made behind the
answer, of times that are known in any case; a thread of the library sends them, and drops what it cannot send.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from . import errors
from .request_context import RequestContext

_TRACES = "/v1/traces"
_EXPORT_SECONDS = 2  # for one try to send spans, after which they are dropped
_FLUSH_MS = 2_000  # at the end, for spans that were not sent yet
_SPANS = {"decode": "decode", "parse": "parse", "queue": "queue", "infer": "run"}  # by the stages of Server-Timing

_log = logging.getLogger(__name__)


class Tracing:
    """The spans of one process; makes none until it is started.

    Attributes:
        is_on: whether requests are to be told of.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._provider: Any = None
        self._tracer: Any = None
        self._parents: Any = None
        self._trace: Any = None

    def start(self, endpoint: str, share: float, version: str) -> None:
        """Send spans from now on.

        Args:
            endpoint: of the collector, without the path of traces.
            share: of the requests that are traced where no traceparent decides.
            version: of the service.

        Raises:
            ProviderUnavailable: the libraries are not installed.
        """
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as err:
            advice = f"--otlp-endpoint needs the extra otel: pip install 'foldserve[otel]' ({err})"
            raise errors.ProviderUnavailable(advice) from err
        resource = Resource.create({"service.name": "foldserve", "service.version": version})
        self._provider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + _TRACES, timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("foldserve", version)
        self._parents, self._trace = TraceContextTextMapPropagator(), trace
        self.is_on = True
        _log.info("tracing", extra={"endpoint": endpoint, "share": share})

    def stop(self) -> None:
        """Send what is left, as far as the collector takes it in time."""
        if self.is_on:
            self.is_on = False
            self._provider.force_flush(_FLUSH_MS)
            self._provider.shutdown()

    def note_context(self, route: str, status: int, context: RequestContext) -> None:
        """Make the spans of a request at the application or over gRPC, which ends now; see `note`."""
        known = {**context.known(), "traceparent": context.traceparent}
        self.note(route, status, context.started, time.perf_counter(), context.stages, known)

    def note(
        self,
        route: str,
        status: int,
        started: float,
        ended: float,
        stages: Mapping[str, float],
        known: Mapping[str, Any],
    ) -> None:
        """Make the spans of one request.

        Args:
            route: the route's own pattern.
            status: of the answer in HTTP; 0 when the client had gone.
            started: on the clock of `time.perf_counter`.
            ended: on the same.
            stages: seconds by stage, one after the other from the start.
            known: what else is, of traceparent, request_id, model, version and rows.
        """
        zero = time.time_ns() - time.perf_counter_ns()  # of that clock, in the time of day
        traceparent = known.get("traceparent")
        parent = None
        if traceparent is not None:
            parent = self._parents.extract({"traceparent": traceparent.decode()})
        attributes = {"http.route": route, "http.response.status_code": status} | {
            f"foldserve.{name}": known[name]
            for name in ("request_id", "model", "version", "rows")
            if known.get(name) is not None
        }
        span = self._tracer.start_span(
            route, parent, self._trace.SpanKind.SERVER, attributes, start_time=zero + round(started * 1e9)
        )
        if span.is_recording():
            self._add_stages(span, zero, started, stages)
            if status >= 500 or not status:
                span.set_status(self._trace.StatusCode.ERROR)
        span.end(zero + round(ended * 1e9))

    def _add_stages(self, span: Any, zero: int, started: float, stages: Mapping[str, float]) -> None:
        below, begin = self._trace.set_span_in_context(span), started
        for stage, seconds in stages.items():
            inner = self._tracer.start_span(_SPANS.get(stage, stage), below, start_time=zero + round(begin * 1e9))
            begin += seconds
            inner.end(zero + round(begin * 1e9))
