"""Usual calls of gRPC between their frames and the batcher: the same answers as by the library, and no harm to it."""

import struct
import time

import httpx
import pytest

from tests.support import artifacts

grpc = pytest.importorskip("grpc", reason="needs the extra grpc")

from foldserve.service.keys import new_key  # noqa: E402
from foldserve.service.v2.rpc.frames import (  # noqa: E402
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    literal,
    reset,
    window_update,
)
from tests.support.grpc_calls import MESSAGES, request  # noqa: E402
from tests.support.grpc_frames import BLOCK, OPENING, PREFACE, FrameClient, infer_frames  # noqa: E402
from tests.support.grpc_service import INFER, Code, call, channel_to, running  # noqa: E402

FINAL = "triton_enable_empty_final_response"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("calls")
    artifacts.publish_classifier(root / "models", version=1, seed=1)
    artifacts.publish_classifier(root / "models", version=2)
    artifacts.publish_two_inputs(root / "models")
    return root


@pytest.fixture(scope="module")
def service(folder):
    with running(folder) as service:
        yield service


@pytest.fixture(scope="module")
def plain(folder):
    """The same without a lane: where each call is logged, the library has them all."""
    with running(folder, access_log_rate=1e9) as service:
        yield service


def message(rows=1, seed=3, **members):
    return request(inputs={"image": artifacts.images(rows, seed=seed)}, **members).SerializeToString()


def taken(service):
    """The highest stream that a lane has taken, of all connections."""
    connections = service.app.state.grpc._gate.guard.connections
    return max((connection.lane.last_stream for connection in connections if connection.lane), default=0)


def call_until_taken(service, **options):
    """Make a few calls one after the other; how many. One that arrives in pieces at bad moments is not taken."""
    for count in range(1, 201):
        assert call(service.channel, message(), **options)[0] is Code.OK
        if taken(service):
            return count
    raise AssertionError("no call was taken")


def credit_in(frames):
    """Bytes that a client may send on a connection in all."""
    return 65_535 + sum(int.from_bytes(it[3]) for it in frames if it[0] == WINDOW_UPDATE and not it[2])


def answer_of(channel, data, **options):
    """Status, sentence, names of trailers and the bytes of an answer."""
    infer = channel.unary_unary(INFER, bytes, bytes)
    try:
        answer, done = infer.with_call(data, timeout=20, **options)
    except grpc.RpcError as err:
        answer, done = b"", err
    trailers = dict(done.trailing_metadata())
    kept = {name: trailers.get(name) for name in ("x-model-version", "retry-after")}
    return done.code(), done.details(), kept, set(trailers), answer


def client_of(service, opening=OPENING, room=1_000_000):
    """A bare client whose connection has so much more room for answers than the least."""
    return FrameClient(service.app.state.grpc.port, opening + (window_update(0, room) if room else b""))


@pytest.mark.parametrize(
    "data",
    [
        message(), message(3), message(8), message(9), message(40), message(id="mine"), message(2, model_version="1"),
        message(outputs=[{"name": "class_id"}, {"name": "probabilities"}]), message(outputs=[{"name": "logits"}] * 2),
        message(outputs=[{"name": "other"}]), message(model="none"), message(model_version="7"),
        message() + b"\x3a\x00",
        message(outputs=[{"name": "probabilities", "parameters": {"classification": {"int64_param": 2}}}]),
        message(parameters={"timeout": {"int64_param": 5_000_000}}), message(form="typed"), b"\xff", b"",
        message(parameters={"binary_data_output": {"bool_param": False}}), message()[:-1], message() + b"x",
        message(parameters={FINAL: {"bool_param": True}}), message(parameters={FINAL: {"int64_param": 1}}),
        message(parameters={FINAL: {"bool_param": True}, "sequence_id": {"int64_param": 1}}),
        request("sum", {"a": artifacts.images(1), "b": artifacts.images(1)}).SerializeToString(),
    ],
)  # fmt: skip
def test_each_call_is_answered_as_the_library_answers_it(service, plain, data):
    """The same bytes, status, sentence and trailers, the first time and once everything about the call is known."""
    expected = answer_of(plain.channel, data)
    with channel_to(service.app.state.grpc.port) as channel:
        for _ in range(3):
            assert call(channel, message())[0] is Code.OK
        for _ in range(3):
            code, details, kept, names, answer = answer_of(channel, data)
            assert (code, kept, answer) == (expected[0], expected[2], expected[4])
            assert details == expected[1]
            assert names >= expected[3] - {"grpc-message"}
    assert taken(plain) == 0


