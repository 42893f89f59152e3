"""A guarded connection on real sockets: what it refuses, in which words, and what it must leave alone."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest

from foldserve.service.transport.deadlines import Phase
from foldserve.service.transport.hosts import AllowedHosts
from tests.support.wire import limited, on_loop, read_body, respond, serving, until

GET = b"GET /%b HTTP/1.1\r\nHost: here\r\n\r\n"
QUICK = 0.05  # seconds of a deadline that a test wants to see pass
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    """Return a POST with a Content-Length, which may lie."""
    stated = len(body) if length is None else length
    lines = [b"POST /echo HTTP/1.1", b"Host: here", b"Content-Length: %d" % stated, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def echo(scope: dict, receive: Callable[[], Awaitable[dict]], send: Callable[[dict], Awaitable[None]]) -> None:
    """Answer a POST with its body and anything else with its path."""
    body = await read_body(receive)
    if body is not None:
        await respond(send, body if scope["method"] == "POST" else scope["path"].encode())


class Gate:
    """An application that answers `/slow` once it is opened, and knows who went away."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.gone = asyncio.Event()
        self.answered: list[str] = []

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        body = await read_body(receive) if scope["method"] == "POST" else b""
        if body is None:
            self.gone.set()
            return
        self.entered.set()
        if scope["path"] == "/slow":
            await self.open.wait()
        self.answered.append(scope["path"])
        await respond(send, scope["path"].encode())


# -- what must work ----------------------------------------------------------------------------------------------


@on_loop
async def test_a_connection_carries_several_requests() -> None:
    """Keep-alive: the second request needs no second connection."""
    async with serving(echo) as server, server.connect() as client:
        for body in (b"one", b"two"):
            await client.send(post(body))
            assert (await client.answer()).body == body


@on_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    """A quick request behind a slow one waits for its turn."""
    gate = Gate()
    async with serving(gate) as server, server.connect() as client:
        await client.send(GET % b"slow" + GET % b"quick" + GET % b"last")
        await gate.entered.wait()
        gate.open.set()
        assert [(await client.answer()).body for _ in range(3)] == [b"/slow", b"/quick", b"/last"]


@on_loop
async def test_many_pipelined_requests_are_all_answered() -> None:
    """More requests in one packet than may wait are slowed down, not lost."""
    async with serving(echo, limited(pipelined=2)) as server, server.connect() as client:
        for _ in range(5):
            await client.send(b"".join(GET % str(number).encode() for number in range(20)))
        answers = [(await client.answer()).body for _ in range(100)]
        assert answers == [f"/{number}".encode() for number in range(20)] * 5


@on_loop
async def test_continue_is_sent_before_the_body_is_asked_for() -> None:
    """A client that waits for 100 gets it, then its answer."""
    async with serving(echo) as server, server.connect() as client:
        await client.send(post(b"", b"Expect: 100-continue", length=4))
        assert (await client.answer()).status == 100
        await client.send(b"body")
        assert (await client.answer()).body == b"body"


@on_loop
async def test_a_client_that_finished_sending_gets_its_answer() -> None:
    """Half-closed is not gone: the answer comes, then the end."""
    gate = Gate()
    async with serving(gate) as server, server.connect() as client:
        await client.send(GET % b"slow" + GET % b"quick")
        client.end()
        await gate.entered.wait()
        gate.open.set()
        assert [(await client.answer()).body for _ in range(2)] == [b"/slow", b"/quick"]
        assert await client.is_closed()


