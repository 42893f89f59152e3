"""What a block of headers means, as the library of gRPC read it: nothing here decodes one.

The gate adds a header of its own to a block whose meaning is wanted, under a name that no client knows; the call that
the library makes of it carries that header among its metadata, and so the metadata are those of that block.

Source: RFC 7541 section 6 (which representations change the table of a connection, and which do not).
"""

import secrets
from collections.abc import Callable, Iterable

from ...bounded_dict import BoundedDict
from .frames import literal

Metadata = list[tuple[str, str | bytes]]
Listener = Callable[[str, Metadata, float | None], None]

_MOST_ASKED = 1_024  # blocks whose meaning is wanted at one time; clients whose calls never begin must not add up


class KnownBlocks:
    """The blocks whose meaning is wanted.

    Attributes:
        MARK_BYTES: by which a call's metadata are larger for it.
    """

    MARK_BYTES = 128

    def __init__(self) -> None:
        self._name = f"x-block-{secrets.token_hex(8)}"
        self._asked: BoundedDict[str, Listener] = BoundedDict(_MOST_ASKED)
        self._number = 0

    def mark(self, listener: Listener) -> bytes:
        """Return what is to be added to a block; the listener is told what it means.

        Args:
            listener: takes the path of the call, its metadata, and the seconds that it has left.
        """
        self._number += 1
        number = str(self._number)
        self._asked[number] = listener
        return literal((self._name.encode(), number.encode()))

    def tell(self, route: str, metadata: Iterable[tuple[str, str | bytes]], seconds_left: float | None) -> None:
        """Tell whoever asked about the block of this call."""
        pairs = list(metadata)
        number = next((value for name, value in pairs if name == self._name), None)
        listener = self._asked.pop(number, None) if isinstance(number, str) else None
        if listener is not None:
            listener(route, [pair for pair in pairs if pair[0] != self._name], seconds_left)


def keeps_table(block: bytes) -> bool:
    """Return whether a block of headers changes nothing of what its connection remembers.

    Such a block means the same as long as the table is the same, and the other side need not see it.
    """
    position, end = 0, len(block)
    try:
        while position < end:
            first = block[position]
            if first & 0x80:
                _, position = _integer(block, position, 0x7F)
            elif first & 0x60:  # a literal that is remembered, or another size of the table
                return False
            else:
                index, position = _integer(block, position, 0x0F)
                for _ in range(1 if index else 2):
                    length, position = _integer(block, position, 0x7F)
                    position += length
    except IndexError:
        return False
    return position == end


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """Return an integer whose first byte is masked so, and the position behind it (RFC 7541 section 5.1)."""
    value = block[position] & mask
    position += 1
    if value == mask:
        for shift in range(0, 35, 7):
            byte = block[position]
            position += 1
            value += (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise IndexError
    return value, position
