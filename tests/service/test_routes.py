"""`/predict` and its neighbours over a real connection: every body form, every bad one, every header."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from foldserve.service import asking
from foldserve.service.app import create_app
from foldserve.service.bodies.predict_body import read_images
from foldserve.service.lane import predict
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve
from tests.support.predict_bodies import b64, bomb, form, png

OCTETS = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}
MAX_BODY = 8_000_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One model, `fashion`, with the row limit of production and a body limit just above it."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    yield from client(Settings(models_dir=root, provider="cpu", max_body_bytes=MAX_BODY))


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Two models: `fashion` in versions 1 and 3, and `echo`, which takes no images."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    artifacts.publish_classifier(root, version=3, seed=3)
    artifacts.publish_echo(root)
    yield from client(Settings(models_dir=root, provider="cpu"))


def client(settings: Settings) -> Iterator[httpx.Client]:
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        yield http


def error_of(answer: httpx.Response, status: int) -> str:
    """The sentence of an error, after checking its shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.content) <= 2048
    assert list(answer.json()) == ["error"]
    assert "\n" not in answer.json()["error"]
    return answer.json()["error"]


# Right answers ------------------------------------------------------------------------------------------------------


def test_every_form_is_answered_as_numpy_does(service):
    """The same images as JSON, files, a form and raw bytes get the classes and probabilities of a NumPy reference."""
    pixels = artifacts.images(3)
    expected = artifacts.classify(pixels)
    nested = {"instances": [pixels[0, 0].tolist(), pixels[1].ravel().tolist(), b64(pixels[2, 0])]}
    files = [("a", ("x", png(pixels[0, 0]))), ("b", ("y", png(pixels[1, 0]))), ("a", ("z", png(pixels[2, 0])))]
    answers = [
        service.post("/predict", json=nested),
        service.post("/predict", files=files),
        service.post("/predict", content=pixels.tobytes(), headers=OCTETS),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert (answer.json()["model"], answer.json()["version"]) == ("fashion", 1)
        predictions = answer.json()["predictions"]
        assert [each["class_id"] for each in predictions] == expected["class_id"].ravel().tolist()
        assert [each["label"] for each in predictions] == [artifacts.LABELS[i] for i in expected["class_id"].ravel()]
        probabilities = [each["probabilities"] for each in predictions]
        np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-5)


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg"])
def test_one_image_file_is_one_prediction(service, content_type):
    """A file as the whole body needs no wrapping."""
    pixels = artifacts.images(1)
    answer = service.post("/predict", content=png(pixels[0, 0]), headers={"Content-Type": content_type})
    assert [each["class_id"] for each in answer.json()["predictions"]] == [
        artifacts.classify(pixels)["class_id"].item()
    ]


def test_alone_and_in_company_the_answer_is_the_same(service):
    """Each of 40 images gets, alone, byte for byte the prediction that it gets among the others."""
    pixels = artifacts.images(40)
    together = service.post("/predict", content=pixels.tobytes(), headers=OCTETS).json()["predictions"]
    alone = [
        service.post("/predict", content=image.tobytes(), headers=OCTETS).json()["predictions"] for image in pixels
    ]
    assert [prediction for answer in alone for prediction in answer] == together


def test_ten_thousand_rows_are_answered(service):
    """The largest request that the limit allows is split, run and joined in order."""
    pixels = np.resize(artifacts.images(40), (10_000, 1, 28, 28))
    predictions = service.post("/predict", content=pixels.tobytes(), headers=OCTETS).json()["predictions"]
    assert len(predictions) == 10_000
    assert predictions[:40] * 250 == predictions


def test_several_models_need_a_name(two_models):
    """With several models `?model=` chooses; the newest version answers."""
    pixels = artifacts.images(1)
    assert "?model=" in error_of(two_models.post("/predict", content=pixels.tobytes(), headers=OCTETS), 400)
    answer = two_models.post("/predict?model=fashion", content=pixels.tobytes(), headers=OCTETS)
    assert answer.headers["x-model-version"] == "3"
    assert answer.json()["version"] == 3
    expected = artifacts.classify(pixels, artifacts.classifier_weights(3))["probabilities"][0]
    np.testing.assert_allclose(answer.json()["predictions"][0]["probabilities"], expected, atol=1e-5)


