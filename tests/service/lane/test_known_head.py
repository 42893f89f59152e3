"""Heads that are known again: by all of their bytes, or by all but an id that is new with every request."""

import json
import random
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import httptools
import pytest

from foldserve.service.lane.known_head import KnownHead, KnownHeads
from foldserve.service.request_context import Ids, read_traceparent, safe_request_id
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
        assert watched.read == 3  # each length once, on whichever connection
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


class Parsed:
    """What a parser that is not ours reads in a head."""

    def __init__(self, raw: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_whole = False
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(raw)
        except httptools.HttpParserError:
            self.is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.is_whole = True

    @property
    def ids(self) -> Ids:
        by_name = {name.lower(): value for name, value in self.headers}
        return safe_request_id(by_name.get(b"x-request-id")), read_traceparent(by_name.get(b"traceparent"))


def remembered(*heads: bytes) -> KnownHeads:
    """Know some heads; each says no more than its own bytes."""
    known = KnownHeads()
    for raw in heads:
        known.add(raw, SimpleNamespace(ids=Parsed(raw).ids, raw=raw))  # type: ignore[arg-type]
    return known


LINES = (b"POST / HTTP/1.1", b"Host: x", b"X-Request-ID: mine-1", b"b3: 0", b"traceparent: " + TRACE % (7, 8))
RAW = b"\r\n".join([*LINES, b"Content-Length: 5", b"", b""])
WITHOUT = RAW.replace(b"b3", b"b4").replace(b"X-Request-ID", b"X-Request-IE").replace(b"traceparent", b"tracepalent")


def test_a_head_that_is_known_again_is_what_a_parser_reads() -> None:
    """Every byte in every place, and bytes more or less: what is found differs in ids alone, read as its own."""
    known, first, found = remembered(RAW, WITHOUT), Parsed(RAW), 0
    changed = [RAW[:at] + bytes((byte,)) + RAW[at + 1 :] for at in range(len(RAW)) for byte in range(256)]
    changed += [RAW[:at] + more + RAW[at + less :] for at in range(len(RAW)) for more, less in ((b"", 1), (b"0", 0))]
    for raw in changed:
        if (again := known.find(raw)) is None:
            continue
        found += 1
        parsed = Parsed(raw)
        assert parsed.is_whole
        assert again[1] == parsed.ids
        assert again[0].head.raw == RAW
        differing = [one for one, other in zip(parsed.headers, first.headers, strict=True) if one != other]
        assert {name for name, _ in differing} <= {b"X-Request-ID", b"b3", b"traceparent"}
    places = len(b"mine-1" + b"0" + TRACE % (7, 8))
    characters = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._:-=;,/@*+"
    assert found == places * len(characters) + len(RAW) - places  # in all other places the byte that was there


def test_the_bytes_behind_a_prefix_are_looked_at_as_a_whole_head_is() -> None:
    """One connection's next request is compared with the one before it; no other head passes there either."""
    known = remembered(RAW)
    usual = known.find(RAW)[0]  # type: ignore[index]
    assert RAW.startswith(usual.prefix)
    for at in range(len(usual.prefix), len(RAW)):
        for byte in range(256):
            raw = RAW[:at] + bytes((byte,)) + RAW[at + 1 :]
            again = known.find(raw)
            assert usual.read(raw + b"body!") == (None if again is None else again[1])


def test_heads_of_one_length_that_differ_in_the_places_of_their_ids_are_told_apart() -> None:
    """A zero byte that a client writes stands for no id, and the order of headers is part of a head."""
    lines = [b"X-Request-ID: abcd", b"traceparent: " + TRACE % (1, 2), b"X-Other: abcdefghi"]
    heads = [
        b"\r\n".join([b"POST / HTTP/1.1", *order, b"Content-Length: 5", b"", b""]) for order in permutations(lines)
    ][:4]
    known = remembered(*heads)
    for raw in heads:
        new = raw.replace(b"abcd\r", b"efgh\r")
        assert known.find(new)[0].head.raw == raw  # type: ignore[index]
        assert known.find(new)[1] == (b"efgh", TRACE % (1, 2))  # type: ignore[index]
        assert known.find(raw.replace(b"abcd\r", b"\0\0\0\0\r")) is None
        assert known.find(raw.replace(TRACE % (1, 2), bytes(55))) is None
    zeros = heads[0].replace(TRACE % (1, 2), bytes(55))
    both = remembered(heads[0], zeros)
    assert both.find(heads[0])[0].head.raw == heads[0]  # type: ignore[index]
    assert both.find(zeros) is None


def test_what_is_read_of_a_head_is_no_id() -> None:
    """A header that says how to read or answer a request has to be the same."""
    framing = ("Content-Length", "Content-Type", "Host", "Expect", "Inference-Header-Content-Length", "Connection")
    for name in (*framing, "X-Deadline-Ms", "X-API-Key", "Authorization", "X-Forwarded-For", "Accept-Encoding"):
        raw = b"POST / HTTP/1.1\r\n%b: 123\r\n\r\n" % name.encode()
        assert KnownHead(raw, head=None).places is None
