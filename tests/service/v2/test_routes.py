"""The protocol over a real connection, with plain httpx: statuses, headers, bodies, whatever the client."""

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from foldserve.service.app import create_app
from foldserve.service.bodies.compression import wanted_coding
from foldserve.service.settings import Settings
from tests.support import artifacts, v2_messages
from tests.support.live import serve

HEADER_LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/fashion/infer"
MAX_ROWS, MAX_BYTES = 40, 100_000
PIXELS = artifacts.images(3, seed=5)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root, version=2)
    artifacts.publish_echo(root)
    artifacts.publish_two_inputs(root)
    return root


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[httpx.Client]:
    settings = Settings(
        models_dir=models, provider="cpu", buckets=(1, 2, 8), max_rows=MAX_ROWS, max_body_bytes=MAX_BYTES
    )
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as http:
        yield http


def squeezed(data: bytes) -> bytes:
    """The same gzip at any time: its bytes stand in the names of tests."""
    return gzip.compress(data, mtime=0)


def infer(service, inputs, form="flat", path=INFER, **members):
    """The JSON head and the arrays of an answer."""
    body, length = v2_messages.request(inputs, form, **members)
    headers = {} if length is None else {HEADER_LENGTH: str(length)}
    return opened(service.post(path, content=body, headers=headers))


def opened(answer):
    assert answer.status_code == 200, answer.text
    length = answer.headers.get(HEADER_LENGTH)
    expected = "application/json" if length is None else "application/octet-stream"
    assert answer.headers["content-type"] == expected
    return v2_messages.answer(answer.content, None if length is None else int(length))


def refusal(answer, status):
    """The sentence of an error, whose body is `{"error": sentence}` and nothing else."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


@pytest.mark.parametrize("form", ["flat", "nested", "binary"])
@pytest.mark.parametrize("binary_output", [False, True])
def test_every_form_gives_the_same_bytes_as_predict_and_as_the_plain_session(service, models, form, binary_output):
    """JSON or bytes, in or out: the tensors are equal bit for bit, and within 1e-5 of what anybody else computes."""
    _, outputs = infer(service, {"image": PIXELS}, form, parameters={"binary_data_output": binary_output})
    as_bytes = {"Content-Type": "application/octet-stream"}
    predicted = service.post("/predict?model=fashion", content=PIXELS.tobytes(), headers=as_bytes).json()["predictions"]
    np.testing.assert_array_equal(
        outputs["probabilities"], np.array([entry["probabilities"] for entry in predicted], np.float32)
    )
    assert outputs["class_id"].ravel().tolist() == [entry["class_id"] for entry in predicted]
    session = artifacts.plain_session(models / "fashion/2/model.onnx")
    logits = session.run(["logits"], {"image": PIXELS})[0]
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_bare_bytes_are_answered_in_bytes(service):
    """Header length 0: the body is the only input, and every output comes back as bytes."""
    answer = service.post(INFER, content=PIXELS.tobytes(), headers={HEADER_LENGTH: "0"})
    head, outputs = opened(answer)
    assert all(entry["parameters"]["binary_data_size"] for entry in head["outputs"])
    np.testing.assert_array_equal(outputs["logits"], infer(service, {"image": PIXELS}, "binary")[1]["logits"])


def test_binary_outputs_can_be_asked_for_in_json_without_any_header(service):
    """What Triton's client sends when no outputs are named: JSON inputs, no header, `binary_data_output` true."""
    body, _ = v2_messages.request({"image": PIXELS}, parameters={"binary_data_output": True})
    answer = service.post(INFER, content=body)
    assert HEADER_LENGTH in answer.headers
    assert opened(answer)[1]["logits"].shape == (3, 10)