@on_loop
async def test_head_is_answered_without_a_body() -> None:
    """HEAD keeps the connection in step: the next answer follows the headers."""
    async with serving(echo) as server, server.connect() as client:
        await client.send(b"HEAD /there HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await client.answer(has_body=False)).headers["content-length"] == "6"
        await client.send(GET % b"next")
        assert (await client.answer()).body == b"/next"


@on_loop
async def test_close_is_honoured() -> None:
    """After a request with `Connection: close` comes one answer and the end, whatever followed the request."""
    async with serving(echo) as server, server.connect() as client:
        await client.send(post(b"last", b"Connection: close") + GET % b"ignored")
        assert (await client.answer()).body == b"last"
        assert await client.is_closed()


@on_loop
async def test_what_follows_a_request_that_said_close_reaches_no_application() -> None:
    """It is not merely left unanswered: a client that thinks the connection has ended must not have it carried out."""
    gate = Gate()
    gate.open.set()
    async with serving(gate) as server, server.connect() as client:
        await client.send(post(b"last", b"Connection: close") + post(b"more") + GET % b"ignored")
        assert (await client.answer()).body == b"/echo"
        assert await client.is_closed()
        assert gate.answered == ["/echo"]


@on_loop
async def test_a_request_to_upgrade_is_answered_as_it_stands() -> None:
    """Clients that offer HTTP/2 on a plain connection are answered in HTTP/1.1."""
    async with serving(echo) as server, server.connect() as client:
        await client.send(b"GET /there HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert (await client.answer()).body == b"/there"


@on_loop
async def test_trailers_do_not_become_headers() -> None:
    """What follows a chunked body cannot pass for a header that was checked before."""
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        await read_body(receive)
        seen.extend(scope["headers"])
        await respond(send, b"")

    async with serving(app) as server, server.connect() as client:
        await client.send(CHUNKED + b"1\r\nx\r\n0\r\nX-Role: admin\r\n\r\n")
        assert (await client.answer()).status == 200
        assert b"x-role" not in dict(seen)


# -- too slow ----------------------------------------------------------------------------------------------------


@on_loop
async def test_headers_that_do_not_come_are_given_up() -> None:
    """Half a header block is answered 408 and closed."""
    async with serving(echo, limited(header_seconds=QUICK)) as server, server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: he")
        answer = await client.answer()
        assert answer.status == 408
        assert answer.error.startswith("headers: not complete")
        assert answer.headers["connection"] == "close"
        assert await client.is_closed()


@on_loop
async def test_the_first_headers_are_due_from_the_start_of_the_connection() -> None:
    """A client that connects and waits before it begins has no more time than one that begins at once."""
    limits = limited(header_seconds=1_000)
    async with serving(echo, limits) as server, server.connect() as client:
        await until(lambda: server.guard.connections)
        (connection,) = server.server.server_state.connections
        made = asyncio.get_running_loop().time()
        await asyncio.sleep(QUICK)
        await client.send(GET[:5])
        await until(lambda: connection.deadlines.phase is Phase.HEAD)
        connection.check(made + limits.header_seconds + QUICK / 2)
        assert (await client.answer()).status == 408


@on_loop
async def test_dripping_headers_gain_no_time() -> None:
    """One byte now and then does not start the clock again."""
    async with serving(echo, limited(header_seconds=QUICK)) as server, server.connect() as client:

        async def drip() -> None:
            await client.send(b"GET / HTTP/1.1\r\nX-Slow: ")
            while True:
                await client.send(b"x")
                await asyncio.sleep(QUICK / 10)  # the pace of the attack itself

        dripping = asyncio.create_task(drip())
        assert (await client.answer()).status == 408
        dripping.cancel()


@on_loop
async def test_a_connection_that_says_nothing_is_closed() -> None:
    """A socket without a single byte gets no answer, and no place either."""
    async with serving(echo, limited(header_seconds=QUICK)) as server, server.connect() as client:
        assert await client.is_closed()


@on_loop
async def test_a_body_that_stops_is_given_up_and_the_application_is_told() -> None:
    """Half a body is answered 408; the application, which waited for the rest, learns that it will not come."""
    gate = Gate()
    async with serving(gate, limited(body_seconds=QUICK)) as server, server.connect() as client:
        await client.send(post(b"half", length=8))
        answer = await client.answer()
        assert answer.status == 408
        assert answer.error.startswith("body: got 4 bytes in")
        await gate.gone.wait()
        assert await client.is_closed()


@on_loop
async def test_the_application_is_told_at_once_that_a_body_will_not_come() -> None:
    """It does not wait for as long as the refused client may go on sending."""
    gate = Gate()
    limits = limited(body_bytes=8, linger_seconds=1_000)
    async with serving(gate, limits) as server, server.connect() as client:
        await client.send(CHUNKED + b"4\r\nhalf\r\n")
        await until(lambda: server.server.server_state.tasks)
        await client.send(b"8\r\ntoo much\r\n")
        assert (await client.answer()).status == 413
        await gate.gone.wait()
        assert len(server.guard.connections) == 1


@on_loop
async def test_a_body_that_keeps_its_pace_may_take_long() -> None:
    """Progress buys time: 100 bytes at 1 byte/s are 100 seconds more."""
    limits = limited(body_seconds=1, body_bytes_per_second=1)
    async with serving(echo, limits) as server, server.connect() as client:
        await client.send(post(b"x" * 100, b"Expect: 100-continue", length=101))
        assert (await client.answer()).status == 100  # the server has read what was sent with the headers
        (connection,) = server.server.server_state.connections
        connection.check(connection.deadlines.since + 100)
        await client.send(b"x")
        assert (await client.answer()).body == b"x" * 101


@on_loop
async def test_an_idle_connection_is_closed() -> None:
    """Between requests, keep-alive has an end too."""
    async with serving(echo, timeout_keep_alive=QUICK) as server, server.connect() as client:
        await client.send(GET % b"once")
        assert (await client.answer()).status == 200
        assert await client.is_closed()


@on_loop
async def test_a_client_that_does_not_read_is_cut_off() -> None:
    """An answer that is not read does not stay in memory: the application learns that its client is gone."""
    cut_off = asyncio.Event()

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(32 << 20), "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        cut_off.set()

    async with serving(app, limited(write_seconds=QUICK)) as server, server.connect() as client:
        await client.send(GET % b"big")
        await cut_off.wait()
        assert len(server.guard.connections) == 0


# -- too large ---------------------------------------------------------------------------------------------------


def headers_of(length: int) -> bytes:
    """Return a request whose target and headers count `length` bytes as the protocol counts them."""
    others = len(b"/") + len(b"Host") + len(b"here") + 4 + len(b"X") + 4
    return b"GET / HTTP/1.1\r\nHost: here\r\nX: %b\r\n\r\n" % (b"x" * (length - others))


@on_loop
async def test_headers_are_limited_to_the_byte() -> None:
    """The limit itself passes and one byte more is answered 431."""
    async with serving(echo, limited(header_bytes=200)) as server, server.connect() as client:
        await client.send(headers_of(200))
        assert (await client.answer()).status == 200
        await client.send(headers_of(201))
        answer = await client.answer()
        assert (answer.status, answer.error) == (431, "headers: expected at most 100, and 200 bytes")
        assert await client.is_closed()


@on_loop
async def test_one_endless_header_is_refused_before_it_ends() -> None:
    """The parser shows a header only when it is whole: memory is bounded before that."""
    async with serving(echo, limited(header_bytes=1000)) as server, server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nX: ")
        await until(lambda: server.guard.connections)
        (connection,) = server.guard.connections
        await until(lambda: connection.deadlines.phase is Phase.HEAD)
        for _ in range(100):
            await client.send(b"x" * 100)
        assert (await client.answer()).status == 431


@on_loop
async def test_too_many_headers_are_refused() -> None:
    """Many tiny headers cost more than their bytes."""
    async with serving(echo, limited(header_count=10)) as server, server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 11 + b"\r\n")
        assert (await client.answer()).status == 431


@on_loop
async def test_a_body_is_refused_by_its_stated_length() -> None:
    """413 comes before the body, and without an invitation to send it."""
    async with serving(echo, limited(body_bytes=1000)) as server, server.connect() as client:
        await client.send(post(b"", b"Expect: 100-continue", length=1001))
        answer = await client.answer()
        assert (answer.status, answer.error) == (413, "body: got 1001 bytes, expected at most 1000")
        assert await client.is_closed()


@pytest.mark.parametrize(("length", "status"), [(1000, 200), (1001, 413)])
@on_loop
async def test_a_chunked_body_is_limited_by_what_arrives(length: int, status: int) -> None:
    """Without a stated length the bytes count as they come."""
    async with serving(echo, limited(body_bytes=1000)) as server, server.connect() as client:
        await client.send(CHUNKED + b"1\r\nx\r\n" * length + b"0\r\n\r\n")
        assert (await client.answer()).status == status


@on_loop
async def test_a_refused_client_can_read_why_while_it_still_sends() -> None:
    """The refusal is not eaten by a reset, although megabytes are still on their way."""
    async with serving(echo, limited(body_bytes=1000)) as server, server.connect() as client:
        client.writer.write(post(bytes(8 << 20)))
        assert (await client.answer()).status == 413
        assert await client.is_closed()


@on_loop
async def test_an_early_last_answer_can_be_read_while_the_body_is_still_sent() -> None:
    """The same when the application answers without reading, and the connection ends with it."""

    async def unread(scope: dict, receive: Callable, send: Callable) -> None:
        await respond(send, b"not that", 415)

    async with serving(unread) as server, server.connect() as client:
        client.writer.write(post(bytes(8 << 20), b"Connection: close"))
        assert (await client.answer()).body == b"not that"
        assert await client.is_closed()


@on_loop
async def test_connections_are_limited() -> None:
    """One too many is told when to come back; a place that frees is given again."""
    async with serving(echo, limited(connections=1)) as server:
        async with server.connect() as first:
            await first.send(GET % b"first")
            await first.answer()
            async with server.connect() as second:
                answer = await second.answer()
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                assert await second.is_closed()
            await first.send(GET % b"again")
            assert (await first.answer()).status == 200
        await until(lambda: not server.guard.connections)
        async with server.connect() as third:
            await third.send(GET % b"third")
            assert (await third.answer()).status == 200


@on_loop
async def test_connections_of_one_address_are_limited() -> None:
    """An address that holds its share does not keep others out."""
    async with serving(echo, limited(connections_per_address=1)) as server, server.connect() as first:
        await first.send(GET % b"first")
        await first.answer()
        async with server.connect() as second:
            assert (await second.answer()).status == 503
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.0.2", 0))
        writer.write(GET % b"neighbour")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


# -- not HTTP ----------------------------------------------------------------------------------------------------

SMUGGLED = {
    "both lengths": post(b"x", b"Transfer-Encoding: chunked"),
    "two lengths": post(b"x", b"Content-Length: 2"),
    "signed length": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: +5\r\n\r\nabcde",
    "hexadecimal length": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 0x5\r\n\r\nabcde",
    "unknown coding": b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: here\n\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: here\r\nX: a\r\n b\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : here\r\n\r\n",
    "control character": b"GET / HTTP/1.1\r\nHost: he\x00re\r\n\r\n",
    "no method": b" / HTTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "chunk size": CHUNKED + b"zz\r\n",
    "huge length": post(b"", length=10**30),
    "bytes in target": b"GET /\xff HTTP/1.1\r\nHost: here\r\n\r\n",
}


SMUGGLED |= {
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: here\r\nHost: here\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: here\r\nHost: there\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/0.9 and more": b"GET /\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: here\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: here\r\n\r\n",
    "RTSP": b"GET / RTSP/1.0\r\nHost: here\r\n\r\n",
    "ICE": b"SOURCE / ICE/1.0\r\nHost: here\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "two spaces": b"GET /  HTTP/1.1\r\nHost: here\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: here\r\n\r\n",
    "asterisk": b"GET * HTTP/1.1\r\nHost: here\r\n\r\n",
    "other scheme": b"GET ftp://here/a HTTP/1.1\r\nHost: here\r\n\r\n",
    "user in target": b"GET http://me@here/a HTTP/1.1\r\nHost: here\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", SMUGGLED.values(), ids=SMUGGLED)
@on_loop
async def test_what_is_not_http_is_refused_and_closed(request_bytes: bytes) -> None:
    """Anything that two parsers could read differently gets 400 in our own words, and no second chance."""
    counted: list[int] = []
    async with (
        serving(echo, refused=lambda status, seconds: counted.append(status)) as server,
        server.connect() as client,
    ):
        await client.send(request_bytes)
        answer = await client.answer()
        assert answer.status == 400
        assert answer.error
        assert len(answer.body) < 200
        assert answer.headers["x-request-id"]
        assert await client.is_closed()
        assert counted == [400]


@on_loop
async def test_a_refusal_waits_for_the_answers_before_it() -> None:
    """Rubbish behind a slow request is not taken for that request's answer."""
    gate = Gate()
    async with serving(gate) as server, server.connect() as client:
        await client.send(GET % b"slow" + GET % b"quick" + b"rubbish\r\n\r\n")
        await gate.entered.wait()
        gate.open.set()
        assert [(await client.answer()).body for _ in range(2)] == [b"/slow", b"/quick"]
        assert (await client.answer()).status == 400
        assert await client.is_closed()


@on_loop
async def test_a_body_too_large_behind_a_slow_request_waits_for_its_turn() -> None:
    """A request that is refused while it is in line takes nothing from the one before it."""
    gate = Gate()
    async with serving(gate, limited(body_bytes=10)) as server, server.connect() as client:
        await client.send(GET % b"slow" + GET % b"quick" + CHUNKED + b"b\r\n" + b"x" * 11)
        await gate.entered.wait()
        gate.open.set()
        assert [(await client.answer()).body for _ in range(2)] == [b"/slow", b"/quick"]
        assert (await client.answer()).status == 413
        assert gate.answered == ["/slow", "/quick"]


HOSTS = [b"", b"a b", b"a/b", b"a:b", b"a:80:80", b"a:65536", b"[::1", b"[zz]", b"a,b", b"me@a", b"\xc3\xa4", b"a?b"]


@pytest.mark.parametrize("host", HOSTS)
@on_loop
async def test_a_malformed_host_is_refused(host: bytes) -> None:
    """In whatever version of HTTP it stands."""
    for version in (b"1.0", b"1.1"):
        async with serving(echo) as server, server.connect() as client:
            await client.send(b"GET / HTTP/%b\r\nHost: %b\r\n\r\n" % (version, host))
            assert (await client.answer()).status == 400
            assert await client.is_closed()


@pytest.mark.parametrize("host", [b"here", b"Here.example.:80", b"127.0.0.1:", b"[::1]:8000", b"a_b-c"])
@on_loop
async def test_a_host_is_a_name_or_an_address(host: bytes) -> None:
    """With or without a port; HTTP/1.0 needs none."""
    async with serving(echo) as server, server.connect() as client:
        await client.send(b"GET /a HTTP/1.1\r\nHost: %b\r\n\r\nGET /b HTTP/1.0\r\n\r\n" % host)
        assert [(await client.answer()).body for _ in range(2)] == [b"/a", b"/b"]


@on_loop
async def test_a_name_that_is_not_ours_is_refused() -> None:
    """In the header or in an absolute target, which goes before the header."""
    hosts = AllowedHosts(("localhost",))
    for request, status in (
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ):
        async with serving(echo, limited(hosts=hosts)) as server, server.connect() as client:
            await client.send(request)
            assert (await client.answer()).status == status, request


@pytest.mark.parametrize(
    ("target", "path"), [(b"http://here/a?b=c", b"/a"), (b"HTTP://here:80/a", b"/a"), (b"http://here", b"/")]
)
@on_loop
async def test_an_absolute_target_is_its_path(target: bytes, path: bytes) -> None:
    """As proxies send it."""
    async with serving(echo) as server, server.connect() as client:
        await client.send(b"GET %b HTTP/1.1\r\nHost: here\r\n\r\n" % target)
        assert (await client.answer()).body == path


NOT_SPOKEN = {
    "gzip and chunks": CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n",
    "two lines": CHUNKED.replace(b"Transfer", b"Transfer-Encoding: gzip\r\nTransfer") + b"0\r\n\r\n",
    "gzip alone": CHUNKED.replace(b"chunked", b"gzip"),
    "connect": b"CONNECT here:443 HTTP/1.1\r\nHost: here:443\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", NOT_SPOKEN.values(), ids=NOT_SPOKEN)
@on_loop
async def test_what_the_protocol_has_and_the_service_has_not_is_501(request_bytes: bytes) -> None:
    """It is HTTP, so it is not called a mistake; the connection ends, since nobody knows where the request does."""
    async with serving(echo) as server, server.connect() as client:
        await client.send(request_bytes)
        assert (await client.answer()).status == 501
        assert await client.is_closed()


@pytest.mark.parametrize("chunks", [b"1;x=%b\r\nx\r\n" % (b"x" * 50) * 2_000, b"1;x=" + b"x" * 100_000])
@on_loop
async def test_chunk_extensions_count(chunks: bytes) -> None:
    """They are bytes like headers, many short ones or one that does not end."""
    async with serving(echo, limited(header_bytes=10_000)) as server, server.connect() as client:
        await client.send(CHUNKED + chunks)
        assert (await client.answer()).status == 431
        assert await client.is_closed()


@on_loop
async def test_tiny_chunks_are_no_extensions() -> None:
    """What chunks need for themselves does not count, however many there are."""
    async with serving(echo, limited(header_bytes=300)) as server, server.connect() as client:
        await client.send(CHUNKED + b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n" + GET % b"next")
        assert len((await client.answer()).body) == 30_000
        assert (await client.answer()).body == b"/next"


@on_loop
async def test_an_upgrade_with_a_body_is_refused() -> None:
    """The parser cannot find the end of such a body, so no guess is made."""
    async with serving(echo) as server, server.connect() as client:
        await client.send(post(b"body", b"Connection: Upgrade", b"Upgrade: h2c"))
        assert (await client.answer()).status == 501


# -- clients that go, a server that ends ---------------------------------------------------------------------------


@on_loop
async def test_a_request_cut_short_reaches_no_answer() -> None:
    """A client that ends in mid-body is told so if it still listens, and the application learns of it."""
    gate = Gate()
    async with serving(gate) as server, server.connect() as client:
        await client.send(post(b"half", length=8))
        client.end()
        assert (await client.answer()).error == "the request ended before it was complete: send all of it"
        await gate.gone.wait()
        assert await client.is_closed()


@on_loop
async def test_the_application_learns_of_a_client_that_vanished_while_another_request_waited() -> None:
    """With pipelined requests it is the one being answered that must hear of it."""
    gone = asyncio.Event()
    entered = asyncio.Event()

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        entered.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with serving(app) as server:
        async with server.connect() as client:
            await client.send(GET % b"one" + GET % b"two")
            await entered.wait()
            client.reset()
        await gone.wait()
        assert len(server.guard.connections) == 0


@pytest.mark.parametrize(
    "sent",
    [b"", GET % b"x", post(b"whole"), post(b"half", length=8), b"rubbish\r\n\r\n"],
    ids=["nothing", "request", "body", "half", "rubbish"],
)
@on_loop
async def test_a_closed_connection_is_freed_at_once(sent: bytes) -> None:
    """Its parts refer to one another: memory that waits for the collector would grow with every client that goes."""
    gc.collect()
    gc.disable()
    try:
        async with serving(echo) as server:
            async with server.connect() as client:
                await client.send(sent)
                await until(lambda: server.guard.connections)
                connection = weakref.ref(next(iter(server.guard.connections)))
                if sent and b"half" not in sent:
                    await client.answer()
            await until(lambda: not (server.server.server_state.tasks or server.guard.connections))
            await asyncio.sleep(0.001)
            assert connection() is None
    finally:
        gc.enable()


@on_loop
async def test_a_stuck_upload_does_not_hold_up_the_end() -> None:
    """SIGTERM with half a body on the line: the client is told, and the server ends."""
    async with serving(echo, limited(drain_seconds=QUICK)) as server, server.connect() as client:
        await client.send(post(b"", b"Expect: 100-continue", length=8))
        await client.answer()
        stopping = asyncio.create_task(server.stop())
        answer = await client.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        await stopping


@on_loop
async def test_a_running_request_is_answered_before_the_end() -> None:
    """SIGTERM lets a request finish and says that the connection ends with it; an idle one just ends."""
    gate = Gate()
    async with serving(gate) as server, server.connect() as client, server.connect() as idle:
        await idle.send(GET % b"once")
        await idle.answer()
        gate.entered.clear()
        await client.send(GET % b"slow")
        await gate.entered.wait()
        stopping = asyncio.create_task(server.stop())
        assert await idle.is_closed()
        gate.open.set()
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await stopping
