"""The protocol over gRPC, over a real connection with nothing but the grpc library."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts, v2_messages
from tests.support.live import serve

grpc = pytest.importorskip("grpc", reason="needs the extra grpc")

from foldserve.service.errors import ServiceError  # noqa: E402
from foldserve.service.keys import new_key  # noqa: E402
from foldserve.service.v2.rpc.descriptors import HEALTH  # noqa: E402
from tests.support.error_classes import tree  # noqa: E402
from tests.support.grpc_calls import CONTENTS, MESSAGES, PIXELS, request, stubs  # noqa: E402

MAX_ROWS = 40


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """HTTP and gRPC of one application; `calls` holds a function for each rpc."""
    root: Path = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root, version=2)
    artifacts.publish_echo(root)
    artifacts.publish_two_inputs(root)
    settings = Settings(models_dir=root, provider="cpu", buckets=(1, 2, 8), max_rows=MAX_ROWS, grpc_port=0)
    app = create_app(settings)
    with (
        serve(app) as url,
        httpx.Client(base_url=url) as http,
        grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel,
    ):
        yield SimpleNamespace(http=http, calls=stubs(channel), app=app)


def outputs_of(response):
    """Outputs by name, raw or typed."""
    outputs = {}
    for position, entry in enumerate(response.outputs):
        dtype = v2_messages._dtype(entry.datatype)
        if response.raw_output_contents:
            plain = {"shape": list(entry.shape), "datatype": entry.datatype}
            outputs[entry.name] = v2_messages._from_bytes(plain, response.raw_output_contents[position])
        else:
            values = list(getattr(entry.contents, CONTENTS[entry.datatype]))
            outputs[entry.name] = np.array(values, dtype).reshape(entry.shape)
    return outputs


def refused(call, message, code):
    """The sentence with which a call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call(message)
    assert caught.value.code() == code, caught.value
    return caught.value.details()


@pytest.mark.parametrize("form", ["raw", "typed"])
@pytest.mark.parametrize("wanted", ["raw", "typed"])
def test_both_forms_give_the_same_bytes_as_http(service, form, wanted):
    """The way in and out never changes a bit of the answer, which is raw unless the request says otherwise."""
    message = request(form=form, id="q-1")
    if wanted == "typed":
        message.parameters["binary_data_output"].bool_param = False
    response = service.calls.ModelInfer(message)
    assert (response.model_name, response.model_version, response.id) == ("fashion", "2", "q-1")
    assert bool(response.raw_output_contents) == (wanted == "raw")
    body, length = v2_messages.request({"image": PIXELS}, "binary", parameters={"binary_data_output": True})
    headers = {"Inference-Header-Content-Length": str(length)}
    http = service.http.post("/v2/models/fashion/infer", content=body, headers=headers)
    _, expected = v2_messages.answer(http.content, int(http.headers["Inference-Header-Content-Length"]))
    outputs = outputs_of(response)
    assert list(outputs) == list(expected) == ["logits", "probabilities", "class_id"]
    for name, array in expected.items():
        assert outputs[name].tobytes() == array.tobytes(), name


def test_several_inputs_and_more_rows_than_a_bucket(service):
    """Inputs are matched by name, and 40 rows through buckets of 8 come back in order."""
    left, right = np.random.default_rng(2).standard_normal((2, MAX_ROWS, 3)).astype(np.float32)
    response = service.calls.ModelInfer(request("sum", {"right": right, "left": left}))
    np.testing.assert_array_equal(outputs_of(response)["sum"], left + right)


def test_outputs_are_those_asked_for_and_may_be_classified(service):
    """Only the named outputs come back, in their order, as the k largest values where that is wanted."""
    message = request(inputs={"image": PIXELS})
    message.outputs.add(name="class_id")
    message.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    outputs = outputs_of(service.calls.ModelInfer(message))
    assert list(outputs) == ["class_id", "probabilities"]
    for class_id, (entry,) in zip(outputs["class_id"].ravel(), outputs["probabilities"], strict=True):
        assert entry.decode().split(":")[1:] == [str(class_id), artifacts.LABELS[class_id]]


