"""The description of the service that `/docs` shows, where FastAPI cannot derive it from the routes.

`/predict` reads its body itself, in five media types, so its body and its parameters are declared here; what the
models say of a request and an answer stands in `schemas`. Every example is complete: it can be sent as it is.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from foldserve.format.image import ANY_SIZE
from foldserve.format.picture_types import USUAL_FORMATS

from .access import scope_of
from .keys import INFER
from .openapi_errors import SECURITY_SCHEMES, error_responses, security
from .schemas import DEADLINE, ErrorResponse, PredictRequest, RowsRequest, parameter
from .v2.repository_schemas import BODIES
from .v2.schemas import InferenceRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from PIL import Image

    from foldserve.format.image import ImageRecipe

_HEADERS = {
    "X-Request-ID": "The client's own where one was sent and is safe to repeat, else a new one.",
    "Server-Timing": "Milliseconds by stage: parse (decode where pictures wait for a decoder), queue, infer, total.",
    "X-Model-Version": "The version that answered, where a model did.",
    "X-Image-Layout": "The order of the axes in raw pixels, `CHW` or `HWC`, where the model takes coloured pictures.",
    "X-Model-Verified": "`false` where the model has no manifest, so that its answers are not proved.",
}

_ANY_SIDE = 28  # of an example for a model that takes any

_BINARY = {"type": "string", "format": "binary"}

# Pictures or rows in JSON.
INSTANCES = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("PredictRequest", "RowsRequest")]}

PREDICT: dict[str, Any] = {
    "summary": "Ask a model about pictures or rows",
    "parameters": [
        parameter("model", "query", "Which model; needed only where several are served.", type="string", minLength=1),
        parameter(
            "version",
            "query",
            "Which version of it; without it and without a label, the one that `latest` points at.",
            type="integer",
            minimum=1,
        ),
        parameter(
            "label", "query", "The version that this label points at; not with a version.", type="string", minLength=1
        ),
        parameter(
            "top",
            "query",
            "Give so many classes, the most probable first, instead of the probabilities of all.",
            type="integer",
            minimum=1,
        ),
        DEADLINE,
        parameter(
            "X-Request-ID",
            "header",
            "At most 64 letters, digits and . _ : - are sent back with the answer and logged; another id is replaced.",
            type="string",
        ),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": INSTANCES},
            "image/png": {"schema": _BINARY},
            "image/jpeg": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "array", "items": _BINARY}}}
            },
            "application/octet-stream": {"schema": _BINARY},
        },
    },
}

PREDICT_DESCRIPTION = """
The body is, for a model that takes pictures, one of these:

* `application/json`: `{"instances": [...]}`, each image as rows, as flat values 0-255, or as `{"b64": "..."}`;
* `image/png` or `image/jpeg`: one file of any size and colour. Its orientation is applied, transparency is laid over
  the model's background, colour becomes grey, and it is reduced by area with its aspect kept. It is never inverted;
* `multipart/form-data`: one or several such files, under any field names;
* `application/octet-stream`: the values themselves, one byte each, row by row, image after image.

For any other model it is `{"instances": [...]}` with rows, with objects of named columns, or with objects of named
inputs; or the bytes of its only input. The form of the answer is that of the model's task, which `/v2` names: classes,
labels, values, an embedding, or the outputs as they are.

