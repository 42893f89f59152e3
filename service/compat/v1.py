"""The V1 protocol of TensorFlow Serving and KServe: `{"instances": [...]}` in, `{"predictions": [...]}` out.

Instances are read as `/predict` reads them, whatever the Content-Type; predictions are the outputs as they are: the row
of the only output, or an object of the rows by name.
Source: TensorFlow Serving, RESTful API; KServe, V1 inference protocol.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.convertors import StringConvertor, register_url_convertor

from foldserve.format.task import TENSORS, Task

from ..asking import ask
from ..bodies.answers import predictions_of
from ..inference import served_model
from ..live.model import Model
from ..live.registry import Registry
from ..openapi import INSTANCES
from ..tensors import Array


class _NameConvertor(StringConvertor):
    """A name or number in a path, which ends before the verb of a call: `{name}:predict` is no name."""

    regex = "[^/:]+"


register_url_convertor("name", _NameConvertor())

router = APIRouter(prefix="/v1/models", tags=["V1 protocol"])

_PREDICT: dict[str, Any] = {
    "summary": "Ask a model",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": INSTANCES},
            },
        }
    },
}


@router.post("/{model}:predict", **_PREDICT)
@router.post("/{model}/versions/{version}:predict", **_PREDICT)
@router.post("/{model}/labels/{label}:predict", **_PREDICT)
async def v1_predict(request: Request, model: str, version: str | None = None, label: str | None = None) -> Response:
    """Answer with the outputs of a model, a prediction for each instance."""
    served = served_model(_registry(request), model, version, label)
    return await ask(request, served, lambda outputs: _write(served, outputs), lambda *_: "application/json")


@router.get("", summary="Names of the models")
async def v1_models(request: Request) -> dict[str, list[str]]:
    """List what is served, as KServe does."""
    _registry(request).check_wanted()
    return {"models": [model.name for model in _registry(request).models()]}


@router.get("/{model:name}", summary="Whether a model answers")
@router.get("/{model}/versions/{version:name}", summary="Whether a version answers")
async def v1_status(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Say that a model is ready, as KServe does, and in which versions, as TensorFlow Serving does."""
    _registry(request).check_wanted()
    served = served_model(_registry(request), model, version)
    loaded = _registry(request).tables[served.name].loaded
    numbers = [served.version] if version else sorted(loaded)
    status = {"error_code": "OK", "error_message": ""}
    rows = [{"version": str(number), "state": "AVAILABLE", "status": status} for number in numbers]
    return {"name": served.name, "ready": True, "model_version_status": rows}


def _write(model: Model, outputs: Mapping[str, Array]) -> bytes:
    rows = [row["outputs"] for row in predictions_of(model.name, Task(TENSORS), None, outputs)]
    if len(outputs) == 1:
        rows = [value for row in rows for value in row.values()]
    return orjson.dumps({"predictions": rows}, option=orjson.OPT_SERIALIZE_NUMPY)


def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry
