"""The parameters that mean something here, over HTTP and gRPC: what they may be, and what they may not.

Everything else among the parameters is passed over, as the protocol allows.
"""

from collections.abc import Mapping
from typing import Any

from ..bodies.json_body import describe
from ..errors import InvalidInput, Unsupported, clip

Parameter = str | int | float | bool

_MAX_CLASSES = 1_000_000
FINAL_RESPONSE = "triton_final_response"  # of an answer in a stream: no other follows to the same request
EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"  # changes no answer here: each one is the final one


def check_parameters(parameters: Mapping[str, Parameter]) -> None:
    """Refuse request parameters that would change the meaning of a request if they were passed over.

    `triton_enable_empty_final_response` is kept as it is: each request has one answer, which is the final one.

    Raises:
        Unsupported: the request belongs to a sequence.
        InvalidInput: a name is one of those that Triton keeps for itself.
    """
    if parameters.get("sequence_id"):
        raise Unsupported("parameters.sequence_id: sequences are not offered, send each request for itself")
    if type(parameters.get(EMPTY_FINAL_RESPONSE, False)) is not bool:
        got = describe(parameters[EMPTY_FINAL_RESPONSE])
        raise InvalidInput(f"parameters.{EMPTY_FINAL_RESPONSE}: {got}, expected true or false")
    for name in parameters:
        if name.startswith("triton_") and name != EMPTY_FINAL_RESPONSE:
            raise InvalidInput(f"parameters: {clip(name)!r}, expected no name beginning with triton_ (reserved)")


def class_count(parameters: Mapping[str, Parameter], place: str) -> int:
    """Return the parameter `classification` of an output; 0 where the tensor itself is wanted.

    Raises:
        InvalidInput: it is not a number of classes.
    """
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes <= _MAX_CLASSES:
        raise InvalidInput(f"{place}.parameters.classification: {describe(classes)}, expected a number of classes")
    return classes


def timeout_seconds(value: Any) -> float | None:
    """Return the request parameter `timeout`, whole microseconds, in seconds; None for 0 and for none at all.

    Raises:
        InvalidInput: it is not a whole number of microseconds.
    """
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise InvalidInput(f"parameters.timeout: {describe(value)}, expected a whole number of microseconds")
    return value / 1e6 if value else None
