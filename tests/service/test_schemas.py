"""The schemas in `/docs` say what the service really takes and gives."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from foldserve.format.image import first_format_recipe
from foldserve.format.task import Task
from foldserve.service.bodies.answers import predictions_json
from foldserve.service.bodies.predict_body import Limits, images_from_json
from foldserve.service.errors import InvalidInput
from foldserve.service.schemas import PredictRequest, PredictResponse
from tests.support.artifacts import LABELS, classify, images
from tests.support.predict_bodies import b64

SPEC = first_format_recipe(28, 28, 1)
ZEROS = np.zeros((28, 28), int).tolist()

DOCUMENTS = [
    {"instances": [ZEROS]},
    {"instances": [[0] * 784, ZEROS]},
    {"instances": [[3.0] * 784]},
    {"instances": [b64(images(1)[0, 0]), [255] * 784]},
    {"instances": []},
    {"instances": [[True] * 784]},
    {"instances": [["3"] * 784]},
    {"instances": [[3.5] * 784]},
    {"instances": [[256] * 784]},
    {"instances": [[-1] * 784]},
    {"instances": [[None] * 784]},
    {"instances": [7]},
    {"instances": {"b64": ""}},
    {"instances": [{"b64": 7}]},
    {"instances": [{"b64": "", "more": 1}]},
    {"instances": [ZEROS], "more": 1},
    {},
    [],
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: json.dumps(document)[:40])
def test_the_schema_and_the_parser_agree(document):
    """What the schema takes the parser takes, and what the one refuses the other refuses too."""
    body = json.dumps(document).encode()
    try:
        images_from_json(body, SPEC, Limits(rows=10, pixels=10**6))
    except InvalidInput:
        with pytest.raises(ValidationError):
            PredictRequest.model_validate_json(body)
    else:
        PredictRequest.model_validate_json(body)


def test_an_answer_fits_its_schema():
    """What `/predict` sends is a `PredictResponse` with nothing more and nothing less."""
    answer = json.loads(predictions_json("fashion", 3, Task("classify"), LABELS, classify(images(4))))
    assert PredictResponse.model_validate(answer, strict=True).model_dump() == answer
