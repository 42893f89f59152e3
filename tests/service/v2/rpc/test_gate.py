"""Connections of gRPC under limits, asked with the library and with bare sockets."""

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest

grpc = pytest.importorskip("grpc", reason="needs the extra grpc")

from foldserve.service.bodies.budget import BodyBudget  # noqa: E402
from foldserve.service.error_answers import ErrorLog  # noqa: E402
from foldserve.service.settings import Settings  # noqa: E402
from foldserve.service.transport.guard import Guard  # noqa: E402
from foldserve.service.transport.limits import connection_limits  # noqa: E402
from foldserve.service.v2.rpc.descriptors import INFERENCE  # noqa: E402
from foldserve.service.v2.rpc.frames import (  # noqa: E402
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    FrameReader,
    frame,
    literal,
)  # fmt: skip
from foldserve.service.v2.rpc.gate import Gate  # noqa: E402
from tests.support import artifacts, processes  # noqa: E402
from tests.support.grpc_calls import request  # noqa: E402
from tests.support.grpc_service import STREAM, Code, call, channel_to, running  # noqa: E402

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OPENING = PREFACE + frame(SETTINGS, 0, 0, b"")
_SERVICE = b"/inference.GRPCInferenceService/"


def opened(method: bytes) -> bytes:
    """The headers of a call on stream 1."""
    return frame(HEADERS, END_HEADERS, 1, b"".join(
        b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", _SERVICE + method), (b":authority", b"h"),
            (bytes((0x74, 0x65)), b"trailers"),
            (b"content-type", b"application/grpc"),
        )
    ))  # fmt: skip


CALL = opened(b"ModelInfer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("gate")
    artifacts.publish_classifier(root / "models", version=2)
    return root


def connect(service, data=b""):
    """A bare connection that has sent this."""
    client = socket.create_connection(("127.0.0.1", service.app.state.grpc.port), timeout=20)
    client.sendall(data)
    return client


def read_all(client):
    """Everything until the service closes the connection."""
    received = b""
    try:
        while data := client.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received


def kinds_in(data):
    return [piece.kind for piece in FrameReader().read(data)]


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE, OPENING + CALL[:20], OPENING + CALL[:5]])
def test_connections_that_say_nothing_whole_are_closed(folder, sent):
    """Silent, within the preface, after it, within a call's headers: each has the time of HTTP's headers."""
    with running(folder, header_seconds=0.3) as service, connect(service, sent) as client:
        started = time.monotonic()
        read_all(client)
        assert 0.2 < time.monotonic() - started < 10
        assert call(service.channel, request().SerializeToString())[0] is Code.OK


def test_a_call_that_ended_before_its_message_was_whole_keeps_no_deadline(folder, caplog):
    """Of no method that is known, with half a message: those who came after it are still given up in their time."""
    half = frame(DATA, 0, 1, b"\0" + (1000).to_bytes(4) + bytes(10))
    with (
        running(folder, header_seconds=0.3, body_seconds=0.3) as service,
        connect(service, OPENING + opened(b"Nothing") + half) as ended,
        connect(service) as silent,
    ):
        received = b""
        while RST_STREAM not in kinds_in(received):
            received += ended.recv(65_536)
        read_all(silent)
        with connect(service) as another:
            read_all(another)
        (left,) = service.app.state.grpc._gate.guard.connections
        assert left._arriving == {}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_headers_that_are_never_complete_are_closed(folder):
    """Frames that go on and on with one call's headers have no more time."""
    headers = frame(HEADERS, 0, 1, b"\x00\x01a\x01b")
    with running(folder, header_seconds=0.3) as service, connect(service, OPENING + headers) as client:
        started = time.monotonic()
        read_all(client)
        assert time.monotonic() - started < 10


def test_idle_connections_are_closed(folder):
    """A client that has connected and makes no call is told to go."""
    with running(folder, keep_alive_seconds=1) as service, connect(service, OPENING) as client:
        assert GOAWAY in kinds_in(read_all(client))


