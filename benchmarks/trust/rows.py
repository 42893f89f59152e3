"""All rows of the table, in the order of the reference."""

import re

from benchmarks.trust import at_the_door, bad_network, many_models, operating, pictures, rpc_door, security, under_load
from benchmarks.trust.row import Row

EXPECTED = {f"R{number}" for number in range(1, 34)} | {f"S{number}" for number in range(1, 26)}


def _place(row: Row) -> tuple[int, int]:
    letter, number = re.fullmatch(r"([RSK])(\d+)", row.id).groups()  # type: ignore[union-attr]
    return "RSK".index(letter), int(number)


_ROOMS = (under_load, at_the_door, operating, security, pictures, rpc_door, many_models, bad_network)
ROWS: list[Row] = sorted((row for room in _ROOMS for row in room.ROWS), key=_place)
PARTS = sorted({row.part for row in ROWS})
