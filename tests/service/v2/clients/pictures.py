"""Run by test_public_clients in another environment: asks for picture files, and for their pixels, with one client.

`pictures.py CLIENT HTTP_URL GRPC_ADDRESS ASKED.npz ANSWERED.npz`; ASKED holds `files` (all bytes in a row), their
`sizes` and `pixels` (N, C, H, W). Nothing of ours is imported.
"""

import asyncio
import sys

import numpy as np

MODEL, INPUT, OUTPUT = "net", "image", "probabilities"


def triton_http(url, address):
    import tritonclient.http as client

    server = client.InferenceServerClient(url.removeprefix("http://"))
    assert server.is_model_ready(MODEL)
    return lambda array, datatype: triton(client, server, array, datatype)


def triton_grpc(url, address):
    import tritonclient.grpc as client

    server = client.InferenceServerClient(address)
    assert server.is_model_ready(MODEL)
    return lambda array, datatype: triton(client, server, array, datatype)


def triton(client, server, array, datatype):
    tensor = client.InferInput(INPUT, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return server.infer(MODEL, [tensor]).as_numpy(OUTPUT)


def kserve_http(url, address):
    from kserve import InferenceRESTClient, RESTConfig

    loop = asyncio.new_event_loop()
    server = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60, retries=0))
    assert loop.run_until_complete(server.is_model_ready(url, MODEL))
    return lambda array, datatype: kserve(
        lambda request: loop.run_until_complete(server.infer(url, request, model_name=MODEL)), array, datatype
    )


def kserve_grpc(url, address):
    from kserve import InferenceGRPCClient

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def connect():
        return InferenceGRPCClient(address, timeout=60)

    server = loop.run_until_complete(connect())
    return lambda array, datatype: kserve(
        lambda request: loop.run_until_complete(server.infer(request)), array, datatype
    )


def kserve(infer, array, datatype):
    from kserve import InferInput, InferRequest

    tensor = InferInput(INPUT, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=True)
    answer = infer(InferRequest(MODEL, [tensor]))
    return {output.name: output.as_numpy() for output in answer.outputs}[OUTPUT]


def main(kind, url, address, asked_file, answered_file):
    asks = {"triton_http": triton_http, "triton_grpc": triton_grpc, "kserve_http": kserve_http,
            "kserve_grpc": kserve_grpc}  # fmt: skip
    ask = asks[kind](url, address)
    with np.load(asked_file) as asked:
        pixels, whole, sizes = asked["pixels"], asked["files"].tobytes(), asked["sizes"]
    ends = np.cumsum(sizes)
    files = np.array([whole[end - size : end] for end, size in zip(ends, sizes, strict=True)], np.object_)
    np.savez(answered_file, files=ask(files, "BYTES"), pixels=ask(pixels, "UINT8"))


if __name__ == "__main__":
    main(*sys.argv[1:])
