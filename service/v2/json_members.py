"""Members of a request's JSON, each read as what it has to be or refused with the place where it stands.

Every function takes the value and the place by which a message names it, and raises `InvalidInput`.
"""

from collections.abc import Mapping
from typing import Any

from ..bodies.json_body import describe
from ..errors import InvalidInput, clip
from .parameters import Parameter


def read_object(value: Any, place: str) -> Mapping[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{place}: {describe(value)}, expected an object")
    return value


def read_list(value: Any, place: str, expected: int) -> list[Any]:
    """Return a JSON array; one that is longer than what can be right is refused before its items are read."""
    if value is None:
        raise InvalidInput(f"{place}: missing, expected a list")
    if not isinstance(value, list):
        raise InvalidInput(f"{place}: {describe(value)}, expected a list")
    if len(value) > expected:
        raise InvalidInput(f"{place}: got {len(value)}, expected at most the model's {expected}")
    return value


def read_text(value: Any, place: str) -> str:
    """Return a JSON string."""
    if not isinstance(value, str):
        raise InvalidInput(f"{place}: {'missing' if value is None else describe(value)}, expected a string")
    return value


def read_parameters(value: Any, place: str) -> Mapping[str, Parameter]:
    """Return the parameters of a request, an input or an output; none where there are none."""
    if value is None:
        return {}
    parameters = read_object(value, place)
    for name, item in parameters.items():
        if not isinstance(item, (str, int, float, bool)):
            raise InvalidInput(f"{place}.{clip(name)}: {describe(item)}, expected a string, a number or a boolean")
    return parameters


def read_boolean(parameters: Mapping[str, Parameter], name: str, place: str) -> bool:
    """Return one of the parameters; false where it is not there."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"{place}.{name}: {describe(value)}, expected true or false")
    return value


def read_identifier(value: Any) -> str:
    """Return the id of a request; empty where it has none."""
    return "" if value is None else read_text(value, "id")


def read_shape(value: Any, place: str) -> tuple[int, ...]:
    """Return a list of JSON integers as a shape; whether the sizes make sense is for `check_inputs` to say."""
    if not isinstance(value, list) or not all(type(size) is int for size in value):
        got = f"[{', '.join(map(describe, value[:8]))}]" if isinstance(value, list) else describe(value)
        raise InvalidInput(f"{place}: {clip(got)}, expected a list of integers")
    return tuple(value)
