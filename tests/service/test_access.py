"""Who may ask for what: keys, scopes, and the ways around them that there must not be."""

import contextlib
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from foldserve.service.access import Access, scope_of
from foldserve.service.app import create_app
from foldserve.service.errors import ArtifactInvalid, Forbidden, NotFound, TooManyRequests, Unauthorized
from foldserve.service.keys import new_key, read_keys
from foldserve.service.rates import SharedTokenBucket, TokenBucket
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve
from tests.support.routes import routes_of

OCTETS = {"Content-Type": "application/octet-stream"}
PIXELS = artifacts.images(1).tobytes()
SCOPES = ("infer", "metrics", "admin", "read")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory):
    """A file with one key for each scope, and the keys themselves."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    made = {scope: new_key(f"the-{scope}", [scope]) for scope in SCOPES}
    path.write_text("# people\n\n" + "\n".join(line for _, line in made.values()) + "\n")
    return path, {scope: key for scope, (key, _) in made.items()}


@pytest.fixture(scope="module")
def service(keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service that is closed in every scope."""
    models = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(models)
    settings = Settings(
        models_dir=models, provider="cpu", buckets=(1,), keys_file=keys[0], closed_scopes=("infer", "metrics", "read"),
        state_dir=models.parent / "state", poll_seconds=0,
    )  # fmt: skip
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as http:
        yield http


# Every route of the service and what it takes to open it; a new route has to be written here.
DOORS = {
    ("POST", "/predict"): "infer",
    ("POST", "/v2/models/fashion/infer"): "infer",
    ("POST", "/v2/models/fashion/versions/1/infer"): "infer",
    ("POST", "/v2/models/fashion/labels/latest/infer"): "infer",
    ("POST", "/v1/models/fashion:predict"): "infer",
    ("POST", "/v1/models/fashion/versions/1:predict"): "infer",
    ("POST", "/v1/models/fashion/labels/latest:predict"): "infer",
    ("POST", "/predictions/fashion"): "infer",
    ("PUT", "/predictions/fashion"): "infer",
    ("POST", "/predictions/fashion/1"): "infer",
    ("PUT", "/predictions/fashion/1"): "infer",
    ("GET", "/v1/models"): "read",
    ("GET", "/v1/models/fashion"): "read",
    ("GET", "/v1/models/fashion/versions/1"): "read",
    ("GET", "/ping"): "open",
    ("GET", "/metrics"): "metrics",
    ("GET", "/v2"): "read",
    ("GET", "/v2/"): "read",
    ("GET", "/v2/models"): "read",
    ("GET", "/v2/models/stats"): "read",
    ("GET", "/v2/models/fashion"): "read",
    ("GET", "/v2/models/fashion/versions/1"): "read",
    ("GET", "/v2/models/fashion/labels/latest"): "read",
    ("GET", "/v2/models/fashion/ready"): "read",
    ("GET", "/v2/models/fashion/versions/1/ready"): "read",
    ("GET", "/v2/models/fashion/labels/latest/ready"): "read",
    ("GET", "/v2/models/fashion/config"): "read",
    ("GET", "/v2/models/fashion/versions/1/config"): "read",
    ("GET", "/v2/models/fashion/stats"): "read",
    ("GET", "/v2/models/fashion/versions/1/stats"): "read",
    ("GET", "/v2/models/fashion/versions/1/proof"): "read",
    ("GET", "/v2/models/fashion/versions/1/samples"): "read",
    ("POST", "/v2/models/fashion/versions/1/preview"): "infer",
    ("POST", "/v2/repository/index"): "read",
    ("GET", "/v2/repository/models/fashion"): "read",
    ("POST", "/v2/repository/models/fashion/load"): "admin",
    ("POST", "/v2/repository/models/fashion/unload"): "admin",
    ("POST", "/v2/repository/models/fashion/promote"): "admin",
    ("POST", "/v2/repository/models/fashion/rollback"): "admin",
    ("POST", "/v2/repository/models/fashion/shadow"): "admin",
    ("DELETE", "/v2/repository/models/fashion/shadow"): "admin",
    ("GET", "/v2/health/live"): "open",
    ("GET", "/v2/health/ready"): "open",
    ("GET", "/"): "open",
    ("GET", "/docs"): "open",
    ("GET", "/openapi.json"): "open",
}


