"""From checked inputs to a model's outputs, counted; every route of HTTP and every call of gRPC comes through here.

Knows the registry and the batchers; neither bytes nor messages.
"""

import time
from collections.abc import Mapping, Sequence

from foldserve.format.image import ImageSpec

from .batching.request import Answer
from .errors import ServiceError, Unsupported
from .live.model import Model
from .live.registry import Registry
from .live.versions import version_number
from .request_context import RequestContext
from .tensors import Array, TensorSpec


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


def classifier(model: Model) -> tuple[ImageSpec, tuple[str, ...]]:
    """Return the image that a model takes and its class names, for models that classify images.

    Raises:
        Unsupported: it takes no images, or does not give classes and probabilities.
    """
    outputs = {spec.name for spec in model.engine.outputs}
    if model.image is None or model.class_names is None or not {"probabilities", "class_id"} <= outputs:
        raise Unsupported(
            f"model {model.name!r} takes {_named(model.engine.inputs)} and gives {_named(model.engine.outputs)}, "
            "expected one that says how an image becomes its input and gives class_id and probabilities with labels: "
            f"use /v2/models/{model.name}/infer for it"
        )
    return model.image, model.class_names


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
        context.stages.get("parse", 0.0) + result.input_seconds,
        result.infer_seconds - result.input_seconds,
        now - context.answered,
    )


def _named(specs: Sequence[TensorSpec]) -> str:
    """Return inputs or outputs as a message names them; the first few of many."""
    named = [f"{spec.name[:40]!r} ({spec.datatype} of {['rows', *spec.row_shape]})" for spec in specs[:4]]
    return ", ".join(named) + (f" and {len(specs) - 4} more" if len(specs) > 4 else "")
