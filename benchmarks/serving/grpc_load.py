"""Closed loop over gRPC: so many calls in flight on one channel, each followed by the next when its answer has come.

    python -m benchmarks.serving.grpc_load --port 8001 --connections 32 --seconds 8 --bodies images.bin

What `wrk` is to HTTP, in Python: the client costs more than the server, so that the server's CPU time for a request
says more than requests/s. The line that it prints is that of `wrk.lua`.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

import grpc
import numpy as np

from foldserve.service.v2.rpc.descriptors import INFERENCE

ROW_BYTES = 784


def messages(bodies: bytes, model: str) -> list[bytes]:
    """Return one `ModelInferRequest` with raw contents for each image."""
    made = []
    for start in range(0, len(bodies), ROW_BYTES):
        message = INFERENCE.messages["ModelInferRequest"](model_name=model)
        message.inputs.add(name="image", datatype="UINT8", shape=(1, 1, 28, 28))
        message.raw_input_contents.append(bodies[start : start + ROW_BYTES])
        made.append(message.SerializeToString())
    return made


async def load(port: int, requests: list[bytes], connections: int, seconds: float, header: str) -> dict[str, object]:
    """Ask for so many seconds, with a header unless that is empty; times in microseconds."""
    name, _, value = header.partition(": ")
    metadata = ((name.lower(), value),) if header else None
    times: list[float] = []
    failed = 0
    ends = time.perf_counter() + seconds

    async def keep_asking(infer: grpc.aio.UnaryUnaryMultiCallable, number: int) -> None:
        nonlocal failed
        while (asked := time.perf_counter()) < ends:
            try:
                await infer(requests[number % len(requests)], metadata=metadata)
            except grpc.RpcError:
                failed += 1
            else:
                times.append(time.perf_counter() - asked)
            number += 1

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = channel.unary_unary(f"/{INFERENCE.service}/ModelInfer")  # bytes in, bytes out
        await infer(requests[0], metadata=metadata)
        started = time.perf_counter()
        await asyncio.gather(*(keep_asking(infer, number) for number in range(connections)))
        took = time.perf_counter() - started
    p50, p99, p999 = (np.percentile(times, (50, 99, 99.9)) * 1e6).round().tolist()
    return {
        "requests": len(times), "seconds": took, "p50_us": p50, "p99_us": p99, "p999_us": p999,
        "not_2xx": failed, "failed": 0,
    }  # fmt: skip


def main() -> None:
    """Read the arguments, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="lenet-bn")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--bodies", type=Path, required=True, help=f"file of images of {ROW_BYTES} bytes each")
    parser.add_argument("--header", default="", help="that each call carries, as `Name: value`")
    arguments = parser.parse_args()
    requests = messages(arguments.bodies.read_bytes(), arguments.model)
    result = asyncio.run(load(arguments.port, requests, arguments.connections, arguments.seconds, arguments.header))
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