def test_names_versions_ids_and_headers_say_who_answered(service):
    """The body names the model, the version as text and the client's id; the headers the version and the times."""
    body, _ = v2_messages.request({"identity": np.arange(4)[None]}, id="q-1")
    answer = service.post("/v2/models/echo/versions/1/infer", content=body)
    assert answer.json() == {
        "id": "q-1",
        "model_name": "echo",
        "model_version": "1",
        "outputs": [{"name": "echo", "datatype": "INT64", "shape": [1, 4], "data": [0, 1, 2, 3]}],
    }
    assert answer.headers["x-model-version"] == "1"
    assert {"parse", "queue", "infer", "total"} == {
        entry.split(";")[0].strip() for entry in answer.headers["server-timing"].split(",")
    }


def test_more_rows_than_the_largest_bucket_are_split_and_joined_in_order(service):
    """40 rows through buckets of 8: each row gets its own answer."""
    rows = np.arange(MAX_ROWS * 4).reshape(MAX_ROWS, 4)
    _, outputs = infer(service, {"identity": rows}, "binary", "/v2/models/echo/infer")
    np.testing.assert_array_equal(outputs["echo"], rows)


def test_more_rows_than_the_limit_are_413(service):
    """The limit of rows is exact: one more is refused with both numbers."""
    rows = np.zeros((MAX_ROWS + 1, 4), np.int64)
    for form in ("flat", "binary"):
        body, length = v2_messages.request({"identity": rows}, form)
        headers = {HEADER_LENGTH: str(length)} if length else {}
        answer = service.post("/v2/models/echo/infer", content=body, headers=headers)
        assert refusal(answer, 413) == "41 rows, expected at most 40 in one request: send them in several"


def test_a_model_of_several_inputs_is_served(service):
    """Inputs are matched by name, whatever their order."""
    left, right = np.random.default_rng(2).standard_normal((2, 5, 3)).astype(np.float32)
    _, outputs = infer(service, {"right": right, "left": left}, "binary", "/v2/models/sum/infer")
    np.testing.assert_array_equal(outputs["sum"], left + right)


def test_classification_uses_the_labels_of_the_model(service):
    """The largest value of each row comes with its index and name."""
    wanted = [{"name": "probabilities", "parameters": {"classification": 2}}]
    head, outputs = infer(service, {"image": PIXELS}, outputs=wanted)
    _, plain = infer(service, {"image": PIXELS})
    assert head["outputs"][0]["shape"] == [3, 2]
    for entry, class_id in zip(outputs["probabilities"][:, 0], plain["class_id"].ravel(), strict=True):
        assert entry.decode().split(":")[1:] == [str(class_id), artifacts.LABELS[class_id]]


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
def test_compressed_bodies_are_inflated_first(service, coding, compress):
    """The header length counts inflated bytes, and the answer is the one to the plain body."""
    body, length = v2_messages.request({"image": PIXELS}, "binary")
    answer = service.post(
        INFER, content=compress(body), headers={HEADER_LENGTH: str(length), "Content-Encoding": coding}
    )
    np.testing.assert_array_equal(opened(answer)[1]["logits"], infer(service, {"image": PIXELS}, "binary")[1]["logits"])


@pytest.mark.parametrize("size", [MAX_BYTES, MAX_BYTES + 1])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_the_body_limit_counts_inflated_bytes_exactly(service, size, coding):
    """A body of the limit is read (and refused as not JSON), one byte more is 413: however small it was sent."""
    compress = {"gzip": gzip.compress, "deflate": zlib.compress, None: bytes}[coding]
    headers = {} if coding is None else {"Content-Encoding": coding}
    answer = service.post(INFER, content=compress(b"x" * size), headers=headers)
    refusal(answer, 413 if size > MAX_BYTES else 400)


