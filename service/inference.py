"""From checked inputs to a model's outputs, counted; every route of HTTP and every call of gRPC comes through here.

Knows the registry and the batchers; neither bytes nor messages.
"""

import time
from collections.abc import Mapping

from .batching.request import Answer
from .errors import ServiceError
from .live.model import Model
from .live.registry import Registry
from .live.versions import version_number
from .request_context import RequestContext
from .tensors import Array


def served_model(registry: Registry, name: str | None, version: str | None = None, label: str | None = None) -> Model:
    """Return the model that a path, a query or a message names.

    Args:
        registry: where it is loaded.
        name: as the request has it; None where there is only one model.
        version: as the request has it; None or an empty string leave it to the label.
        label: as the request has it; None means `latest`.

    Raises:
        NotReady: the service has not proved its models yet, or is ending.
        InvalidInput: no name was given and there are several models.
        ModelNotFound: there is no such model or version.
    """
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
    context.asked = model.name, model.version, len(next(iter(inputs.values())))
    try:
        result = await model.batcher.infer(inputs, deadline=deadline)
    except ServiceError:
        model.statistics.failed(time.perf_counter() - context.started)
        raise
    context.stages |= {"queue": result.queue_seconds, "infer": result.infer_seconds}
    registry.shadows.offer(model, inputs, result)
    context.answered = time.perf_counter()
    return result


def count(model: Model, result: Answer, context: RequestContext) -> None:
    """Count a request whose answer has just been formatted."""
    now = time.perf_counter()
    model.statistics.answered(
        now - context.started,
        result.queue_seconds,
        context.stages.get("parse", context.stages.get("decode", 0.0)) + result.input_seconds,
        result.infer_seconds - result.input_seconds,
        now - context.answered,
    )