def test_usual_calls_are_taken_and_counted(folder):
    """After two calls that the library reads, it sees none of those that are like them; the metrics count them all."""
    with running(folder) as service:
        count = call_until_taken(service)
        text = httpx.get(f"{service.url}/metrics").text
        assert f'foldserve_requests_total{{method="POST",route="{INFER}",status="200"}} {count}.0' in text


def test_calls_of_perf_analyzer_are_usual(folder):
    """It says with each of them that it could do with an empty answer at the end, which changes none."""
    with running(folder) as service:
        data = message(parameters={FINAL: {"bool_param": True}})
        assert any(call(service.channel, data)[0] is Code.OK and taken(service) for _ in range(200))


def test_answers_in_company_are_those_alone(service):
    """Calls that share batches, on the lane and beside HTTP, get the bytes that each gets alone."""
    data = [message(1 + seed % 3, seed=seed) for seed in range(40)]
    with channel_to(service.app.state.grpc.port) as channel:
        infer = channel.unary_unary(INFER, bytes, bytes)
        alone = [infer(each) for each in data]
        for _ in range(3):
            assert [future.result() for future in [infer.future(each) for each in data]] == alone


@pytest.mark.parametrize("size", [1, 3, 8, 50, 799, 10_000])
def test_calls_are_the_same_however_they_arrive(service, size):
    """Frames cut anywhere, messages in several frames: every call has its answer, on the lane or off it."""
    streams = range(1, 13, 2)
    data = b"".join(infer_frames(stream, message(seed=stream), piece=500) for stream in streams)
    with client_of(service) as client:
        for start in range(0, len(data), size):
            client.send(data[start : start + size])
        for stream in streams:
            assert MESSAGES["ModelInferResponse"].FromString(client.answer(stream)).model_version == "2"


def test_a_client_that_has_no_room_gets_no_more_than_it_allows(service):
    """Answers of lane and library together stay within the window of the connection, and go on once it opens."""
    count, data = 200, message(id="i" * 600)  # which the answers repeat: far more than 65,535 bytes
    with client_of(service, room=0) as client:
        for stream in range(1, 2 * count, 2):
            sent = stream // 2 * (len(data) + 5)
            client.read_until(lambda frames, sent=sent: credit_in(frames) - sent > 2_000)
            client.send(infer_frames(stream, data))
            if stream < 7:
                client.answer(stream)
        client.send(window_update(0, 2_000))
        client.read_until(lambda frames: sum(len(it[3]) for it in frames if it[0] == DATA) > 60_000)
        client.send(frame(PING, 0, 0, b"12345678"))
        client.read_until(lambda frames: any(it[0] == PING for it in frames))
        assert sum(len(it[3]) for it in client.frames if it[0] == DATA) <= 65_535 + 2_000
        client.send(window_update(0, 1_000_000))
        for stream in range(1, 2 * count, 2):
            assert client.answer(stream)


def test_credit_for_what_the_lane_reads_is_given_back(service):
    """A client may send for ever: its window for the connection opens by what it has sent."""
    with client_of(service) as client:
        sent = 0
        for stream in range(1, 401, 2):
            data = infer_frames(stream, message())
            sent += len(data) - len(BLOCK) - 18
            client.send(data)
            client.answer(stream)
            client.send(window_update(0, 1_000))
        assert sent > 150_000
        assert sent + 65_535 - 8_192 - 1_000 <= credit_in(client.frames) <= sent + 2 * 65_535