@pytest.mark.parametrize(
    ("coding", "body", "status", "expected"),
    [
        ("br", b"{}", 415, "expected gzip, deflate or none"),
        ("gzip, gzip", b"{}", 415, "expected gzip, deflate or none"),
        ("gzip", b"{}", 400, "not gzip"),
        ("gzip", squeezed(b"{}")[:-3], 400, "ends too early"),
        ("gzip", b"", 400, "ends too early"),
        ("gzip", squeezed(b"{}") + b"x", 400, "bytes behind its end"),
        ("deflate", squeezed(b"{}"), 400, "not deflate"),
        ("gzip", squeezed(bytes(5_000_000)), 413, "when inflated"),
    ],
)
def test_what_cannot_be_inflated_is_refused(service, coding, body, status, expected):
    """Unknown codings, damaged data and bombs each get their sentence."""
    assert expected in refusal(service.post(INFER, content=body, headers={"Content-Encoding": coding}), status)


def test_compressed_bodies_are_refused_outside_the_protocol(service):
    """/predict takes bodies as they are, and each refusal says which codings would do."""
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = service.post("/predict?model=fashion", content=gzip.compress(b"{}"), headers=headers)
    refusal(answer, 415)
    assert answer.headers["accept-encoding"] == "identity"
    answer = service.post(INFER, content=b"{}", headers={"Content-Encoding": "br"})
    assert answer.headers["accept-encoding"] == "gzip, deflate"


def test_the_repository_takes_compressed_bodies_too(service):
    """All of /v2 does, within the limits of its bodies."""
    headers = {"Content-Encoding": "gzip"}
    answer = service.post("/v2/repository/index", content=gzip.compress(b'{"ready": true}'), headers=headers)
    assert {row["name"] for row in answer.json()} == {"echo", "fashion", "sum"}
    bomb = service.post("/v2/repository/index", content=gzip.compress(bytes(1_000_000)), headers=headers)
    refusal(bomb, 413)


