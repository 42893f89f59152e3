"""Heads that are known again: by all of their bytes, or by all but an id that is new with every request."""

import json
import random
from pathlib import Path

import pytest

from foldserve.service.lane.known_head import KnownHead, without_ids
from tests.support.lane import OCTETS, ONE, ask, assert_equal, service
from tests.support.wire import Client, on_loop

TRACE = b"00-%032x-%016x-01"
IDS = {
    "traceparent": b"traceparent: " + TRACE,
    "as Go writes it": b"Traceparent: " + TRACE,
    "tracestate": b"tracestate: rojo=%016x,congo=%016x",
    "request id": b"X-Request-ID: %016x-%016x",
    "two ids": b"X-Request-ID: mine-%016x\r\ntraceparent: 00-%032x-00f067aa0ba902b7-01",
    "amazon": b"X-Amzn-Trace-Id: Root=1-67891233-%024x;Parent=%016x;Sampled=1",
}


class Watched:
    """The connections of a service, and how many heads their parsers have read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from foldserve.service.lane.fast_lane import FastLane

        self.read = 0
        read_head = FastLane.read_head

        def counted(lane, *arguments, **options):
            self.read += 1
            return read_head(lane, *arguments, **options)

        monkeypatch.setattr(FastLane, "read_head", counted)


@pytest.mark.parametrize("header", IDS.values(), ids=IDS)
@on_loop
async def test_a_head_with_a_new_id_is_known_and_answered_as_one_that_is_not(
    fashion: Path, header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first of a connection is read; each answer is the application's, with the request's own id."""
    watched, chance = Watched(monkeypatch), random.Random(4)
    async with service(fashion) as server, server.connect() as client:
        for count in range(6):
            sent = header % (chance.getrandbits(60), chance.getrandbits(60))
            if count % 2:  # as clients do that send head and body one after the other
                await send_in_two(client, ask(ONE, OCTETS, sent))
            else:
                await client.send(ask(ONE, OCTETS, sent))
            answer = await client.answer()
            await client.send(ask(ONE, OCTETS, sent, target=b"/predict?"))
            application = await client.answer()
            assert_equal(answer, application)
            if b"X-Request-ID" in sent:
                assert answer.headers["x-request-id"] == application.headers["x-request-id"]
                assert answer.headers["x-request-id"].encode() in sent
        assert watched.read == 1 + 6  # the others are those of /predict?, of which the lane reads the head and no more
        assert len(server.seen) == 6


@on_loop
async def test_heads_of_many_lengths_are_read_once_each_whatever_their_ids(
    fashion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON is of another length each time; what one connection has sent is known on others, under every id."""
    watched = Watched(monkeypatch)
    rows = [json.dumps({"instances": [[pixel] * 784]}).encode() for pixel in (7, 77, 177)]
    async with service(fashion) as server:
        for turn in range(3):
            async with server.connect() as client:
                for count in range(9):
                    sent = IDS["two ids"] % (turn * 9 + count, 7)
                    await client.send(ask(rows[count % 3], b"application/json", sent))
                    answer = await client.answer()
                    assert answer.status == 200
                    assert answer.headers["x-request-id"] == f"mine-{turn * 9 + count:016x}"
                    assert answer.headers["traceparent"].split("-")[1] == f"{7:032x}"
        assert watched.read == 3 + 2  # each length once, and the first of each later connection
        assert len(server.seen) == 0


async def send_in_two(client: Client, request: bytes) -> None:
    """Send a head, and its body once it has gone."""
    head, _, body = request.partition(b"\r\n\r\n")
    await client.send(head + b"\r\n\r\n")
    await client.send(body)


@on_loop
async def test_nothing_but_an_id_may_differ(fashion: Path) -> None:
    """Other media types, lengths, headers and lines in the place of the id are read as if nothing were known."""
    first = ask(ONE, OCTETS, b"traceparent: " + TRACE % (1, 2), b"X-Deadline-Ms: 9000")
    later = {
        first.replace(b"octet-stream", b"octet-strean"): 415,
        first.replace(b": 9000", b": 900x"): 400,
        first.replace(b"Length: 784", b"Length: 783").removesuffix(ONE[-1:]): 400,
        first.replace(TRACE % (1, 2), b"00-%032x\r\nExpect: nothing" % 1): 200,
        first.replace(b"Host: here", b"Host: evil"): 400,
        first.replace(b"traceparent: ", b"tracepalent: "): 200,
    }
    async with service(fashion) as server:
        for request, status in later.items():
            answers = []
            for known in (True, False):
                async with server.connect() as client:
                    if known:
                        await client.send(first)
                        assert (await client.answer()).status == 200
                    await client.send(request)
                    answers.append(await client.answer())
            assert (answers[0].status, answers[0].body) == (answers[1].status, answers[1].body)
            assert answers[0].status == status, request


def test_an_id_ends_no_line() -> None:
    """Whatever stands in its place, a head is known only where the parser would have cut it in the same way."""
    raw = b"POST / HTTP/1.1\r\nHost: x\r\ntraceparent: abcdefgh\r\nContent-Length: 5\r\n\r\n"
    known = KnownHead(raw, head=None)
    assert known.begins(raw)
    assert known.begins(raw.replace(b"abcdefgh", b"ABC-1234") + b"body!")
    for byte in {*range(256)} - {*b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._:-=;,/@*+"}:
        assert not known.begins(raw.replace(b"abcdefgh", b"abc%cefgh" % byte))
    assert not known.begins(raw.replace(b"abcdefgh", b"abcdefghi"))
    assert not known.begins(raw[:-1])


def test_two_heads_are_one_without_their_ids_only_where_nothing_else_differs() -> None:
    """Length, names and all other bytes are part of it; a zero byte of the client's stands for no id."""
    raw = b"POST / HTTP/1.1\r\nx-request-id: a\r\ntraceparent: b\r\nContent-Length: 5\r\n\r\n"
    assert without_ids(raw) == without_ids(raw.replace(b": a", b": other").replace(b": b", b": 00-1"))
    for old, new in ((b"5", b"6"), (b"x-r", b"X-r"), (b": a", b":a"), (b": a", b": \0"), (b"parent", b"parents")):
        assert without_ids(raw.replace(old, new)) != without_ids(raw)
    assert without_ids(raw.replace(b"x-request-id: a\r\ntraceparent: b\r\n", b"")) is None


def test_what_is_read_of_a_head_is_no_id() -> None:
    """A header that says how to read or answer a request has to be the same."""
    framing = ("Content-Length", "Content-Type", "Host", "Expect", "Inference-Header-Content-Length", "Connection")
    for name in (*framing, "X-Deadline-Ms", "X-API-Key", "Authorization", "X-Forwarded-For", "Accept-Encoding"):
        raw = b"POST / HTTP/1.1\r\n%b: 123\r\n\r\n" % name.encode()
        assert KnownHead(raw, head=None).is_exact