@pytest.mark.parametrize("query", ["labels=stable", "model=fashion&model=echo", "verbose"])
def test_a_query_that_is_not_understood_is_refused(two_models, query):
    """A misspelt label must not be answered by another version than the one that was meant."""
    pixels = artifacts.images(1)
    refused = two_models.post(f"/predict?{query}", content=pixels.tobytes(), headers=OCTETS)
    assert "expected model, version, label and top" in error_of(refused, 400)


@pytest.mark.parametrize("parameter", ["model", "version", "label"])
def test_an_empty_choice_is_refused(two_models, parameter):
    """A variable that was never set does not choose the latest version."""
    chosen = {"model": "fashion", parameter: ""}
    refused = two_models.post("/predict", params=chosen, content=artifacts.images(1).tobytes(), headers=OCTETS)
    assert error_of(refused, 400) == f"query: {parameter} is empty, expected a value, or no such parameter"


def test_a_model_that_is_not_there_is_not_found(two_models):
    """The name that was sent is quoted, shortened, and the names that exist are listed."""
    sentence = error_of(two_models.post("/predict", params={"model": "x" * 9000}, json={}), 404)
    assert "'fashion'" in sentence


# Bad input: the table of the specification --------------------------------------------------------------------------

ZEROS = np.zeros((28, 28), int).tolist()
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}


def document(*instances: object) -> bytes:
    return json.dumps({"instances": list(instances)}).encode()


@pytest.mark.parametrize(
    ("headers", "body", "status", "sentence"),
    [
        ({}, b"", 400, "body: 0 bytes, expected at least one instance"),
        (JSON, b"", 400, "body: 0 bytes, expected at least one instance"),
        (JSON, b"what is this", 400, "body: not JSON"),
        (JSON, b'{"instances": [[NaN]]}', 400, "body: not JSON"),
        (JSON, document(), 400, "instances: an empty list"),
        (JSON, document(ZEROS[:27]), 400, "instances[0]: shape (27, 28), expected (28, 28) or 784 values"),
        (JSON, document([0] * 785), 400, "instances[0]: shape (785,), expected (28, 28) or 784 values"),
        (JSON, document([0] * 783 + [256]), 400, "instances[0][783]: 256, expected an integer 0-255"),
        (JSON, document([0] * 783 + [-1]), 400, "instances[0][783]: -1, expected an integer 0-255"),
        (JSON, document([0] * 783 + [3.5]), 400, "instances[0][783]: 3.5, expected an integer 0-255"),
        (JSON, document([0] * 783 + [True]), 400, "instances[0][783]: true, expected an integer 0-255"),
        (JSON, document(ZEROS, [*ZEROS[:9], [0] * 27, *ZEROS[10:]]), 400, "instances[1][9]: 27 values, expected 28"),
        (JSON, document(["x" * 100_000]), 400, 'instances[0][0]: "xxx'),
        (JSON, b"[" * 250_000, 400, "body: not JSON"),
        (JSON, document(*[0] * 10_001), 413, "10001 images, expected at most 10000"),
        (OCTETS, bytes(784 * 10_001), 413, "10001 images, expected at most 10000"),
        (OCTETS, bytes(785), 400, "body: 785 bytes, expected a multiple of 784"),
        (FORM, form(*[b""] * 10_001)[0], 413, "10001 images, expected at most 10000"),
        ({"Content-Type": "image/png"}, b"a text file called .png", 400, "image: not a PNG or JPEG image"),
        ({"Content-Type": "image/png"}, png(artifacts.images(1)[0, 0])[:300], 400, "image: the PNG file is truncated"),
        ({"Content-Type": "image/png"}, bomb(13_000), 400, "image: more than 89 million pixels"),
        (OCTETS, bytes(MAX_BODY + 1), 413, f"body: got {MAX_BODY + 1} bytes, expected at most {MAX_BODY}"),
        ({"Content-Type": "text/csv"}, b"1,2", 415, "Content-Type: 'text/csv', expected one of"),
        ({}, b"no type", 415, "Content-Type: none, expected one of"),
        (OCTETS | {"Content-Encoding": "gzip"}, b"\x1f\x8b", 415, "Content-Encoding: 'gzip', expected none"),
        (OCTETS | {"X-Deadline-Ms": "0"}, bytes(784), 400, "X-Deadline-Ms: '0', expected a whole number"),
        (OCTETS | {"X-Deadline-Ms": "soon"}, bytes(784), 400, "X-Deadline-Ms: 'soon', expected a whole number"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_sentence(service, headers, body, status, sentence):
    """What was sent, what was expected, where; in 2 KB at most, and the service lives on."""
    assert error_of(service.post("/predict", content=body, headers=headers), status).startswith(sentence)
    assert service.get("/v2/health/live").json() == {"live": True}


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}], ids=["none", "curl"])
def test_a_picture_as_curl_sends_it_by_itself_is_told_how(service, headers):
    """`curl --data-binary @rose.jpg` states the type of a form: the refusal holds the flags that work."""
    message = error_of(service.post("/predict", content=b"\xff\xd8\xff", headers=headers), 415)
    for flags in ("-F file=@picture.jpg", "-H 'Content-Type: image/jpeg'", "-H 'Content-Type: application/json'"):
        assert flags in message