@pytest.mark.parametrize("form", ["flat", "binary"])
@pytest.mark.parametrize(
    ("coding", "none"),
    [("gzip", "q=0"), ("deflate", "q=0"), ("gzip", "q = 0"), ("gzip", " Q=0.0"), ("gzip", "q\t=\t0")],
)
def test_a_client_that_refuses_plain_answers_gets_compressed_ones(service, form, coding, none):
    """The same answer, whose header length counts inflated bytes."""
    wish = {"binary_data_output": form == "binary"}
    body, length = v2_messages.request({"image": PIXELS}, form, parameters=wish)
    headers = {"Accept-Encoding": f"{coding}, identity;{none}"} | ({HEADER_LENGTH: str(length)} if length else {})
    answer = service.post(INFER, content=body, headers=headers)
    assert (answer.headers["content-encoding"], answer.headers["vary"]) == (coding, "Accept-Encoding")
    plain = service.post(INFER, content=body, headers=headers | {"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert answer.content == plain.content
    np.testing.assert_array_equal(opened(answer)[1]["logits"], opened(plain)[1]["logits"])


@pytest.mark.parametrize(
    ("accepted", "size", "coding"),
    [
        (None, 1 << 20, None),
        ("", 1 << 20, None),
        ("gzip, deflate", 1 << 20, "gzip"),
        ("gzip, deflate", 1 << 10, None),
        ("deflate", 1 << 20, "deflate"),
        ("gzip;q=0.5, deflate", 1 << 20, "deflate"),
        ("br", 1 << 20, None),
        ("gzip;q=0", 1 << 20, None),
        ("*", 1 << 20, "gzip"),
        ("*;q=0", 1 << 20, None),
        ("identity, gzip;q=0.1", 1 << 20, None),
        ("gzip, *;q=0", 10, "gzip"),
        ("GZIP ; q=1.0", 1 << 20, "gzip"),
        ("gzip;q=x", 1 << 20, None),
        ("ÿ,;;", 1 << 20, None),
    ],
)
def test_the_coding_of_an_answer_is_one_that_the_client_takes(accepted, size, coding):
    """By the weights of Accept-Encoding, and plain wherever that is short and not refused."""
    assert wanted_coding(accepted, size) == coding


def test_a_priority_is_passed_over(service):
    """There is one queue, and no extension that promises another."""
    body, _ = v2_messages.request({"image": PIXELS}, parameters={"priority": 3})
    opened(service.post(INFER, content=body))
    assert "schedule_policy" not in service.get("/v2").json()["extensions"]


def test_metadata_describes_the_graph_with_the_batch_as_minus_one(service):
    """Names, datatypes and shapes are those of the ONNX file."""
    for path in ("/v2/models/fashion", "/v2/models/fashion/versions/2"):
        metadata = service.get(path).json()
        properties = metadata.pop("properties")
        assert metadata == {
            "name": "fashion",
            "versions": ["2"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 28, 28]}],
            "outputs": [
                {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
                {"name": "class_id", "datatype": "INT64", "shape": [-1, 1]},
            ],
        }
        assert json.loads(properties["labels"]) == list(artifacts.LABELS)
        assert properties["provider"] == "cpu"
        assert len(properties["sha256"]) == 64


def test_config_says_what_perf_analyzer_looks_at(service):
    """The batch is left out of `dims`, the limit of rows is `max_batch_size`, and batches do not wait."""
    config = service.get("/v2/models/fashion/config").json()
    assert config["max_batch_size"] == MAX_ROWS
    assert config["input"] == [
        {"name": "image", "data_type": "TYPE_UINT8", "dims": [1, 28, 28], "format": "FORMAT_NCHW"}
    ]
    assert [entry["name"] for entry in config["output"]] == ["logits", "probabilities", "class_id"]
    assert config["dynamic_batching"] == {"preferred_batch_size": [1, 2, 8], "max_queue_delay_microseconds": 0}
    assert config["response_cache"] == {"enable": False}
    assert config["model_transaction_policy"] == {"decoupled": False}


def test_statistics_count_requests_rows_and_batches_exactly(service):
    """The difference of two readings is what was sent in between; every member that perf_analyzer reads is there."""

    def reading():
        return service.get("/v2/models/sum/stats").json()["model_stats"][0]

    def ask(rows):
        arrays = {name: np.zeros((rows, 3), np.float32) for name in ("left", "right")}
        infer(service, arrays, "binary", "/v2/models/sum/infer")

    before = reading()
    for rows in (1, 2, 2, 20):  # 20 rows are runs of 8, 8 and 4
        ask(rows)
    after = reading()
    assert (after["name"], after["version"]) == ("sum", "1")
    assert after["inference_count"] - before["inference_count"] == 25
    assert after["execution_count"] - before["execution_count"] == 6
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][stage]["count"] - before["inference_stats"][stage]["count"] == 4, stage
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][stage]["ns"] > before["inference_stats"][stage]["ns"], stage
    for entry in after["batch_stats"]:
        assert all(entry[stage]["ns"] > 0 for stage in ("compute_input", "compute_infer", "compute_output"))
    assert after["inference_stats"]["cache_hit"] == after["inference_stats"]["cache_miss"] == {"count": 0, "ns": 0}
    assert {entry["batch_size"] for entry in after["batch_stats"]} >= {1, 2, 4, 8}
    assert after["last_inference"] > 1_700_000_000_000


def test_statistics_of_all_models_are_one_list(service):
    """`/v2/models/stats` is a reading of every model."""
    listed = service.get("/v2/models/stats").json()["model_stats"]
    assert [entry["name"] for entry in listed] == ["echo", "fashion", "sum"]


def test_models_are_listed_and_say_that_they_are_ready(service):
    """Each model of the list answers its ready call."""
    names = service.get("/v2/models").json()["models"]
    assert names == ["echo", "fashion", "sum"]
    for name in names:
        assert service.get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}


