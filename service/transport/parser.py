"""The bytes of a connection -> heads, bodies and ends of its requests: httptools, within limits of size.

Refuses what is too large, what is not HTTP/1.1, and what two parsers could read differently. Knows no socket, no clock
and no application.
"""

import re
from dataclasses import dataclass
from typing import Protocol

import httptools

from ..errors import BodyTooLarge, HeadersTooLarge, InvalidInput, ServiceError, Unsupported, clip
from .limits import ConnectionLimits

_PIECE_BYTES = 16 * 1024  # read at once where framing is to be counted
_CHUNK_BYTES = 20  # of a chunk's framing: its size, line ends
_VERSIONS = ("1.0", "1.1")


@dataclass(slots=True)
class ParsedHead:
    """The request line and the headers of one request.

    Attributes:
        method: in capitals.
        target: as it was sent, with its query.
        version: of HTTP, `1.0` or `1.1`.
        headers: in order; names in lower case.
        keep_alive: whether another request may follow.
        has_body: whether any body is to come.
        expects_continue: whether the client waits for `100 Continue` before it sends the body.
    """

    method: bytes
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    has_body: bool
    expects_continue: bool


class RequestEvents(Protocol):
    """Called with the parts of each request in order; what it raises as `ServiceError` comes out of `feed`."""

    def request_started(self) -> None:
        """The first byte of a request was read."""

    def head_received(self, head: ParsedHead) -> None:
        """All headers were read."""

    def body_received(self, data: bytes) -> None:
        """A piece of the body was read."""

    def request_received(self) -> None:
        """The request is whole."""