@pytest.mark.parametrize(
    "path", ["/nothing", "/predict/", "/static/%2e%2e/app.py", "/static/nothing", "/" + "x" * 9000]
)
def test_an_unknown_path_is_not_found(service, path):
    """Whatever is not a route is 404 in our own shape, and a long path is not sent back whole."""
    error_of(service.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/predict", "POST"), ("DELETE", "/v2", "GET, HEAD"), ("POST", "/docs", "GET, HEAD"),
     ("PUT", "/static/docs.js", "GET, HEAD")],
)  # fmt: skip
def test_a_wrong_method_names_the_right_one(service, method, path, allowed):
    """405 comes with Allow, as RFC 9110 demands."""
    answer = service.request(method, path)
    error_of(answer, 405)
    assert answer.headers["allow"] == allowed


# Limits as bytes arrive ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service that takes bodies of two images at most."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    yield from client(Settings(models_dir=root, provider="cpu", max_body_bytes=1568))


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_the_body_limit_is_exact(narrow, chunked):
    """1568 bytes are taken and 1569 refused, whether or not the client says beforehand how many will follow."""
    for size, status in ((1568, 200), (1569, 413)):
        body = bytes(size)
        content = (body[start : start + 100] for start in range(0, size, 100)) if chunked else body
        answer = narrow.post("/predict", content=content, headers=OCTETS)
        assert answer.status_code == status, answer.text


def connect(http: httpx.Client) -> socket.socket:
    return socket.create_connection((http.base_url.host, http.base_url.port), timeout=10)


def test_a_body_that_is_announced_too_large_is_refused_unsent(narrow):
    """The headers alone are enough for the refusal: no client has to send a gigabyte to be told."""
    with connect(narrow) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_refused_at_the_limit(narrow):
    """A chunked body without an end is answered as soon as the limit is passed."""
    with connect(narrow) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(b"800\r\n" + bytes(0x800) + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_in_mid_body_harms_nobody(narrow, caplog):
    """Half a body and a closed connection: no error in the log, and the next request is answered."""
    with connect(narrow) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: 784\r\n\r\nthe first bytes"
        )
    assert narrow.post("/predict", content=bytes(784), headers=OCTETS).status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(("door", "query"), [(predict, ""), (asking, "?top=1")], ids=["lane", "application"])
def test_a_large_file_is_decoded_off_the_event_loop(service, monkeypatch, door, query):
    """While a picture of many pixels is decoded the loop goes on: the decoding has a thread of its own."""
    threads = []

    def spy(*arguments: object, **options: object) -> np.ndarray:
        threads.append(threading.current_thread().name)
        return read_images(*arguments, **options)

    monkeypatch.setattr(door, "read_images", spy)
    noise = np.random.default_rng(0).integers(0, 256, (600, 600), dtype=np.uint8)
    for body in (png(noise), png(artifacts.images(1)[0, 0])):
        asked = service.post(f"/predict{query}", content=body, headers={"Content-Type": "image/png"})
        assert asked.status_code == 200
    large, small = threads
    assert large != small
    assert "(run)" in small  # the thread in which the server's loop runs