def test_only_what_is_honoured_is_advertised(service):
    """The list of extensions is the one that the tests of this file walk through."""
    assert set(service.get("/v2").json()["extensions"]) == {
        "classification", "binary_tensor_data", "model_repository", "model_configuration", "statistics",
    }  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/unknown/infer",
        "/v2/models/fashion/versions/1/infer",
        "/v2/models/fashion/versions/99999999999999999999/infer",
        "/v2/models/fashion/versions/latest/infer",
        "/v2/models/fashion/versions/0/infer",
        "/v2/models/fashion/versions/-1/infer",
        "/v2/models/fashion/versions/02/infer",
        "/v2/models/..%2f..%2fetc/infer",
        "/v2/models/%2e%2e/infer",
        "/v2/models/fashion%00/infer",
        "/v2/models/%E2%80%AEfashion/infer",
        "/v2/models/%FF%FE/infer",
        f"/v2/models/{'x' * 10_000}/infer",
    ],
)
def test_names_and_versions_that_do_not_exist_are_404(service, path):
    """A name never becomes a path; whatever it holds, nothing is served under it, and the answer stays short."""
    body, _ = v2_messages.request({"image": PIXELS})
    answer = service.post(path, content=body)
    assert len(refusal(answer, 404)) < 500


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, "POST"),
        ("POST", "/v2/models/fashion", "GET, HEAD"),
        ("DELETE", "/v2/models/fashion/ready", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_with_the_right_ones(service, method, path, allowed):
    """Even that has the one shape of an error."""
    answer = service.request(method, path)
    assert allowed in refusal(answer, 405)
    assert answer.headers["allow"] == allowed


BAD_BODIES = {
    "nothing": (b"", {}),
    "not JSON": (b"{", {}),
    "nested 45,000 deep": (b"[" * 45_000 + b"]" * 45_000, {}),
    "a shape of 2^60": (v2_messages.request({"image": PIXELS})[0].replace(b"[3, 1,", b"[3, %d," % 2**60), {}),
    "a header length beyond the body": (b"{}", {HEADER_LENGTH: "1000"}),
    "a header length of words": (b"{}", {HEADER_LENGTH: "ten"}),
    "a negative header length": (b"{}", {HEADER_LENGTH: "-1"}),
    "a deadline of 0": (v2_messages.request({"image": PIXELS})[0], {"X-Deadline-Ms": "0"}),
}  # fmt: skip


@pytest.mark.parametrize(("body", "headers"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_bad_bodies_are_400_and_the_service_lives(service, body, headers):
    """Whatever was sent, the next caller is served."""
    refusal(service.post(INFER, content=body, headers=headers), 400)
    assert service.get("/v2/health/live").json() == {"live": True}


def test_a_timeout_that_cannot_be_kept_is_refused(service):
    """A microsecond is over before anything runs: 503 with Retry-After, or 504."""
    body, _ = v2_messages.request({"image": PIXELS}, parameters={"timeout": 1})
    answer = service.post(INFER, content=body)
    refusal(answer, answer.status_code)
    assert answer.status_code in (503, 504)
    assert answer.status_code == 504 or int(answer.headers["retry-after"]) >= 1


def test_a_failed_request_is_counted(service):
    """What the batcher refuses stands under `fail`, not under `success`."""
    before = service.get("/v2/models/fashion/stats").json()["model_stats"][0]["inference_stats"]
    test_a_timeout_that_cannot_be_kept_is_refused(service)
    after = service.get("/v2/models/fashion/stats").json()["model_stats"][0]["inference_stats"]
    assert after["fail"]["count"] == before["fail"]["count"] + 1
    assert after["success"] == before["success"]


def test_a_request_in_ten_thousand_chunks_is_read(service):
    """Chunks of one byte are put together; nothing recurses over them."""
    body, _ = v2_messages.request({"identity": np.arange(4)[None]})
    host, port = service.base_url.host, service.base_url.port
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body + b" " * 10_000) + b"0\r\n\r\n"
    lines = (f"Host: {host}", "Transfer-Encoding: chunked", "Connection: close", "", "")
    head = "\r\n".join(("POST /v2/models/echo/infer HTTP/1.1", *lines))
    with socket.create_connection((host, port)) as connection:
        connection.sendall(head.encode() + chunks)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"data":[0,1,2,3]' in answer