def test_every_route_has_a_door_in_the_list(service, tmp_path):
    """The list above is the inventory: a route that is missing there fails here."""
    app = create_app(Settings(models_dir=tmp_path))
    found = {(method, path.format(model="fashion", version="1", label="latest")) for method, path in routes_of(app)}
    assert found == set(DOORS)


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_each_door_opens_to_its_own_scope_alone(service, keys, method, path):
    """No key is 401, a wrong one 401, one of another scope 403; the right one gets whatever the route answers."""
    needed = DOORS[method, path]
    assert scope_of(method, path) == needed

    def ask(**headers):
        return service.request(method, path, headers=headers, content=PIXELS if method == "POST" else None)

    if needed == "open":
        assert ask().status_code in (200, 307)
        return
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
        answer = ask(**headers)
        assert answer.status_code == 401, headers
        assert answer.headers["www-authenticate"] == "Bearer"
        assert list(answer.json()) == ["error"]
        assert len(answer.headers["x-request-id"]) == 16
    for scope, key in keys[1].items():
        if scope != needed:
            answer = ask(**{"X-API-Key": key})
            assert answer.status_code == 403
            assert needed in answer.json()["error"]
    if method == "GET" or needed == "infer":
        for headers in ({"X-API-Key": keys[1][needed]}, {"Authorization": f"Bearer {keys[1][needed]}"}):
            assert ask(**headers).status_code not in (401, 403, 404), path


def ways_around(path: str) -> list[str]:
    """Other spellings of a path."""
    before = [f"/{path}", f"/x/..{path}", f"/v2/health/..{path}", f"/static/..{path}", path.replace("/v2", "/v2/.", 1)]
    behind = [f"{path}/", f"{path}%2f", f"{path};x=1", f"{path}%00", f"{path}?x=/docs"]
    return [*before, *behind, path.upper(), path.replace("e", "%65")]


@pytest.mark.parametrize(
    "path", ["/metrics", "/v2/repository/models/fashion/unload", "/v2/models/fashion/infer", "/v2/models"]
)
def test_no_spelling_of_a_path_gets_past_the_door(service, path):
    """Whatever the spelling, a request without a key is refused or meets nothing: it is never answered."""
    host = {"Host": "x/docs?"}
    methods = ["GET"] if path in ("/metrics", "/v2/models") else ["POST"]
    for method in [*methods, "HEAD"]:
        for way in [path, *ways_around(path)]:
            for headers in ({}, {"X-HTTP-Method-Override": "GET"}, {"X-Original-URL": "/docs"}, host):
                raw = httpx.URL(f"{service.base_url}{way}") if "%" not in way else service.base_url.join(way)
                answer = service.request(method, raw, headers=headers)
                assert answer.status_code in (400, 401, 404, 405), (method, way, headers)
    assert service.get("/v2/health/ready").json() == {"ready": True}


def test_without_keys_everything_is_open_but_what_changes_models(tmp_path):
    """A fresh service can be used at once; its admin calls say what is missing."""
    artifacts.publish_classifier(tmp_path)
    settings = Settings(models_dir=tmp_path, provider="cpu", buckets=(1,), poll_seconds=0)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as http:
        for (method, path), needed in DOORS.items():
            answer = http.request(method, path, content=PIXELS if method == "POST" and needed == "infer" else None)
            assert (answer.status_code == 404) == (needed == "admin"), path
            assert answer.status_code not in (401, 403)
        for call in ("load", "unload", "promote"):
            answer = http.post(f"/v2/repository/models/fashion/{call}").json()["error"]
            assert "needs a key with the scope admin" in answer
            assert "no --keys-file" in answer
            assert "foldserve keys new" in answer


def test_keys_without_an_admin_leave_the_admin_calls_missing(tmp_path):
    """404 for everybody until somebody may."""
    key, line = new_key("ci", ["infer"])
    (tmp_path / "keys").write_text(line)
    access = Access(tmp_path / "keys")
    with pytest.raises(NotFound, match="no key in the keys file has it"):
        access.check("admin", None, key)
    assert access.check("infer", None, key) == "ci"
    assert access.check("read", None, None) is None


