"""The PROXY protocol: what a proxy writes before the first request to say from where it was called.

Read only from proxies that the settings trust, since anybody could write it. Knows bytes, and no connection.
Source: HAProxy's doc/proxy-protocol.txt, versions 1 and 2.
"""

import ipaddress
import struct

from ..errors import InvalidInput

_TEXT = b"PROXY "
_BINARY = b"\r\n\r\n\x00\r\nQUIT\n"
_LONGEST_TEXT = 107  # bytes, with the end of the line
_LONGEST_BINARY = 2_048  # of what may stand behind the first 16 bytes
_ADDRESSES = {0x10: 4, 0x20: 16}  # families of version 2, and bytes of an address
_REFUSED = "PROXY protocol: expected its version 1 or 2, whole and in the first bytes"


class ProxyHeader:
    """The header of one connection, taken piece by piece.

    Attributes:
        address: of the proxy's client; None where the proxy speaks for itself, or wrote no header.
    """

    def __init__(self) -> None:
        self.address: str | None = None
        self._data = b""

    def feed(self, data: bytes) -> bytes | None:
        """Return the bytes behind the header, all of them where there is none; None while more has to come.

        Raises:
            InvalidInput: it begins as a header and is none.
        """
        self._data += data
        if self._data.startswith(_BINARY):
            return self._read_binary()
        if self._data.startswith(_TEXT):
            return self._read_text()
        begun = any(signature.startswith(self._data) for signature in (_BINARY, _TEXT))
        return None if begun else self._data

    def _read_text(self) -> bytes | None:
        line, end, rest = self._data[:_LONGEST_TEXT].partition(b"\r\n")
        if not end:
            if len(self._data) >= _LONGEST_TEXT:
                raise InvalidInput(_REFUSED)
            return None
        words = line.split(b" ")
        if words[1] != b"UNKNOWN":
            if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
                raise InvalidInput(_REFUSED)
            self.address = _address(words[2].decode("latin-1"), 4 if words[1] == b"TCP4" else 6)
        return rest + self._data[_LONGEST_TEXT:]

    def _read_binary(self) -> bytes | None:
        if len(self._data) < 16:
            return None
        command, family, length = struct.unpack_from("!BBH", self._data, 12)
        if command not in (0x20, 0x21) or length > _LONGEST_BINARY:
            raise InvalidInput(_REFUSED)
        if len(self._data) < 16 + length:
            return None
        size = _ADDRESSES.get(family & 0xF0)
        if command == 0x21 and size is not None:
            if length < 2 * size + 4:
                raise InvalidInput(_REFUSED)
            self.address = str(ipaddress.ip_address(self._data[16 : 16 + size]))
        return self._data[16 + length :]


def _address(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as err:
        raise InvalidInput(_REFUSED) from err
    if address.version != version:
        raise InvalidInput(_REFUSED)
    return str(address)
