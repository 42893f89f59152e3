"""From checked inputs to a model's outputs, counted; every route of HTTP and every call of gRPC comes through here.

Knows the registry and the batchers; neither bytes nor messages.
"""

import time
from collections.abc import Mapping

from .batching.request import Answer
from .errors import NotReady, ServiceError
from .live.model import Model
from .live.registry import Registry
from .live.statistics import Stages
from .live.versions import version_number
from .request_context import RequestContext
from .tensors import Array


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


async def answer(
    registry: Registry, model: Model, inputs: Mapping[str, Array], deadline: float, context: RequestContext
) -> Answer:
    """Return the model's answer to inputs; `deadline` is on the clock of `time.perf_counter`.

    A candidate that is being compared gets the same inputs afterwards.

    Raises:
        ServiceError: what the batcher raises; it is counted as a failed request.
    """
    context.model_headers = model.headers
    try:
        found = await model.batcher.infer(inputs, deadline=deadline)
    except ServiceError:
        model.statistics.failed(time.perf_counter() - context.started)
        raise
    context.stages |= {"queue": found.queue_seconds, "infer": found.infer_seconds}
    registry.shadows.offer(model, inputs, found)
    return found


def count(model: Model, found: Answer, context: RequestContext, format_seconds: float) -> None:
    """Count a request whose answer is formatted."""
    total = time.perf_counter() - context.started
    parse = context.stages.get("parse", 0.0)
    model.statistics.answered(Stages(total, found.queue_seconds, parse, found.infer_seconds, format_seconds))