class RequestParser:
    """Reads one connection's requests.

    Args:
        limits: of headers and bodies.
        events: told what is read.

    Attributes:
        headers: of the request that is being read, as far as they were.
    """

    def __init__(self, limits: ConnectionLimits, events: RequestEvents) -> None:
        self._limits = limits
        self._events = events
        self._parser = httptools.HttpRequestParser(self)
        # What follows a request with `Connection: close` in the same packet must not spoil that request.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.headers: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._expects_continue = False
        self._in_head = self._is_chunked = self._has_length = False
        self._fed = b""  # the bytes in which the head stands that is being read
        self._head_bytes = self._head_count = self._partial_bytes = self._body_bytes = 0
        self._chunks = self._chunked_bytes = 0

    def feed(self, data: bytes) -> None:
        """Read some bytes.

        Raises:
            ServiceError: of a limit, or what the events raised; nothing more can be read then.
            InvalidInput: this is no request in HTTP/1.1.
        """
        while data:
            size = len(data) if self._has_length else _PIECE_BYTES
            self._feed(data[:size])
            data = data[size:]

    def _feed(self, data: bytes) -> None:
        was_in_head, was_chunked = self._in_head, self._is_chunked
        self._fed = self._fed + data if was_in_head else data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # the request itself is answered as it stands
        except httptools.HttpParserError as err:
            if isinstance(err.__context__, ServiceError):  # raised in one of the callbacks below
                raise err.__context__ from None
            raise InvalidInput(f"not an HTTP/1.1 request: {err}") from err
        if was_in_head and self._in_head:  # headers are seen only when whole: count what they are made of
            self._partial_bytes += len(data)
            if self._partial_bytes > self._limits.header_bytes:
                raise self._headers_too_large()
        if self._in_head:
            self._refuse_line_without_version()
        elif was_chunked and self._is_chunked:
            self._count_framing(len(data))

    def close(self) -> None:
        """Let go of what refers back to this parser and its connection; nothing is read any more."""
        del self._parser, self._events

    # -- httptools calls -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Forget the request before."""
        self.headers = []
        self._target = b""
        self._expects_continue = False
        self._in_head = True
        self._is_chunked = self._has_length = False
        self._head_bytes = self._head_count = self._partial_bytes = self._body_bytes = 0
        self._chunks = self._chunked_bytes = 0
        self._events.request_started()

    def on_url(self, url: bytes) -> None:
        """Count and keep a piece of the target."""
        self._count_head(len(url))
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count and keep a header; a trailer is only counted, so that it can never pass for a header."""
        self._head_count += 1
        self._count_head(len(name) + len(value) + 4)
        if self._in_head:
            name = name.lower()
            self._expects_continue |= name == b"expect" and value.lower() == b"100-continue"
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Refuse by the headers alone what needs no body, then hand the head on."""
        parser, version = self._parser, self._parser.get_http_version()
        self._check_line(version)
        self._check_hosts(version)
        has_body, is_upgrade = self._has_body(version), parser.should_upgrade()
        if has_body and is_upgrade:
            raise Unsupported("Upgrade: no other protocol is spoken here, send the request without")
        keep_alive = version != "1.0" and parser.should_keep_alive() and not is_upgrade
        self._in_head = False
        self._events.head_received(
            ParsedHead(
                parser.get_method(), self._target, version, self.headers, keep_alive, has_body, self._expects_continue
            )
        )

    def on_chunk_header(self) -> None:
        """Count a chunk."""
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        """Count and hand on a piece of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            raise self._body_too_large(f"{self._body_bytes} or more")
        self._events.body_received(body)

    def on_message_complete(self) -> None:
        """The request is whole, and its headers are no longer those of the request that is being read."""
        self.headers = []
        self._is_chunked = self._has_length = False
        self._events.request_received()

    # -- the request line and Host -------------------------------------------------------------------------------

    def _check_line(self, version: str) -> None:
        """Refuse other versions, and other protocols that the library reads too, such as RTSP."""
        target = self._target
        if version not in _VERSIONS or b" %b HTTP/%b\r\n" % (target, version.encode()) not in self._fed:
            raise InvalidInput("not an HTTP/1.1 request: expected a first line such as GET / HTTP/1.1")
        if self._parser.get_method() == b"CONNECT":
            raise Unsupported("CONNECT: this is no proxy, send the request to where it should go")
        if b"#" in target or (target == b"*" and self._parser.get_method() != b"OPTIONS"):
            raise InvalidInput("target: not a path, expected one such as /predict")

    def _refuse_line_without_version(self) -> None:
        """Answer HTTP/0.9 at once: it sends one line and waits."""
        line = b"%b %b\r\n" % (self._parser.get_method(), self._target)
        if self._target and self._fed.startswith(line):
            raise InvalidInput("not an HTTP/1.1 request: expected a first line such as GET / HTTP/1.1")

    def _check_hosts(self, version: str) -> None:
        """Refuse a request that names no host, two, or one that is not ours, in its header or its target."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version != "1.0"):
            raise InvalidInput(f"Host: got {len(hosts)} such headers, expected 1")
        for host in hosts:
            self._limits.hosts.check(host)
        if not self._target.startswith((b"/", b"*")):
            self._check_absolute()

    def _check_absolute(self) -> None:
        scheme, _, rest = self._target.partition(b"://")
        authority = re.split(rb"[/?]", rest, maxsplit=1)[0]
        if scheme.lower() not in (b"http", b"https"):
            raise InvalidInput("target: not a path, expected one such as /predict")
        self._limits.hosts.check(authority)

    # -- limits --------------------------------------------------------------------------------------------------

    def _count_head(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > self._limits.header_bytes or self._head_count > self._limits.header_count:
            raise self._headers_too_large()

    def _count_framing(self, length: int) -> None:
        """Count what stands around chunks, extensions before all, as if it were headers."""
        self._chunked_bytes += length
        framing = self._chunked_bytes - self._body_bytes - self._chunks * _CHUNK_BYTES
        if framing > self._limits.header_bytes:
            raise self._headers_too_large()

    def _has_body(self, version: str) -> bool:
        """Return whether a body is to come; refuses it by its stated length, and in any coding but chunks."""
        for name, value in self.headers:
            if name == b"content-length":
                if int(value) > self._limits.body_bytes:
                    raise self._body_too_large(value.decode())
                self._has_length = int(value) > 0
                return self._has_length
            if name == b"transfer-encoding":
                if version == "1.0":
                    raise InvalidInput("Transfer-Encoding: HTTP/1.0 has none, send Content-Length")
                if value.strip().lower() != b"chunked":
                    coding = clip(value.decode("latin-1"))
                    raise Unsupported(f"Transfer-Encoding: {coding!r}, expected chunked and no other coding")
                self._is_chunked = True
                return True
        return False

    def _headers_too_large(self) -> HeadersTooLarge:
        limits = self._limits
        return HeadersTooLarge(f"headers: expected at most {limits.header_count}, and {limits.header_bytes} bytes")

    def _body_too_large(self, length: str) -> BodyTooLarge:
        return BodyTooLarge(f"body: got {length[:20]} bytes, expected at most {self._limits.body_bytes}")