def test_a_key_has_a_rate_of_its_own(tmp_path, monkeypatch):
    """Who asks too often hears when to come back; others are not touched."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    made = [new_key(name, ["infer"]) for name in ("eager", "calm")]
    (tmp_path / "keys").write_text("\n".join(line for _, line in made))
    access = Access(tmp_path / "keys", rate=5)
    eager, calm = (key for key, _ in made)
    for _ in range(5):
        access.check("infer", None, eager)
    with pytest.raises(TooManyRequests, match="more than 5 requests a second") as caught:
        access.check("infer", None, eager)
    assert caught.value.headers == {"Retry-After": "1"}
    assert access.check("infer", None, calm) == "calm"
    clock[0] += 0.2
    assert access.check("infer", None, eager) == "eager"


def test_tokens_come_back_at_their_rate_and_no_more(tmp_path, monkeypatch):
    """A long pause is worth one second of tokens, not an hour's."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for bucket in (TokenBucket(2.0), SharedTokenBucket(2.0, tmp_path / "bucket")):
        clock[0] += 3600
        assert [bucket.take() for _ in range(3)] == [0.0, 0.0, 0.5]


def test_workers_take_from_one_bucket(tmp_path, monkeypatch):
    """Four at once, each with the file open for itself: not one request more than the rate, and not one less."""
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)
    key, line = new_key("eager", ["infer"])
    (tmp_path / "keys").write_text(line)
    passed: list[str | None] = []

    def work() -> None:
        access = Access(tmp_path / "keys", rate=50, shared=tmp_path)
        for _ in range(30):
            with contextlib.suppress(TooManyRequests):
                passed.append(access.check("infer", None, key))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == ["eager"] * 50


@pytest.mark.parametrize(
    "text",
    [
        "ci infer",
        "ci infer abc",
        "ci fly " + "0" * 64,
        "a b c d",
        "ci infer " + "0" * 63 + "G",
        "\xff",
        "../x infer " + "0" * 64,
    ],
)
def test_a_line_that_is_no_key_is_refused_without_showing_it(tmp_path, text):
    """Where the mistake is, what was expected, and nothing of what stood there."""
    path = tmp_path / "keys"
    path.write_text(f"# keys\n{text}\n", encoding="latin-1")
    with pytest.raises(ArtifactInvalid) as caught:
        read_keys(path)
    assert text not in str(caught.value)


def test_a_key_file_that_is_missing_ends_the_start(tmp_path):
    """A service that was to be closed never opens by accident."""
    with pytest.raises(ArtifactInvalid, match="cannot be read"):
        Access(tmp_path / "nowhere")


def test_keys_are_kept_as_digests_and_never_repeated(service, keys, caplog):
    """Neither the file nor an answer, a header, a metric or the log ever holds a key."""
    path, made = keys
    text = path.read_text()
    answers = [service.get("/v2", headers={"X-API-Key": key}) for key in made.values()]
    answers.append(service.get("/metrics", headers={"X-API-Key": made["metrics"]}))
    answers.append(service.get("/v2", headers={"Authorization": "Bearer my-secret-guess"}))
    said = text + caplog.text + "".join(f"{answer.headers}{answer.text}" for answer in answers)
    for secret in (*made.values(), "my-secret-guess"):
        assert secret not in said


def test_strange_keys_are_unknown_and_nothing_more(tmp_path):
    """Empty, huge, or of any bytes: 401."""
    _, line = new_key("ci", ["infer"])
    (tmp_path / "keys").write_text(line)
    access = Access(tmp_path / "keys")
    for strange in ("", " ", "x" * 1_000_000, "\0", "é", "\udcff", line, line.split()[2]):
        with pytest.raises(Unauthorized):
            access.check("infer", None, strange)
        with pytest.raises(Unauthorized):
            access.check("infer", f"Bearer {strange}", None)


def test_a_key_may_hold_several_scopes(tmp_path):
    """One key, some doors."""
    key, line = new_key("ops", ["infer", "admin"])
    (tmp_path / "keys").write_text(line)
    access = Access(tmp_path / "keys")
    for scope in ("infer", "admin"):
        assert access.check(scope, f"bearer {key}", None) == "ops"
    with pytest.raises(Forbidden, match="key 'ops' lacks the scope metrics, which this call needs"):
        access.check("metrics", None, key)
