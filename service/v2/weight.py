"""What a JSON document would weigh once it is parsed, told from its marks before anybody parses it.

Parsed, `[],` takes twenty times its size and holds the interpreter meanwhile, for seconds from a few megabytes on. No
request for a model has more values than its rows have, nor more lists than those values fill.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from operator import mul

from ..errors import TooManyRows
from ..tensors import TensorSpec
from .datatypes import BYTES

LIGHT_BYTES = 65_536  # parsed within a millisecond or two, whatever stands in it
_SPARE = 1_000  # marks around the data: names, shapes, parameters, outputs


class Weight:
    """How many values and lists a request for one model may have.

    Args:
        inputs: what the model takes.
        max_rows: rows in one request.
    """

    def __init__(self, inputs: Sequence[TensorSpec], max_rows: int) -> None:
        self._max_rows = max_rows
        self._most_values = max_rows * sum(prod(spec.row_shape) for spec in inputs) + _SPARE
        self._lists_per_value = max(_lists(spec) / max(1, prod(spec.row_shape)) for spec in inputs)
        self._is_known = all(spec.datatype != BYTES for spec in inputs)  # texts may hold marks of their own

    def check(self, data: bytes) -> None:
        """Refuse a document that holds more than any request for the model.

        Only what stands side by side is counted, by its commas; what is nested too deep the parser refuses itself.

        Raises:
            TooManyRows: it does.
        """
        if len(data) <= LIGHT_BYTES or not self._is_known:
            return
        commas = data.count(b",")
        siblings = min(commas, data.count(b"[") + data.count(b"{"))
        if commas > self._most_values or siblings > self._lists_per_value * (commas + 1) + _SPARE:
            raise TooManyRows(
                f"body: more values or lists than {self._max_rows} rows have, expected at most that many rows in one "
                "request: send them in several"
            )


def _lists(spec: TensorSpec) -> int:
    """Return the lists in one row whose values are nested as deep as its shape: one around each run of values."""
    return sum(accumulate(spec.row_shape[:-1], mul, initial=1)) if spec.row_shape else 0