def test_one_output_may_be_typed_and_the_way_back_is_a_boolean(service):
    """`binary_data` of an output wins over the request; anything but true and false is refused."""
    message = request()
    message.outputs.add(name="class_id").parameters["binary_data"].bool_param = False
    response = service.calls.ModelInfer(message)
    assert len(response.outputs[0].contents.int64_contents) == len(PIXELS)
    message.outputs[0].parameters["binary_data"].string_param = "no"
    sentence = refused(service.calls.ModelInfer, message, grpc.StatusCode.INVALID_ARGUMENT)
    assert sentence.startswith("outputs[0].parameters.binary_data: ")


def test_each_answer_of_a_stream_is_the_final_one(service):
    """Triton's clients count requests by this parameter, refused ones too, and may ask for it in so many words."""
    good, bad = request(), request("unknown")
    good.parameters["triton_enable_empty_final_response"].bool_param = True
    answers = list(service.calls.ModelStreamInfer(iter([good, bad, good])))
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)
    good.parameters["triton_enable_empty_final_response"].string_param = "yes"
    assert "expected true or false" in refused(service.calls.ModelInfer, good, grpc.StatusCode.INVALID_ARGUMENT)


def test_trailers_say_what_http_says_in_headers(service):
    """Request id, version and times come with every answer."""
    _, call = service.calls.ModelInfer.with_call(request())
    trailers = dict(call.trailing_metadata())
    assert trailers["x-model-version"] == "2"
    assert len(trailers["x-request-id"]) == 16
    assert "infer;dur=" in trailers["server-timing"]


def test_a_stream_is_answered_in_its_order_and_survives_a_refusal(service):
    """Forty requests of one stream, one of them bad: each gets its own answer in its place."""
    rows = [np.full((1, 4), number, np.int64) for number in range(40)]
    messages = [request("echo", {"identity": row}, id=str(number)) for number, row in enumerate(rows)]
    messages[7] = request("unknown", {"identity": rows[7]}, id="7")
    answers = list(service.calls.ModelStreamInfer(iter(messages)))
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(40)]
    for number, answer in enumerate(answers):
        if number == 7:
            assert answer.error_message.startswith("model 'unknown' is not served")
        else:
            assert answer.error_message == ""
            np.testing.assert_array_equal(outputs_of(answer.infer_response)["echo"], rows[number])


def test_metadata_config_and_statistics_are_those_of_http(service):
    """One source: both ports describe a model alike."""
    named = {"name": "fashion"}
    described = service.http.get("/v2/models/fashion").json()
    metadata = service.calls.ModelMetadata(MESSAGES["ModelMetadataRequest"](**named))
    assert metadata.platform == described["platform"]
    assert list(metadata.versions) == described["versions"]
    assert dict(metadata.properties) == described["properties"]
    for kind in ("inputs", "outputs"):
        assert [(t.name, t.datatype, list(t.shape)) for t in getattr(metadata, kind)] == [
            (t["name"], t["datatype"], t["shape"]) for t in described[kind]
        ]
    config = service.calls.ModelConfig(MESSAGES["ModelConfigRequest"](**named)).config
    assert config.max_batch_size == MAX_ROWS
    assert [(entry.data_type, list(entry.dims)) for entry in config.input] == [(2, [1, 28, 28])]  # TYPE_UINT8
    assert list(config.dynamic_batching.preferred_batch_size) == [1, 2, 8]
    counted = service.http.get("/v2/models/fashion/stats").json()["model_stats"][0]
    statistics = service.calls.ModelStatistics(MESSAGES["ModelStatisticsRequest"](**named)).model_stats[0]
    assert statistics.inference_count == counted["inference_count"]
    assert statistics.inference_stats.success.ns == counted["inference_stats"]["success"]["ns"]
    assert len(service.calls.ModelStatistics(MESSAGES["ModelStatisticsRequest"]()).model_stats) == 3


