"""A command that asks a published model, for its user to try: a picture, or a row as it was proved."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from .network import Array
from .opened import Opened

_LONGEST = 400  # characters of JSON that still fit a terminal
_SERVICE = "localhost:8000/predict?model="


def question_for(name: str, opened: Opened) -> str:
    """Return a `curl` line that gets an answer from the model `name`."""
    if opened.images is not None:
        return f"curl -F file=@picture.jpg '{_SERVICE}{name}'"
    feeds = opened.examples.take(opened.examples.checked[:1])
    body, note = "@rows.json", f"  # rows.json: {_form(feeds)}"
    if sum(value[:1].size for value in feeds.values()) < _LONGEST:
        row: Any = {key: _values(value[0]) for key, value in feeds.items()}
        text = json.dumps({"instances": [row if len(row) > 1 else next(iter(row.values()))]})
        body, note = (f"'{text}'", "") if len(text) <= _LONGEST else (body, note)
    return f"curl -H 'Content-Type: application/json' -d {body} '{_SERVICE}{name}'{note}"


def _form(feeds: Mapping[str, Array]) -> str:
    """Return what JSON a file of rows holds, each array by the lengths of its lists."""
    shapes = {key: np.shape(value)[1:] for key, value in feeds.items()}
    forms = {key: f"<{' x '.join(map(str, shape))} values>" if shape else "<value>" for key, shape in shapes.items()}
    row = ", ".join(f'"{key}": {form}' for key, form in forms.items())
    row = f"{{{row}}}" if len(forms) > 1 else next(iter(forms.values()))
    return f'{{"instances": [{row}, ...]}}'


def _values(row: Array) -> Any:
    """Return a row as nested lists, each float as the shortest decimal that becomes it."""
    row = np.asarray(row)  # of an array of texts it is one text
    if row.dtype.kind != "f":
        return row.tolist()
    shortest = [float(np.format_float_positional(value, trim="-")) for value in row.reshape(-1)]
    return np.reshape(np.array(shortest, np.float64), row.shape).tolist()
