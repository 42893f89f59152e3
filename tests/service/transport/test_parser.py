"""The parser without a connection: the parts of a request, however its bytes are cut."""

import pytest

from foldserve.service.errors import HeadersTooLarge, InvalidInput, Unsupported
from foldserve.service.transport.parser import ParsedHead, RequestParser
from tests.support.wire import limited

REQUESTS = (
    b"POST /a?b=c HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\nX-Name: Value\r\n\r\nbody"
    b"GET /d HTTP/1.1\r\nHost: here\r\n\r\n"
    b"POST /e HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\nExpect: 100-Continue\r\n\r\n"
    b"3\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n"
    b"GET /f HTTP/1.0\r\n\r\n"
)


class Recorder:
    """Takes note of what is read; bodies in one piece, however they are cut."""

    def __init__(self) -> None:
        self.heads: list[ParsedHead] = []
        self.bodies: list[bytes] = []
        self.started = self.complete = 0

    def request_started(self) -> None:
        self.started += 1

    def head_received(self, head: ParsedHead) -> None:
        self.heads.append(head)
        self.bodies.append(b"")

    def body_received(self, data: bytes) -> None:
        self.bodies[-1] += data

    def request_received(self) -> None:
        self.complete += 1


def read(*pieces: bytes) -> Recorder:
    """What a parser makes of some pieces."""
    recorder = Recorder()
    parser = RequestParser(limited(), recorder)
    for piece in pieces:
        parser.feed(piece)
    return recorder


def test_the_parts_of_requests_are_handed_on() -> None:
    """Request line, headers in lower case, bodies without their chunks; a trailer is no header."""
    recorder = read(REQUESTS)
    assert recorder.started == recorder.complete == 4
    assert recorder.bodies == [b"body", b"", b"abcde", b""]
    first, second, third, last = recorder.heads
    assert (first.method, first.target, first.version) == (b"POST", b"/a?b=c", "1.1")
    assert first.headers == [(b"host", b"here"), (b"content-length", b"4"), (b"x-name", b"Value")]
    assert [head.has_body for head in recorder.heads] == [True, False, True, False]
    assert [head.keep_alive for head in recorder.heads] == [True, True, True, False]
    assert third.expects_continue
    assert not second.expects_continue
    assert b"x" not in dict(third.headers)
    assert last.version == "1.0"


def test_where_the_bytes_are_cut_makes_no_difference() -> None:
    """In two at every place, and one by one."""
    whole = read(REQUESTS)
    cuts = [(REQUESTS[:at], REQUESTS[at:]) for at in range(1, len(REQUESTS))]
    for pieces in (*cuts, [REQUESTS[at : at + 1] for at in range(len(REQUESTS))]):
        recorder = read(*pieces)
        assert (recorder.heads, recorder.bodies) == (whole.heads, whole.bodies)


def test_what_an_event_raises_comes_out_as_it_is() -> None:
    """The library wraps it; who feeds the parser has to know why it stopped."""
    error = Unsupported("not here")

    class Raising(Recorder):
        def body_received(self, data: bytes) -> None:
            raise error

    parser = RequestParser(limited(), Raising())
    with pytest.raises(Unsupported) as caught:
        parser.feed(REQUESTS)
    assert caught.value is error


def test_what_is_not_http_is_said_to_be_no_request() -> None:
    """In our own words, whatever the library calls it."""
    with pytest.raises(InvalidInput, match=r"^not an HTTP/1\.1 request"):
        read(b"GET / HTTP/1.1\nHost: here\n\n")


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_a_head_is_bounded_in_pieces_of_any_size(size: int) -> None:
    """The library shows headers only when they are whole; what it holds until then is counted too."""
    parser = RequestParser(limited(header_bytes=500), Recorder())
    endless = b"GET / HTTP/1.1\r\nX: " + b"x" * 2_000
    allowed, last = 0, None
    for at in range(0, len(endless), size):
        try:
            parser.feed(endless[at : at + size])
        except HeadersTooLarge as err:
            last = err
            break
        allowed = at + size
    assert last is not None
    assert allowed <= 500 + size