def test_liveness_readiness_and_health(service):
    """The protocol's own calls and the standard health service agree."""
    assert service.calls.ServerLive(MESSAGES["ServerLiveRequest"]()).live
    assert service.calls.ServerReady(MESSAGES["ServerReadyRequest"]()).ready
    for name, expected in (("fashion", True), ("unknown", False)):
        assert service.calls.ModelReady(MESSAGES["ModelReadyRequest"](name=name)).ready == expected
    check = HEALTH.messages["HealthCheckRequest"]
    for name in ("", "inference.GRPCInferenceService"):
        assert service.calls.Check(check(service=name)).status == 1  # SERVING
    assert "is not one of this server" in refused(
        service.calls.Check, check(service="other"), grpc.StatusCode.NOT_FOUND
    )
    watch = service.calls.Watch(check())
    assert next(watch).status == 1
    watch.cancel()


def test_server_metadata_is_that_of_http(service):
    """Name, version and the same honest list of extensions."""
    described = service.http.get("/v2").json()
    metadata = service.calls.ServerMetadata(MESSAGES["ServerMetadataRequest"]())
    assert metadata.name == described["name"]
    assert metadata.version == described["version"]
    assert list(metadata.extensions) == described["extensions"]


def broken(**changes):
    """A request with one thing wrong; a callable changes the message."""
    message = request(inputs=changes.pop("inputs", None), form=changes.pop("form", "raw"))
    for change in changes.values():
        change(message)
    return message


def with_both(message):
    message.inputs[0].contents.uint_contents.extend(PIXELS.ravel().tolist())


def with_wrong_list(message):
    message.inputs[0].contents.fp32_contents.append(1)


def with_too_large(message):
    message.inputs[0].contents.uint_contents[5] = 256


def with_one_less(message):
    del message.inputs[0].contents.uint_contents[-1]


def with_huge_shape(message):
    message.inputs[0].shape[2] = 2**60


def with_negative_rows(message):
    message.inputs[0].shape[0] = -3


def with_unknown_output(message):
    message.outputs.add(name="logit")


def with_bad_timeout(message):
    message.parameters["timeout"].int64_param = -1


REFUSALS = [
    (broken(x=lambda m: m.raw_input_contents.append(b"x")), "raw_input_contents: got 2, expected one for each of 1"),
    (broken(x=with_both), "inputs[0]: both contents and raw_input_contents"),
    (broken(form="typed", x=with_wrong_list), "inputs[0].contents: got fp32_contents, expected nothing but"),
    (broken(form="typed", x=with_too_large), "a value outside 0 to 255"),
    (broken(form="typed", x=with_one_less), "2351 values, expected 2352"),
    (broken(x=with_huge_shape), "input 'image': shape [3, 1, 1152921504606846976, 28]"),
    (broken(x=with_negative_rows), "input 'image': shape [-3, 1, 28, 28]"),
    (broken(x=with_unknown_output), "'logit' is not an output"),
    (broken(x=with_bad_timeout), "parameters.timeout: -1"),
    (broken(inputs={"image": PIXELS.astype(np.float32)}), "datatype FP32, expected UINT8"),
    (broken(inputs={"picture": PIXELS}), "name 'picture', expected one of ['image']"),
    (broken(inputs={"image": artifacts.images(MAX_ROWS + 1)}), "41 rows, expected at most 40"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "expected"), REFUSALS, ids=[expected[:40] for _, expected in REFUSALS])