def test_a_call_that_is_left_has_no_answer(service):
    """Its reset arrives with it: nothing is said on its stream, and the next call is answered."""
    with client_of(service) as client:
        for stream in (1, 3, 5):
            client.ask(stream, message())
        client.send(infer_frames(7, message()) + reset(7, 8) + infer_frames(9, message()))
        assert client.answer(9)
        assert not [it for it in client.frames if it[2] == 7]


def test_a_stream_is_used_once(service):
    """The library does not know of the streams of the lane, so the lane sees to it that none begins again."""
    with client_of(service) as client:
        for stream in (1, 3, 5, 7):
            client.ask(stream, message())
        before = [it for it in client.frames if it[2] == 7]
        client.send(infer_frames(7, message()))
        while client.receive():
            pass
        assert [it for it in client.frames if it[2] == 7] == before


def test_pings_are_answered_with_calls_and_without(service):
    """Those that a client sends because of answers would be too many for the library, which did not give them."""
    with client_of(service) as client:
        for stream in range(1, 41, 2):
            client.ask(stream, message())
            client.send(frame(PING, 0, 0, stream.to_bytes(8)))
            client.read_until(lambda frames, stream=stream: (PING, 1, 0, stream.to_bytes(8)) in frames)
        assert not [it for it in client.frames if it[0] == GOAWAY]


def test_a_connection_that_ends_names_the_calls_of_the_lane(folder):
    """A client takes calls behind the last stream that is named for not worked on, and sends them again."""
    with running(folder, keep_alive_seconds=1) as service, client_of(service) as client:
        for stream in (1, 3, 5, 7):
            client.ask(stream, message())
        while client.receive():
            for kind, flags, _, payload in client.frames:
                if kind == PING and not flags:
                    client.send(frame(PING, 1, 0, payload))
            client.frames = [it for it in client.frames if it[0] != PING]
        named = [int.from_bytes(it[3][:4]) for it in client.frames if it[0] == GOAWAY]
        assert named
        assert min(named) >= 7


@pytest.mark.parametrize(
    "opening",
    [
        PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 100)),  # too small a window for an answer
        OPENING + frame(HEADERS, 0, 1, b"") + frame(9, END_HEADERS, 1, BLOCK),  # headers that are continued
        OPENING + frame(HEADERS, END_HEADERS | 0x20, 1, b"\x00\x00\x00\x00\x10" + BLOCK),  # with a priority
    ],
)
def test_connections_that_are_not_usual_are_the_librarys(service, opening):
    """Where the lane cannot follow, it takes nothing."""
    before = taken(service)
    with client_of(service, opening) as client:
        for stream in range(3, 11, 2):
            client.send(infer_frames(stream, message()) + window_update(stream, 1_000))
            assert client.answer(stream)
        assert taken(service) == before


def test_headers_that_change_the_table_change_what_is_known(service):
    """The same bytes mean something else once the table has moved; here another path, which has another answer."""
    other = INFER.replace("ModelInfer", "ServerLive").encode()
    remembered = [
        b"\x40" + literal(field)[1:] for field in ((b":path", other), (b"a", b"1"), (b":path", INFER.encode()))
    ]
    block = BLOCK.replace(literal((b":path", INFER.encode())), b"")
    newest = b"\xbe"  # the newest entry of the table, 62
    with client_of(service) as client:
        client.send(infer_frames(1, b"", remembered[0] + block))
        client.answer(1)
        client.send(infer_frames(3, message(), remembered[2] + block))
        for stream in (5, 7, 9):
            client.send(infer_frames(stream, message(), newest + block))
            assert len(client.answer(stream)) > 100
        client.send(infer_frames(11, b"", remembered[0] + block))
        for stream in (13, 15):
            client.send(infer_frames(stream, b"", newest + block))
            assert client.answer(stream) == b"\x08\x01"  # live


def test_a_key_that_is_taken_away_is_refused_at_once(folder):
    """What a call's metadata mean is known only as long as the keys are the same."""
    with running(folder, keys=True) as service:
        call_until_taken(service, metadata=service.operator)
        assert call(service.channel, message())[0] is Code.UNAUTHENTICATED
        keys = service.app.state.settings.keys_file
        keys.write_text(f"{new_key('other', ['infer'])[1]}\n")
        service.app.state.access.reload()
        ends = time.monotonic() + 20
        while call(service.channel, message(), metadata=service.operator)[0] is Code.OK:
            assert time.monotonic() < ends
        assert call(service.channel, message(), metadata=service.operator)[0] is Code.UNAUTHENTICATED


