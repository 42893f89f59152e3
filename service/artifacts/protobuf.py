"""Protocol buffer messages as lists of fields: read, changed in a few places, written back.

What is not touched keeps its bytes and its place, so that a message that was only read is written as it was. Knows the
wire format and no schema; the service needs too little of one to carry a library of 30 MB for it. Reading copies
nothing: strings, bytes and messages are views of the data that was given.

Source: the encoding as described at protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIDTHS = {FIXED64: 8, FIXED32: 4}
_UINT64 = 1 << 64
_MOST_TAG_BYTES = 5

Value = int | bytes | memoryview
Field = tuple[int, int, Value]


@dataclass
class Message:
    """The fields of one message in the order of the wire: (number, wire type, value).

    A varint is a number below 2**64; everything else is bytes.
    """

    fields: list[Field] = field(default_factory=list)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> "Message":
        """Read the fields of a message; what they hold stays bytes.

        Raises:
            ValueError: the bytes are not a message.
        """
        return cls(list(read_fields(data)))

    @classmethod
    def of(cls, fields: Mapping[int, Iterable[int | str | bytes | memoryview]]) -> "Message":
        """Return a message with these values in these fields, in their order."""
        return cls([_field(number, value) for number, values in fields.items() for value in values])

    def encode(self) -> bytes:
        """Return the bytes of the message."""
        return b"".join(part for entry in self.fields for part in _encoded(*entry))

    def all_bytes(self, number: int) -> list[bytes | memoryview]:
        """Every value of a field of bytes, strings or messages."""
        return [value for other, _, value in self.fields if other == number and not isinstance(value, int)]

    def _delimited(self, number: int) -> list[bytes | memoryview]:
        """Every value of a field of strings or messages; numbers of fixed width under its number do not count."""
        return [
            value
            for other, kind, value in self.fields
            if other == number and kind == BYTES and not isinstance(value, int)
        ]

    def messages(self, number: int) -> list["Message"]:
        """Every value of a field of messages."""
        return [Message.parse(data) for data in self._delimited(number)]

    def texts(self, number: int, errors: str = "strict") -> list[str]:
        """Every value of a field of strings; `errors` says what becomes of bytes that are not UTF-8."""
        return [str(value, "utf-8", errors) for value in self._delimited(number)]

    def text(self, number: int, errors: str = "strict") -> str:
        """The string in a field, the last one where there are several, empty where there is none."""
        return next(reversed(self.texts(number, errors)), "")

    def integers(self, number: int) -> list[int]:
        """Every int64 of a field, packed or not."""
        numbers: list[int] = []
        for other, kind, value in self.fields:
            if other == number and isinstance(value, int):
                numbers.append(_signed(value))
            elif other == number and kind == BYTES and not isinstance(value, int):
                numbers.extend(_unpacked(value))
        return numbers

    def integer(self, number: int, default: int = 0) -> int:
        """The int64 in a field, the last one where there are several; other types do not count, as in protobuf."""
        values = [value for other, _, value in self.fields if other == number and isinstance(value, int)]
        return _signed(values[-1]) if values else default

    def replace(self, number: int, values: Iterable[int | str | bytes | memoryview]) -> None:
        """Put `values` where the first value of the field stood, or at the end; the others are taken out."""
        place = next((at for at, entry in enumerate(self.fields) if entry[0] == number), len(self.fields))
        kept = [entry for entry in self.fields if entry[0] != number]
        kept[place:place] = [_field(number, value) for value in values]
        self.fields = kept


def read_fields(data: bytes | memoryview) -> Iterator[Field]:
    """Yield the fields of a message one by one, as in `Message.fields`.

    Raises:
        ValueError: the bytes are not a message.
    """
    view, position, end = memoryview(data), 0, len(data)
    while position < end:
        key, position = _tag(view, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = _varint(view, position)
            yield number, kind, value
            continue
        if kind == BYTES:
            width, position = _varint(view, position)
        elif kind in _WIDTHS:
            width = _WIDTHS[kind]
        else:
            raise ValueError(f"wire type {kind} before byte {position}")
        if position + width > end:
            raise ValueError(f"field {number} ends {position + width - end} bytes behind its message")
        yield number, kind, view[position : position + width]
        position += width


def _tag(view: memoryview, position: int) -> tuple[int, int]:
    """Decode a field's number and type as protobuf's own readers do: at most five bytes, of which 32 bits count."""
    key, end = _varint(view, position)
    key %= 1 << 32
    if end - position > _MOST_TAG_BYTES or not key >> 3:
        raise ValueError(f"no field begins at byte {position}")
    return key, end


def _field(number: int, value: int | str | bytes | memoryview) -> Field:
    if isinstance(value, int):
        return number, VARINT, value % _UINT64
    return number, BYTES, value.encode() if isinstance(value, str) else value


def _signed(value: int) -> int:
    return value - _UINT64 if value >= _UINT64 >> 1 else value


def _unpacked(data: bytes | memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield _signed(value)


def _encoded(number: int, kind: int, value: Value) -> tuple[bytes | memoryview, ...]:
    key = varint_bytes(number << 3 | kind)
    if isinstance(value, int):
        return key, varint_bytes(value)
    return (key, varint_bytes(len(value)), value) if kind == BYTES else (key, value)


def _varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Decode a base-128 number; returns it and the position after it."""
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value % _UINT64, position
        shift += 7
    raise ValueError(f"a number is cut off or longer than 64 bits before byte {position}")


def varint_bytes(value: int) -> bytes:
    """Encode a base-128 number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