def test_what_will_not_do_is_invalid_and_said_in_one_sentence(service, message, expected):
    """The sentences are those of HTTP, under INVALID_ARGUMENT."""
    assert expected in refused(service.calls.ModelInfer, message, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("version", ["1", "latest", "0", "99999999999999999999"])
def test_versions_that_are_not_served_are_not_found(service, version):
    """A version that does not exist is NOT_FOUND, whatever it is written like."""
    refused(service.calls.ModelInfer, request(model_version=version), grpc.StatusCode.NOT_FOUND)


def test_shared_memory_is_unimplemented(service):
    """Calls and parameters of extensions that are not offered say so."""
    message = request()
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert "not offered" in refused(service.calls.ModelInfer, message, grpc.StatusCode.UNIMPLEMENTED)


def test_a_message_over_the_limit_is_refused(service):
    """What is larger than a body may be never reaches the service."""
    message = request()
    message.raw_input_contents[0] = bytes(service.app.state.settings.max_body_bytes + 1_000_000)
    refused(service.calls.ModelInfer, message, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_a_deadline_that_cannot_be_kept_is_refused(service):
    """The parameter `timeout` holds here too: UNAVAILABLE with retry-after, or DEADLINE_EXCEEDED."""
    message = request()
    message.parameters["timeout"].int64_param = 1
    with pytest.raises(grpc.RpcError) as caught:
        service.calls.ModelInfer(message)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    if caught.value.code() == grpc.StatusCode.UNAVAILABLE:
        assert int(dict(caught.value.trailing_metadata())["retry-after"]) >= 1


def test_calls_are_counted_beside_those_of_http(service):
    """Each call stands in the metrics under its own path and the status that HTTP would have given."""
    service.calls.ModelInfer(request())
    refused(service.calls.ModelInfer, request("unknown"), grpc.StatusCode.NOT_FOUND)
    text = service.http.get("/metrics").text
    route = "/inference.GRPCInferenceService/ModelInfer"
    for status in ("200", "404"):
        assert f'foldserve_requests_total{{method="POST",route="{route}",status="{status}"}}' in text


def test_every_error_has_a_status():
    """No error of the service is UNKNOWN in gRPC."""
    for kind in tree(ServiceError):
        assert grpc.StatusCode[kind.grpc_status] not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK), kind


def test_a_port_that_is_taken_ends_the_start(service, tmp_path):
    """The reason names the port and the setting."""
    artifacts.publish_echo(tmp_path)
    port = service.app.state.grpc.port
    app = create_app(Settings(models_dir=tmp_path, provider="cpu", buckets=(1,), grpc_port=port))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(OSError, match="choose another --grpc-port"):
        asyncio.run(start())
    assert json.dumps(app.state.start_failure)


@pytest.mark.parametrize(
    ("proxies", "said", "expected"),
    [
        ((), ["203.0.113.9"], "127.0.0.1"),
        (("127.0.0.1",), ["203.0.113.9"], "203.0.113.9"),
        (("127.0.0.1",), ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        (("127.0.0.1", "203.0.113.0/24"), ["198.51.100.1, 203.0.113.9"], "198.51.100.1"),
        (("127.0.0.1",), ["not an address"], "127.0.0.1"),
        (("127.0.0.1",), [], "127.0.0.1"),
    ],
)
def test_a_trusted_proxy_names_the_client(fashion, tmp_path, caplog, proxies, said, expected):
    """As over HTTP: the last address that no trusted proxy has stands in the log; others may say what they like."""
    keys = tmp_path / "keys"
    keys.write_text(new_key("k", ["infer"])[1] + "\n")
    settings = Settings(
        models_dir=fashion, provider="cpu", buckets=(1,), grpc_port=0, keys_file=keys, trusted_proxies=proxies
    )
    app = create_app(settings)
    caplog.set_level("INFO", "foldserve.audit")
    with serve(app), grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel:
        metadata = [("x-api-key", "wrong"), *(("x-forwarded-for", value) for value in said)]
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            stubs(channel).ModelInfer(request(), metadata=metadata)
    (line,) = [record for record in caplog.records if record.getMessage() == "API key refused"]
    assert line.address == expected
