"""The client against a real service, and against servers that are slow, full, broken or gone."""

import asyncio
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from foldserve.client import (
    AsyncClient,
    Client,
    ClientError,
    DeadlineExceeded,
    Refused,
    Result,
    Unavailable,
    Unreachable,
)  # fmt: skip
from foldserve.client.messages import infer_path, read_answer, write_request
from foldserve.service.app import create_app
from foldserve.service.keys import new_key
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve

IMAGES = artifacts.images(5, seed=2)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a service, and the key that it wants."""
    folder = tmp_path_factory.mktemp("client")
    artifacts.publish_classifier(folder / "models")
    artifacts.publish_two_inputs(folder / "models")
    key, line = new_key("me", ["infer"])
    (folder / "keys").write_text(line)
    settings = Settings(models_dir=folder / "models", provider="cpu", buckets=(1, 8), keys_file=folder / "keys")
    with serve(create_app(settings)) as url:
        yield url, key


class Asked:
    """A call with either client, so that one test holds for both."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, url: str, call: str, *arguments: object, handler: object = None, **options: object) -> object:
        making = {name: options.pop(name) for name in ("api_key", "retries") if name in options}
        if handler is not None:
            making["transport"] = httpx.MockTransport(handler)
        if self.kind == "sync":
            with Client(url, **making) as client:
                return getattr(client, call)(*arguments, **options)

        async def ask() -> object:
            async with AsyncClient(url, **making) as client:
                return await getattr(client, call)(*arguments, **options)

        return asyncio.run(ask())


@pytest.fixture(params=["sync", "async"])
def ask(request) -> Asked:
    return Asked(request.param)


def test_arrays_go_out_and_come_back(service, ask):
    """The outputs are those of NumPy's own computation, with the version and the id beside them."""
    url, key = service
    result = ask(url, "infer", "fashion", {"image": IMAGES}, api_key=key, request_id="q-1")
    assert isinstance(result, Result)
    assert (result.model, result.version, result.id) == ("fashion", "1", "q-1")
    expected = artifacts.classify(IMAGES)
    assert list(result.outputs) == list(expected)
    np.testing.assert_array_equal(result.outputs["class_id"], expected["class_id"])
    np.testing.assert_allclose(result.outputs["logits"], expected["logits"], atol=1e-4)


def test_outputs_versions_and_labels_are_chosen(service, ask):
    """Only what was named comes back; a version or a label picks who answers."""
    url, key = service
    for chosen in ({"version": 1}, {"label": "latest"}):
        result = ask(url, "infer", "fashion", {"image": IMAGES}, api_key=key, outputs=["class_id"], **chosen)
        assert list(result.outputs) == ["class_id"]
    with pytest.raises(ValueError, match="at most one"):
        infer_path("m", 1, "stable")


def test_several_inputs_and_any_strides(service, ask):
    """Arrays that are not contiguous arrive as what they show."""
    left = np.arange(30, dtype=np.float32).reshape(3, 10)[:, ::4].copy()
    right = np.arange(18, dtype=np.float32).reshape(6, 3)[::2]
    url, key = service
    result = ask(url, "infer", "sum", {"left": left, "right": right}, api_key=key)
    np.testing.assert_array_equal(result.outputs["sum"], left + right)


def test_metadata_and_readiness(service, ask):
    """What the server says of a model, and whether it answers."""
    url, _ = service
    assert ask(url, "metadata", "fashion")["inputs"][0]["shape"] == [-1, 1, 28, 28]
    assert ask(url, "is_ready") is True
    assert ask("http://127.0.0.1:9", "is_ready") is False


@pytest.mark.parametrize(
    ("model", "inputs", "key", "status", "expected"),
    [
        ("nobody", {"image": IMAGES}, True, 404, "'nobody' is not served"),
        ("fashion", {"image": IMAGES.astype(np.float32)}, True, 400, "datatype FP32, expected UINT8"),
        ("fashion", {"image": IMAGES[:, :, :27]}, True, 400, "expected [N, 1, 28, 28]"),
        ("fashion", {"image": IMAGES}, False, 401, "no API key"),
    ],
)
def test_a_refusal_carries_the_servers_sentence(service, ask, model, inputs, key, status, expected):
    """The status and what the server said; none of these is tried again."""
    url, known = service
    with pytest.raises(Refused) as caught:
        ask(url, "infer", model, inputs, api_key=known if key else None)
    assert caught.value.status == status
    assert expected in caught.value.message


def test_a_type_that_the_protocol_lacks_is_refused_before_anything_is_sent():
    """Complex numbers have no datatype."""
    with pytest.raises(TypeError, match="'x' is of complex128"):
        write_request({"x": np.zeros(1, complex)}, None, "")


class Server:
    """Answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def refusal(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": "busy"}, headers=headers)


OUTPUT = {"name": "y", "datatype": "INT64", "shape": [1], "data": [7]}
GOOD = {"model_name": "m", "model_version": "3", "outputs": [OUTPUT]}


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_when_to_come_back_is_believed(ask, status):
    """`Retry-After: 0` is an attempt at once; the answer of the second one is the result."""
    server = Server(refusal(status, **{"Retry-After": "0"}), httpx.Response(200, json=GOOD))
    result = ask("http://x", "infer", "m", {"x": np.zeros(1)}, handler=server)
    assert result.outputs["y"].tolist() == [7]
    assert len(server.requests) == 2


def test_a_pause_beyond_the_deadline_is_not_made(ask):
    """The caller hears at once that there is no point in waiting."""
    server = Server(refusal(503, **{"Retry-After": "60"}))
    with pytest.raises(Unavailable, match="503: busy"):
        ask("http://x", "infer", "m", {"x": np.zeros(1)}, handler=server, deadline=5.0)
    assert len(server.requests) == 1


def test_attempts_are_counted(ask):
    """Two retries are three attempts, and then the last reason."""
    server = Server(*[refusal(503, **{"Retry-After": "0"})] * 3)
    with pytest.raises(Unavailable):
        ask("http://x", "infer", "m", {"x": np.zeros(1)}, handler=server, retries=2)
    assert len(server.requests) == 3


def test_a_broken_connection_is_tried_again(ask):
    """Asking a model twice changes nothing, so it is safe."""
    server = Server(httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.Response(200, json=GOOD))
    assert ask("http://x", "infer", "m", {"x": np.zeros(1)}, handler=server).version == "3"
    with pytest.raises(Unreachable):
        ask("http://x", "infer", "m", {"x": np.zeros(1)}, handler=Server(httpx.ConnectError("refused")), retries=0)


def test_the_server_is_told_how_long_it_has(ask):
    """The deadline goes out in milliseconds, and what is over is over."""
    server = Server(httpx.Response(200, json=GOOD))
    ask("http://x", "infer", "m", {"x": np.zeros(1)}, handler=server, deadline=2.0)
    assert 0 < int(server.requests[0].headers["X-Deadline-Ms"]) <= 2000
    with pytest.raises(DeadlineExceeded):
        ask("http://x", "infer", "m", {"x": np.zeros(1)}, handler=Server(refusal(504)))
    with pytest.raises(DeadlineExceeded):
        ask("http://x", "infer", "m", {"x": np.zeros(1)}, handler=Server(), deadline=0.0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", json.dumps({**GOOD, "outputs": [{"name": "y"}]}).encode()])
def test_an_answer_of_another_kind_is_an_error(body):
    """A proxy's page with status 200 is no result."""
    with pytest.raises(ClientError, match="not one of the Open Inference Protocol"):
        read_answer(body, None)