```sh
curl -s localhost:8000/predict -H 'Content-Type: image/png' --data-binary @image.png
curl -s localhost:8000/predict -F file=@image.png -F file=@photo.jpg
curl -s localhost:8000/predict -H 'Content-Type: application/octet-stream' --data-binary @pixels.bin
```
"""


def describe(app: FastAPI, models: Sequence[tuple[str, ImageRecipe]]) -> dict[str, Any]:
    """Return the OpenAPI document, with examples that fit the models which are served now.

    Args:
        app: the application, for its routes.
        models: name and image of each model that takes images.
    """
    for route in app.routes:
        if isinstance(route, APIRoute):
            route.unique_id = _operation_id(route)
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    models_of_bodies = (PredictRequest, RowsRequest, InferenceRequest, ErrorResponse, *BODIES)
    bodies: list[Any] = [(model, "validation") for model in models_of_bodies]
    definitions = models_json_schema(bodies, ref_template="#/components/schemas/{model}")[1]
    schemas.update(definitions["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):  # of the 422 that is taken out below
        schemas.pop(unused, None)
    document["components"]["securitySchemes"] = SECURITY_SCHEMES
    document["components"]["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
    }
    predict = document["paths"]["/predict"]["post"]
    if models:
        predict["requestBody"]["content"]["application/json"]["examples"] = json_examples(models[0][1])
    if len(models) > 1:
        predict["parameters"][0] |= {"required": True, "example": models[0][0]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _list_formats(operation, app.state.settings.image_formats)
            for content in operation["responses"].get("200", {}).get("content", {}).values():
                content.get("schema", {}).pop("title", None)  # FastAPI's, which says the path once more
            operation["responses"].pop("422", None)  # declared for every path with a parameter; we answer 400
            operation["responses"] |= error_responses(method.upper(), path, has_body="requestBody" in operation)
            for given in operation.get("parameters", ()):
                if given["in"] == "path":
                    given["schema"] = _PATH_PARAMETERS[given["name"]]
            operation["security"] = security(method.upper(), path, app.state.access)
            _add_headers(operation, answered_by_model=scope_of(method.upper(), path) == INFER)
    return document


def _list_formats(operation: dict[str, Any], formats: Sequence[str]) -> None:
    """State the files of pictures that are decoded here, where an operation takes files."""
    content = operation.get("requestBody", {}).get("content", {})
    if "image/png" in content:
        for name in USUAL_FORMATS:
            del content[f"image/{name}"]
        content.update({f"image/{name}": {"schema": _BINARY} for name in formats})


def _operation_id(route: APIRoute) -> str:
    """Return the name of a route in generated clients: its function, and what else its path names."""
    chosen = [name for name in ("version", "label") if f"/{{{name}}}" in route.path_format]
    name = f"put_{route.name}" if "PUT" in (route.methods or ()) else route.name
    return "_of_".join([name, *chosen])


def json_examples(spec: ImageRecipe) -> dict[str, Any]:
    """Return one request for each form that an instance may have."""
    import numpy as np

    picture = example_picture(spec)
    file = io.BytesIO()
    picture.save(file, "PNG")
    plane = np.asarray(picture)
    pixels = np.stack([plane] * spec.channels, axis=0 if spec.layout == "CHW" else -1)
    flat, nested = pixels.ravel().tolist(), (plane if spec.channels == 1 else pixels).tolist()
    encoded = {"b64": base64.b64encode(file.getvalue()).decode()}
    rows = {
        "file": {"summary": "a PNG file in base64", "value": {"instances": [encoded]}},
        "rows": {"summary": f"{picture.height} rows of {picture.width} values", "value": {"instances": [nested]}},
    }
    return (
        rows
        if spec.is_free
        else rows
        | {
            "flat": {"summary": f"two images, {len(flat)} values each", "value": {"instances": [flat, flat]}},
        }
    )


def example_picture(spec: ImageRecipe) -> Image.Image:
    """Return a shirt, light on dark as Fashion-MNIST has it, drawn at the model's size."""
    from PIL import Image, ImageDraw

    width, height = (_ANY_SIDE if side == ANY_SIZE else side for side in (spec.width, spec.height))
    unit = min(width, height) / 28
    picture = Image.new("L", (width, height), spec.background[0])
    draw = ImageDraw.Draw(picture)
    draw.rectangle([8 * unit, 3 * unit, 19 * unit, 25 * unit], fill=200)
    draw.polygon([(x * unit, y * unit) for x, y in ((8, 3), (1, 9), (4, 13), (8, 10))], fill=170)
    draw.polygon([(x * unit, y * unit) for x, y in ((19, 3), (26, 9), (23, 13), (19, 10))], fill=170)
    draw.ellipse([11 * unit, unit, 16 * unit, 5 * unit], fill=spec.background[0])
    return picture


_PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "model": {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$"},
    "version": {"type": "integer", "minimum": 1},
    "label": {"type": "string", "pattern": r"^[A-Za-z][A-Za-z0-9_.\-]{0,63}$"},
}


def _add_headers(operation: dict[str, Any], *, answered_by_model: bool) -> None:
    """Declare the headers that every answer carries."""
    for status, response in operation["responses"].items():
        is_answer = answered_by_model and status == "200"
        names = [name for name in _HEADERS if is_answer or not name.startswith("X-Model-")]
        response["headers"] = response.get("headers", {}) | {
            name: {"$ref": f"#/components/headers/{name}"} for name in names
        }