def test_a_key_has_its_rate_on_the_lane_too(folder):
    """Calls spend of it one by one; those beyond it hear when to come back, under their own route."""
    with running(folder, keys=True, key_rate=10) as service:
        codes = [answer_of(service.channel, message(), metadata=service.operator) for _ in range(40)]
        refused = [answer for answer in codes if answer[0] is Code.RESOURCE_EXHAUSTED]
        assert refused
        assert all(answer[2]["retry-after"] == "1" for answer in refused)
        assert codes[0][0] is Code.OK
        assert f'route="{INFER}",status="429"' in service.app.state.metrics.exposition().decode()


def test_a_deadline_that_is_known_holds(folder):
    """Metadata that say a deadline say it on the lane too, and a deadline that is none is refused each time."""
    with running(folder) as service:
        for text, code in (("20000", Code.OK), ("soon", Code.INVALID_ARGUMENT)):
            for _ in range(4):
                assert call(service.channel, message(), metadata=(("x-deadline-ms", text),))[0] is code


def test_the_clients_ids_come_back(service):
    """Its request id and its place in a trace stand in the trailers of answers, on the lane as before it."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = (("x-request-id", "mine-7"), ("traceparent", trace))
    with channel_to(service.app.state.grpc.port) as channel:
        for _ in range(5):
            trailers = call(channel, message(), metadata=metadata)[2]
            assert (trailers["x-request-id"], trailers["traceparent"]) == ("mine-7", trace)


def test_a_service_that_is_not_ready_says_so(folder):
    """What was known does not outlive ready, nor the version that answered."""
    with running(folder) as service:
        for _ in range(4):
            assert answer_of(service.channel, message())[2]["x-model-version"] == "2"
        registry = service.app.state.registry
        registry.doubt("fashion", "for a test")
        assert call(service.channel, message())[0] is Code.UNAVAILABLE
        registry.doubt("fashion", None)
        assert call(service.channel, message())[0] is Code.OK


def test_messages_have_the_budget_of_all_bodies(folder):
    """A message that is over it is refused on the lane as elsewhere."""
    with running(folder, max_buffered_bytes=2_000) as service:
        for _ in range(4):
            assert call(service.channel, message())[0] is Code.OK
            assert call(service.channel, message(5))[0] is Code.UNAVAILABLE


def test_resets_that_come_with_calls_end_nothing_else(service):
    """A client that opens and leaves calls as fast as it can costs others nothing but their share of the time."""
    with client_of(service) as client:
        for stream in (1, 3, 5):
            client.ask(stream, message())
        for stream in range(7, 2_007, 2):
            client.send(infer_frames(stream, message()) + reset(stream, 8))
        assert client.ask(2_007, message())
        assert not [it for it in client.frames if it[0] in (GOAWAY, RST_STREAM)]
    assert call(service.channel, message())[0] is Code.OK


@pytest.mark.parametrize("sizes", [[0], [2**31 - 1] * 3, [2**32 - 1] * 2], ids=["not at all", "too far", "with a bit"])
def test_windows_that_open_wrongly_within_a_call_are_the_librarys(service, caplog, sizes):
    """It ends the call, the connection or nothing; the lane had failed on the sum of what they opened by."""
    updates = b"".join(window_update(0, size) for size in sizes)
    with client_of(service) as client:
        for stream in (1, 3, 5):
            client.ask(stream, message())
        calls = [infer_frames(stream, message()) for stream in (7, 9)]
        start = 9 + len(BLOCK)
        client.send(b"".join(call[:start] + updates + call[start:] for call in calls))
        while not any(it[0] == GOAWAY or (it[1] & END_STREAM and it[2] == 9) for it in client.frames):
            if not client.receive():
                break
    assert call(service.channel, message())[0] is Code.OK
    assert not [record for record in caplog.records if record.exc_info]