def test_connections_have_a_limit_and_one_more_hears_why(folder):
    """The third is turned away in words, and counted; when one goes there is room again."""
    with running(folder, grpc_max_connections=2) as service:
        assert call(service.channel, request().SerializeToString())[0] is Code.OK
        with connect(service, OPENING), connect(service, OPENING) as third:
            turned_away = read_all(third)
            assert b"too many are open" in turned_away
            assert kinds_in(turned_away) == [SETTINGS, GOAWAY]
        with channel_to(service.app.state.grpc.port) as channel:
            assert call(channel, request().SerializeToString(), wait_for_ready=True)[0] is Code.OK
        counted = 'foldserve_requests_total{method="other",route="gRPC",status="503"}'
        assert counted in httpx.get(f"{service.url}/metrics").text


def test_connections_of_one_address_have_a_limit(folder):
    """One client cannot have them all."""
    with running(folder, grpc_max_connections_per_address=1) as service:
        assert call(service.channel, request().SerializeToString())[0] is Code.OK
        with connect(service, OPENING) as second:
            assert b"too many are open" in read_all(second)


def test_a_message_that_is_too_large_is_refused_by_its_length(folder):
    """Nothing of it has to arrive: five bytes say how long it will be."""
    with running(folder) as service:
        length = frame(DATA, 0, 1, b"\x00" + (2**31).to_bytes(4))
        with connect(service, OPENING + CALL + length) as client:
            received = b""
            while b"expected at most" not in received:
                received += client.recv(65_536)
            assert b"2147483648" in received


def test_a_message_that_stops_ends_its_call_and_not_its_connection(folder):
    """Half a message has its time; another call of the same connection is answered meanwhile and afterwards."""
    with running(folder, body_seconds=0.5) as service, connect(service, OPENING + CALL) as client:
        client.sendall(frame(DATA, 0, 1, b"\x00\x00\x00\x10\x00" + b"x" * 100))
        received = b""
        while b"message" not in received:
            received += client.recv(65_536)
        assert b"grpc-status\x014" in received  # DEADLINE_EXCEEDED
        second = frame(HEADERS, END_HEADERS, 3, CALL[9:])
        client.sendall(second + frame(DATA, 1, 3, b"\x00\x00\x00\x00\x03abc"))
        while b"not in protobuf" not in received:
            received += client.recv(65_536)


