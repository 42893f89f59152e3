"""A command that asks a published model, for its user to try: a picture, or a row as it was proved."""

import json
from typing import Any

from .opened import Opened

_LONGEST = 400  # characters of JSON that still fit a terminal
_SERVICE = "localhost:8000/predict?model="


def question_for(name: str, opened: Opened) -> str:
    """Return a `curl` line that gets an answer from the model `name`."""
    if opened.images is not None:
        return f"curl -F file=@picture.jpg '{_SERVICE}{name}'"
    feeds = opened.examples.take(opened.examples.checked[:1])
    row: Any = {key: value[0].tolist() for key, value in feeds.items()}
    if len(row) == 1:
        row = next(iter(row.values()))
    text = json.dumps({"instances": [row]})
    body = f"'{text}'" if len(text) <= _LONGEST else "@rows.json"
    return f"curl -H 'Content-Type: application/json' -d {body} '{_SERVICE}{name}'"
