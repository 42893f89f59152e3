"""Everything that a sender can get wrong, over HTTP and over gRPC: one sentence, the right status, and life goes on."""

from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts, bad_requests
from tests.support.bad_requests import ALL, INFER, MAX_ROWS, BadRequest
from tests.support.live import serve

try:
    import grpc

    from foldserve.service.v2.rpc.descriptors import INFERENCE
    from tests.support.grpc_calls import stubs
except ImportError:  # without the extra grpc there is only HTTP
    grpc = None
    OVER_GRPC = {}
else:
    OVER_GRPC = bad_requests.grpc_cases(INFERENCE.messages["ModelInferRequest"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One application behind both ports."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    patience = {"default_deadline_ms": 300_000, "hang_seconds": 0}
    app = create_app(
        Settings(
            models_dir=root,
            provider="cpu",
            buckets=(1, 8),
            max_rows=MAX_ROWS,
            grpc_port=0 if grpc else None,
            **patience,
        )
    )
    with serve(app) as url, httpx.Client(base_url=url, timeout=300) as http:
        yield SimpleNamespace(http=http, app=app)


@pytest.mark.parametrize("bad", ALL, ids=[bad.name for bad in ALL])
def test_over_http_it_is_refused_in_one_sentence(service, bad: BadRequest):
    """Its own status, `{"error": sentence}` and nothing else; the process lives and the next caller is answered."""
    answer = service.http.post(bad.path, content=bad.body, headers=bad.headers)
    assert answer.status_code == bad.status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    sentence = answer.json()["error"]
    assert bad.says in sentence
    assert 10 < len(sentence) < 500
    assert "\n" not in sentence
    assert service.http.get("/v2/health/live").json() == {"live": True}
    assert service.http.post(INFER, content=bad_requests.right()[0]).status_code == 200


@pytest.mark.parametrize("name", OVER_GRPC)
def test_over_grpc_it_is_refused_in_one_sentence(service, name):
    """The same under the codes of gRPC."""
    message, code, says = OVER_GRPC[name]
    with grpc.insecure_channel(f"127.0.0.1:{service.app.state.grpc.port}") as channel:
        calls = stubs(channel)
        with pytest.raises(grpc.RpcError) as caught:
            calls.ModelInfer(message)
        assert caught.value.code().name == code, caught.value
        sentence = caught.value.details()
        assert says in sentence
        assert 10 < len(sentence) < 500
        assert calls.ServerLive(INFERENCE.messages["ServerLiveRequest"]()).live
