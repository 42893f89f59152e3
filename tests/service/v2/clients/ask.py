"""Run by test_clients in another environment: asks a service with one published client and keeps what it gave.

`ask.py CLIENT HTTP_URL GRPC_ADDRESS IMAGES.npy OUTPUTS.npz`; nothing of ours is imported but `descriptors`, which the
client of that name compares with Triton's own.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path

import numpy as np

OUTPUTS = ("logits", "probabilities", "class_id")
BATCHES = (1, 7, 64, 256, 1000)  # taken in turn until all images were sent, and then all of them in one request


def parts(images):
    """Slices of all sizes that cover the images."""
    start = number = 0
    while start < len(images):
        stop = start + BATCHES[number % len(BATCHES)]
        yield images[start:stop]
        start, number = stop, number + 1


def refusal(kind, ask, batch):
    try:
        ask(batch)
    except kind as err:
        return err.message()
    return "it was taken"


def triton_http(url, address, images, binary):
    import tritonclient.http as client

    server = client.InferenceServerClient(url.removeprefix("http://"))
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("fashion")
    assert server.is_model_ready("fashion", "1")
    assert "statistics" in server.get_server_metadata()["extensions"]
    assert server.get_model_metadata("fashion")["inputs"][0]["shape"] == [-1, 1, 28, 28]
    assert server.get_model_config("fashion")["input"][0]["dims"] == [1, 28, 28]
    wanted = [client.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]

    def ask(batch, **options):
        tensor = client.InferInput("image", list(batch.shape), "UINT8")
        tensor.set_data_from_numpy(batch, binary_data=binary)
        result = server.infer("fashion", [tensor], **{"outputs": wanted, **options})
        return [result.as_numpy(name) for name in OUTPUTS]

    long = {"response_compression_algorithm": "gzip"}  # beyond 64 KiB it is taken at its word
    for one, other in zip(ask(images[:3000]), ask(images[:3000], **long), strict=True):
        np.testing.assert_array_equal(one, other)
    few = images[:5]
    compressed = {"request_compression_algorithm": "deflate", "response_compression_algorithm": "gzip"}
    for options in ({"outputs": None}, {"request_compression_algorithm": "gzip"}, compressed, {"timeout": 5_000_000}):
        for one, other in zip(ask(few), ask(few, **options), strict=True):
            np.testing.assert_array_equal(one, other)
    assert "expected [N, 1, 28, 28]" in refusal(client.InferenceServerException, ask, images[:2, :, :27])
    assert server.get_inference_statistics("fashion")["model_stats"][0]["inference_count"] > 0
    return ask


def triton_grpc(url, address, images):
    import tritonclient.grpc as client

    server = client.InferenceServerClient(address)
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("fashion", "1")
    assert server.get_model_metadata("fashion").inputs[0].shape == [-1, 1, 28, 28]
    assert server.get_model_config("fashion").config.input[0].dims == [1, 28, 28]
    assert server.get_server_metadata().name == "foldserve"

    def ask(batch):
        tensor = client.InferInput("image", list(batch.shape), "UINT8")
        tensor.set_data_from_numpy(batch)
        result = server.infer("fashion", [tensor], client_timeout=300)
        return [result.as_numpy(name) for name in OUTPUTS]

    assert server.get_inference_statistics("fashion").model_stats[0].name == "fashion"
    return ask


def kserve_tensor(batch):
    from kserve import InferInput

    tensor = InferInput("image", list(batch.shape), "UINT8")
    tensor.set_data_from_numpy(batch, binary_data=True)
    return tensor


def kserve_http(url, address, images):
    from kserve import InferenceRESTClient, InferRequest, RESTConfig

    loop = asyncio.new_event_loop()
    server = InferenceRESTClient(RESTConfig(protocol="v2", timeout=300, retries=0))
    assert loop.run_until_complete(server.is_server_live(url))
    assert loop.run_until_complete(server.is_server_ready(url))
    assert loop.run_until_complete(server.is_model_ready(url, "fashion"))

    def ask(batch):
        request = InferRequest("fashion", [kserve_tensor(batch)])
        answer = loop.run_until_complete(server.infer(url, request, model_name="fashion"))
        outputs = {output.name: output.as_numpy() for output in answer.outputs}
        return [outputs[name] for name in OUTPUTS]

    return ask


def kserve_grpc(url, address, images):
    from kserve import InferenceGRPCClient, InferRequest

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def connect():
        return InferenceGRPCClient(address, timeout=300, channel_args=[("grpc.max_receive_message_length", -1)])

    server = loop.run_until_complete(connect())
    assert loop.run_until_complete(server.is_server_ready())
    assert loop.run_until_complete(server.is_model_ready("fashion"))

    def ask(batch):
        answer = loop.run_until_complete(server.infer(InferRequest("fashion", [kserve_tensor(batch)])))
        outputs = {output.name: output.as_numpy() for output in answer.outputs}
        return [outputs[name] for name in OUTPUTS]

    return ask


def compare_descriptors():
    """Hold every message, field and call of our .proto against Triton's own descriptors."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    path = Path(__file__).parents[4] / "service/v2/rpc/descriptors.py"
    spec = importlib.util.spec_from_file_location("descriptors", path)
    descriptors = sys.modules["descriptors"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(descriptors)
    ours = descriptors.INFERENCE
    theirs = {**model_config_pb2.DESCRIPTOR.message_types_by_name, **service_pb2.DESCRIPTOR.message_types_by_name}
    for name, message in ours.messages.items():
        compare_message(message.DESCRIPTOR, theirs[name])
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in ours.methods:
        other = methods[method.name]
        assert (method.request.DESCRIPTOR.name, method.response.DESCRIPTOR.name) == (
            other.input_type.name, other.output_type.name,
        )  # fmt: skip
        assert (method.is_client_streaming, method.is_server_streaming) == (
            other.client_streaming, other.server_streaming,
        )  # fmt: skip


def read_configuration(url):
    """Read the published config.pbtxt, and the configuration that the service gives, as Triton's own message."""
    import tritonclient.http as client
    from google.protobuf import json_format, text_format
    from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

    folder = Path(__file__).parents[4] / "models/lenet-bn"
    published = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    assert (published.name, published.backend, published.max_batch_size) == ("lenet-bn", "onnxruntime", 256)
    tensors = {tensor.name: (DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in published.input}
    tensors |= {tensor.name: (DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in published.output}
    assert tensors == {
        "image": ("TYPE_UINT8", [1, 28, 28]), "logits": ("TYPE_FP32", [10]), "probabilities": ("TYPE_FP32", [10]),
        "class_id": ("TYPE_INT64", [1]),
    }  # fmt: skip
    (labelled,) = [tensor for tensor in published.output if tensor.label_filename]
    assert len((folder / labelled.label_filename).read_text().splitlines()) == labelled.dims[0]
    served = client.InferenceServerClient(url.removeprefix("http://")).get_model_config("fashion")
    assert json_format.ParseDict(served, ModelConfig()).input[0].dims == [1, 28, 28]  # no member that it does not know


def compare_message(ours, theirs):
    for field in ours.fields:
        if (ours.name, field.name) == ("ModelMetadataResponse", "properties"):
            continue  # in the protocol's own text, not in Triton's
        other = theirs.fields_by_name[field.name]
        for attribute in ("number", "type", "is_repeated"):
            assert getattr(field, attribute) == getattr(other, attribute), (ours.name, field.name, attribute)
        if field.enum_type:
            known = {value.name: value.number for value in other.enum_type.values}
            for value in field.enum_type.values:
                assert known[value.name] == value.number, value.name
    for nested in ours.nested_types:
        if nested.name == "PropertiesEntry":
            continue
        compare_message(nested, theirs.nested_types_by_name[nested.name])


def main(kind, url, address, images_file, outputs_file):
    if kind == "descriptors":
        return compare_descriptors()
    if kind == "configuration":
        return read_configuration(url)
    images = np.load(images_file)
    asks = {
        "triton_http_binary": lambda: triton_http(url, address, images, True),
        "triton_http_json": lambda: triton_http(url, address, images, False),
        "triton_grpc": lambda: triton_grpc(url, address, images),
        "kserve_http": lambda: kserve_http(url, address, images),
        "kserve_grpc": lambda: kserve_grpc(url, address, images),
    }
    ask = asks[kind]()
    answers = [ask(batch) for batch in parts(images)]
    joined = [np.concatenate(arrays) for arrays in zip(*answers, strict=True)]
    for one, other in zip(joined, ask(images), strict=True):
        np.testing.assert_array_equal(one, other)
    return np.savez(outputs_file, **dict(zip(OUTPUTS, joined, strict=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
