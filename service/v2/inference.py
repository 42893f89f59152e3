"""From a checked request to a model's outputs, counted; HTTP and gRPC both come through here.

Knows the registry and the batchers; neither bytes nor messages.
"""

import time
from weakref import WeakKeyDictionary

from service.engine import Engine
from service.errors import NotReady, ServiceError
from service.observe import Trace
from service.registry import Model, Registry
from service.request import Answer
from service.statistics import Stages
from service.v2.request import InferRequest, RequestReader
from service.versions import version_number


class Readers:
    """A request reader for each model that is loaded, gone when the model goes.

    Args:
        max_rows: rows in one request.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._readers: WeakKeyDictionary[Engine, RequestReader] = WeakKeyDictionary()

    def of(self, model: Model) -> RequestReader:
        """Return the reader for one version of a model."""
        reader = self._readers.get(model.engine)
        if reader is None:
            reader = RequestReader(model.engine.inputs, model.engine.outputs, self._max_rows)
            self._readers[model.engine] = reader
        return reader


def served_model(registry: Registry, name: str, version: str | None = None, label: str | None = None) -> Model:
    """Return the model that a path or a message names.

    Args:
        registry: where it is loaded.
        name: as it came.
        version: as it came; None or an empty string leave it to the label.
        label: as it came; None means `latest`.

    Raises:
        NotReady: the service has not proved its models yet, or is ending.
        ModelNotFound: there is no such model or version.
    """
    if not registry.ready:
        raise NotReady(f"not ready: {'; '.join(registry.reasons)}")
    return registry.get(name, version_number(version), label)


async def answer(registry: Registry, model: Model, request: InferRequest, deadline: float, trace: Trace) -> Answer:
    """Return the model's answer to a request; `deadline` is on the clock of `time.perf_counter`.

    A candidate that is being compared gets the same inputs afterwards.

    Raises:
        ServiceError: what the batcher raises; it is counted as a failed request.
    """
    trace.model_version = model.version
    try:
        found = await model.batcher.infer(request.inputs, deadline=deadline)
    except ServiceError:
        model.statistics.failed(time.perf_counter() - trace.started)
        raise
    trace.stages |= {"queue": found.queue_seconds, "infer": found.infer_seconds}
    registry.shadows.offer(model, request.inputs, found)
    return found


def count(model: Model, found: Answer, trace: Trace, format_seconds: float) -> None:
    """Count a request whose answer is formatted."""
    total = time.perf_counter() - trace.started
    parse = trace.stages.get("parse", 0.0)
    model.statistics.answered(Stages(total, found.queue_seconds, parse, found.infer_seconds, format_seconds))


def deadline_of(trace: Trace, default_seconds: float, *limits: float | None) -> float:
    """Return the moment after which an answer is of no use, on the clock of `time.perf_counter`.

    Args:
        trace: when the request came.
        default_seconds: holds where the client says nothing.
        limits: seconds that the client gives, in any of its ways; the shortest holds.
    """
    return trace.started + min((limit for limit in limits if limit is not None), default=default_seconds)
