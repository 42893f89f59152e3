"""gRPC is a door like HTTP: what a call may hold and how long it may take, over a real connection."""

import functools
import gc
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from foldserve.service.keys import new_key
from tests.support import artifacts

grpc = pytest.importorskip("grpc", reason="needs the extra grpc")

from foldserve.service.v2.rpc.descriptors import INFERENCE  # noqa: E402
from tests.support.grpc_calls import request  # noqa: E402
from tests.support.grpc_service import INFER, STREAM, Code, call, running  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("limits")
    artifacts.publish_classifier(root / "models", version=2)
    return root


@pytest.fixture(scope="module")
def service(folder) -> Iterator[SimpleNamespace]:
    with running(folder) as service:
        yield service


class Silence:
    """Requests of a stream that do not come until they are ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        self.ended.wait()
        raise StopIteration


def silent_call(channel, **options):
    """Status of a call that sends no message, and does not say that it will send none."""
    silence = Silence()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary(INFER, bytes, bytes)(silence, timeout=20, **options)
    finally:
        silence.ended.set()
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("method", [method.name for method in INFERENCE.methods if not method.is_server_streaming])
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\n\x05ab", b"\n\x02\xff\xfe"])
def test_garbage_is_invalid_behind_every_call(service, method, data):
    """Bytes that are no message never show a class of ours; calls that take nothing from one pass strings over."""
    code, sentence, trailers = call(service.channel, data, f"/{INFERENCE.service}/{method}")
    if code is Code.OK:
        assert (method, data) in {(name, b"\n\x02\xff\xfe") for name in ("ServerLive", "ServerReady", "ServerMetadata")}
    elif method.startswith("RepositoryModel"):
        assert code is Code.NOT_FOUND  # there is no admin key
    else:
        assert code is Code.INVALID_ARGUMENT
        assert sentence.startswith("message:")
        assert len(trailers["x-request-id"]) == 16


def test_a_call_without_a_message_says_so(service):
    """A client that ends its side at once gets a sentence, not a crash."""
    with pytest.raises(grpc.RpcError) as caught:
        service.channel.stream_unary(INFER, bytes, bytes)(iter(()))
    assert (caught.value.code(), caught.value.details()) == (
        Code.INVALID_ARGUMENT, "message: the call has none, expected one",
    )  # fmt: skip


@pytest.mark.parametrize("route", [INFER, STREAM, "/grpc.health.v1.Health/Watch"])
def test_the_clients_request_id_comes_back_with_every_kind_of_call(service, route):
    """Answers, streams and refusals carry it in their trailers."""
    metadata = (("x-request-id", "mine-1"),)
    data = b"" if route.endswith("Watch") else request().SerializeToString()
    done = service.channel.unary_stream(route, bytes, bytes)(data, metadata=metadata, timeout=2)
    next(done)
    if route.endswith("Watch"):
        done.cancel()
    else:
        assert dict(done.trailing_metadata())["x-request-id"] == "mine-1"
    assert call(service.channel, b"\xff", INFER, metadata=metadata)[2]["x-request-id"] == "mine-1"


def test_messages_of_calls_without_tensors_are_small(service):
    """Nothing but an inference needs more than names and parameters."""
    code, sentence, _ = call(service.channel, b"\n\x80\x80\x08" + b"m" * 131_072, f"/{INFERENCE.service}/ModelReady")
    assert code is Code.RESOURCE_EXHAUSTED
    assert "131076 bytes around its tensors, expected at most 65536" in sentence


def test_a_long_name_makes_no_long_trailer(service):
    """What a client sent is quoted in part, so that its library can read the refusal."""
    code, sentence, _ = call(service.channel, request("m" * 50_000).SerializeToString())
    assert code is Code.NOT_FOUND
    assert len(sentence) <= 1_024


def test_the_bytes_of_all_messages_have_one_budget_with_http(folder):
    """What does not fit is refused and can be tried again; what is held is given back with the answer."""
    with running(folder, max_buffered_bytes=2_000) as service:
        small = request(inputs={"image": artifacts.images(1)}).SerializeToString()
        large = request(inputs={"image": artifacts.images(5)}).SerializeToString()
        code, sentence, trailers = call(service.channel, large)
        assert (code, trailers["retry-after"]) == (Code.UNAVAILABLE, "1")
        assert sentence.startswith("bodies: 0 bytes are held, at most 2000 may be")
        stream = service.channel.stream_stream(STREAM, bytes, INFERENCE.messages["ModelStreamInferResponse"].FromString)
        answers = [answer.error_message for answer in stream(iter([small, large, small]))]
        assert [sentence.partition(":")[0] for sentence in answers] == ["", "bodies", ""]
        assert call(service.channel, small)[0] is Code.OK
        assert service.app.state.body_budget.held_bytes == 0


def test_a_call_whose_message_does_not_arrive_ends(folder):
    """A silent call has the time of a body, and is then told so."""
    with running(folder, body_seconds=0.2) as service:
        code, sentence = silent_call(service.channel)
        assert (code, sentence) == (
            Code.DEADLINE_EXCEEDED, "message: not here after 0.2 s, expected all of it within that time",
        )  # fmt: skip


def test_a_key_is_checked_before_a_message_is_taken(folder):
    """A call without a key is over although it never sent anything."""
    with running(folder, keys=True) as service:
        assert silent_call(service.channel)[0] is Code.UNAUTHENTICATED
        assert call(service.channel, request().SerializeToString(), metadata=service.operator)[0] is Code.OK


def test_every_message_of_a_stream_spends_of_the_keys_rate(folder):
    """Three requests a second are three, in calls of their own and in a stream; the stream goes on after a refusal."""
    with running(folder, keys=True, key_rate=3) as service:
        data = request().SerializeToString()
        stream = service.channel.stream_stream(STREAM, bytes, INFERENCE.messages["ModelStreamInferResponse"].FromString)
        answers = [answer.error_message for answer in stream(iter([data] * 5), metadata=service.operator)]
        assert answers[:3] == ["", "", ""]
        assert all("has sent more than 3 requests a second" in sentence for sentence in answers[3:])
        assert call(service.channel, data, metadata=service.operator)[0] is Code.RESOURCE_EXHAUSTED


def test_a_key_that_is_revoked_ends_its_streams(folder):
    """The next message after the change finds the key unknown."""
    with running(folder, keys=True) as service:
        data = request().SerializeToString()
        file = service.app.state.access.file
        revoked = threading.Event()

        def messages():
            yield data
            revoked.wait()
            yield data

        stream = service.channel.stream_stream(STREAM, bytes, bytes)(messages(), metadata=service.operator, timeout=20)
        next(stream)
        file.reload()
        service.app.state.settings.keys_file.write_text(f"{new_key('other', ['infer'])[1]}\n")
        until = time.monotonic() + 20
        while file.keys[0].name != "other" and time.monotonic() < until:
            file.look(is_told=True)
        revoked.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is Code.UNAUTHENTICATED


@pytest.mark.parametrize("route", [INFER, STREAM])
def test_refused_messages_are_held_by_nobody(service, route):
    """The library keeps the error that ends a call in a cycle, and its traceback would keep the message."""
    name = b"m" * 4_000_000
    message = b"\x0a" + b"\x80\x92\xf4\x01" + name  # model_name, and its length
    refuse = functools.partial(call, service.channel, message, route)
    refuse()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(5):
            refuse()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 2 * len(name)