def test_forty_large_messages_at_once_hold_no_more_than_the_budget(folder):
    """Most are refused while they arrive, some are read; the service answers afterwards and holds nothing."""
    budget, size = 64_000_000, 16_000_000
    data = request("echo").SerializeToString() + b":" + b"\x80\xc8\xd0\x07" + bytes(size)
    with running(folder, max_buffered_bytes=budget) as service:
        held, codes, stop = [0], [], threading.Event()

        def watch():
            while not stop.wait(0.005):
                held.append(service.app.state.body_budget.held_bytes)

        def ask():
            with channel_to(service.app.state.grpc.port) as channel:
                codes.append(call(channel, data)[0])

        threads = [threading.Thread(target=ask) for _ in range(40)]
        watcher = threading.Thread(target=watch)
        for thread in (watcher, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        watcher.join()
        assert set(codes) <= {Code.UNAVAILABLE, Code.INVALID_ARGUMENT, Code.NOT_FOUND}
        assert Code.UNAVAILABLE in codes
        assert 0 < max(held) <= budget
        assert call(service.channel, request().SerializeToString())[0] is Code.OK
        assert service.app.state.body_budget.held_bytes == 0


def test_a_stream_that_is_silent_after_its_answer_holds_nothing(folder):
    """Bytes of an answered message are free again although the stream stays open."""
    with running(folder) as service:
        ended = threading.Event()

        def messages():
            yield request(inputs={"image": artifacts.images(1_500)}).SerializeToString()
            ended.wait()

        stream = service.channel.stream_stream(STREAM, bytes, bytes)(messages(), timeout=20)
        next(stream)
        assert service.app.state.body_budget.held_bytes == 0
        ended.set()


def test_messages_of_all_sizes_pass_the_gate_unchanged(folder):
    """Long and short messages of one stream come out in their order, compressed ones too."""
    rows = [1, 300, 2, 1_500, 1]
    with running(folder) as service:
        messages = [request(inputs={"image": artifacts.images(count)}, id=str(count)) for count in rows]
        kind = INFERENCE.messages["ModelStreamInferResponse"]
        stream = service.channel.stream_stream(STREAM, lambda m: m.SerializeToString(), kind.FromString)
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            answers = list(stream(iter(messages), compression=compression))
            assert [answer.error_message for answer in answers] == [""] * len(rows)
            assert [answer.infer_response.outputs[0].shape[0] for answer in answers] == rows


def test_a_compressed_message_may_not_become_larger_than_a_body(folder):
    """Kilobytes that would become megabytes are refused before they do."""
    with running(folder, max_body_bytes=1_000_000) as service:
        data = request().SerializeToString() + b":" + b"\x80\xc8\xd0\x07" + bytes(16_000_000)
        code, _, _ = call(service.channel, data, compression=grpc.Compression.Gzip)
        assert code is Code.RESOURCE_EXHAUSTED


def test_the_address_of_a_client_is_known_behind_the_gate(folder, caplog):
    """What is logged of a wrong key names the client and not our own socket."""
    caplog.set_level("INFO")
    with running(folder, keys=True) as service:
        assert call(service.channel, b"", metadata=(("x-api-key", "wrong"),))[0] is Code.UNAUTHENTICATED
    assert "127.0.0.1" in [getattr(record, "address", None) for record in caplog.records]


def test_a_client_without_calls_does_not_hold_up_the_end(folder):
    """It hears that the service ends and has a moment to go; one that stays is left."""
    with running(folder, drain_seconds=60) as service:
        client = connect(service, OPENING)
        assert client.recv(65_536)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert GOAWAY in kinds_in(read_all(client))
    client.close()


def test_what_a_client_says_in_its_farewell_is_no_line_of_the_log(folder):
    """The library of gRPC writes it to standard error, where a line break let anybody write an event of his own."""
    forged = b'\n{"event": "audit", "action": "promote"}\n'
    flags = ("--models-dir", str(folder / "models"), "--grpc-port", "0")
    with processes.started(*flags) as (process, _):
        port = next(event["port"] for event in process.events if event["event"] == "gRPC listens")
        farewell = frame(GOAWAY, 0, 0, bytes(4) + (99).to_bytes(4) + forged)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(OPENING + farewell + frame(PING, 0, 0, bytes(8)))
            received = b""
            while PING not in kinds_in(received):  # then it has read the farewell too
                received += client.recv(65_536)
        process.terminate()
        events = [json.loads(line)["event"] for line in process.stderr]
    assert "audit" not in events
    assert events[-1] == "stopped"


@pytest.mark.parametrize("status", [b"1", b"5"])
def test_a_call_that_the_library_never_took_hears_that_the_service_leaves(tmp_path, status):
    """The library ends those with CANCELLED, after which a client does not ask another service; other ends stay."""

    async def answer() -> bytes:
        library = await asyncio.start_unix_server(ended_at_once, gate.inside)
        listener = socket.create_server(("127.0.0.1", 0))
        await gate.open(listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(OPENING + CALL)
        asked = await reader.readexactly(len(opening))
        gate.close()
        is_leaving.set()
        found = asked + await asyncio.wait_for(reader.read(), 20)
        writer.close()
        gate.end()
        library.close()
        return found

    async def ended_at_once(reader, writer) -> None:
        await reader.readexactly(len(OPENING + CALL))
        writer.write(opening)
        await is_leaving.wait()
        fields = ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", status))
        block = b"".join(map(literal, fields))
        writer.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, block) + frame(RST_STREAM, 0, 1, bytes(4)))
        writer.close()

    opening = frame(SETTINGS, 0, 0, b"")
    is_leaving = asyncio.Event()
    guard = Guard(connection_limits(Settings()), lambda *_: None)
    gate = Gate(tmp_path, guard, BodyBudget(1_000_000), 1_000_000, ErrorLog())
    pieces = [piece for piece in FrameReader().read(asyncio.run(answer())) if piece.kind == HEADERS]
    stated = b"14" if status == b"1" else status
    assert [literal((b"grpc-status", stated)) in bytes(piece.payload) for piece in pieces] == [True]