# Headers and the other routes ---------------------------------------------------------------------------------------

TIMING = r"total;dur=\d+\.\d{3}"
PREDICT_TIMING = r"parse;dur=\d+\.\d{3}, queue;dur=\d+\.\d{3}, infer;dur=\d+\.\d{3}, " + TIMING


def test_every_answer_carries_id_and_timing(service):
    """Success, refusal, unknown path, page and static file alike; the version only where a model answered."""
    good = service.post("/predict", content=bytes(784), headers=OCTETS)
    assert re.fullmatch(PREDICT_TIMING, good.headers["server-timing"])
    assert good.headers["x-model-version"] == "1"
    for answer in [
        service.post("/predict"),
        *(service.get(path) for path in ("/v2", "/x", "/docs", "/static/docs.js")),
    ]:
        assert re.fullmatch(TIMING, answer.headers["server-timing"])
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])
        assert "x-model-version" not in answer.headers


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-1_2.3:4", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ('a"b', False), ("", False)],
)
def test_a_safe_request_id_comes_back_and_no_other(service, sent, kept):
    """At most 64 letters, digits and . _ : - are repeated; anything else gets a new id."""
    answered = service.get("/v2/health/live", headers={"X-Request-ID": sent}).headers["x-request-id"]
    assert (answered == sent) is kept


def test_the_server_says_what_it_serves(two_models):
    """`/v2` names the models with version, labels and device."""
    metadata = two_models.get("/v2").json()
    assert metadata["name"] == "foldserve"
    served = {model["name"]: (model["version"], model["labels"], model["provider"]) for model in metadata["models"]}
    assert served == {"fashion": (3, list(artifacts.LABELS), "cpu"), "echo": (1, [], "cpu")}
    assert two_models.get("/v2/").json() == metadata


def test_health_answers_get_and_head(service):
    """Probes of either kind see 200 once the golden answers were given."""
    assert service.get("/v2/health/ready").json() == {"ready": True}
    answer = service.head("/v2/health/ready")
    assert (answer.status_code, answer.content) == (200, b"")


def test_requests_are_counted_by_route_and_never_by_path(service):
    """A thousand made-up paths make no series; a prediction makes one more in its own."""

    def count(series: str) -> float:
        match = re.search(rf"^{re.escape(series)} (\S+)$", service.get("/metrics").text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    series = 'foldserve_requests_total{method="POST",route="/predict",status="200"}'
    before = count(series)
    service.post("/predict", content=bytes(784), headers=OCTETS)
    assert count(series) == before + 1
    for path in ("/made-up", "/static/made-up"):
        service.get(path)
    lines = len(service.get("/metrics").text.splitlines())
    for number in range(20):
        service.get(f"/made-up/{number}")
        service.get(f"/static/made-up-{number}")
    assert len(service.get("/metrics").text.splitlines()) == lines
    assert "made-up" not in service.get("/metrics").text


@pytest.mark.parametrize(
    "asked", ["bytes=0-3", "bytes=99999999-", "bytes=9-1", "bytes=0-1,4-5", "bytes=x", "lines=1-2"]
)
def test_a_static_file_is_sent_whole(service, asked):
    """HTTP lets a server pass over ranges; a wrong one is no error then."""
    whole = service.get("/static/docs.js")
    answer = service.get("/static/docs.js", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, whole.content)


@pytest.mark.parametrize("path", ["/static/%00", "/static/docs.js%00", "/static/" + "x" * 300, "/static/swagger-ui"])
def test_a_strange_static_path_is_not_found(service, path):
    """In the same shape as everywhere."""
    error_of(service.get(path), 404)


def test_nothing_but_known_files_lies_in_the_static_folder(service):
    """The folder that is served whole holds the page and its scripts and no more."""
    root = Path("service/static")
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    swagger = {"LICENSE", "NOTICE", "VERSION.md", "favicon-32x32.png", "swagger-ui-bundle.js",
               "swagger-ui-bundle.js.LICENSE.txt", "swagger-ui.css"}  # fmt: skip
    assert files == {"docs.html", "docs.js", *(f"swagger-ui/{name}" for name in swagger)}
