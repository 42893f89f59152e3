"""K3: the port of gRPC as a door like that of HTTP: keys and sizes before anything is read, counts before loops."""

import contextlib
import multiprocessing
import socket
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

from benchmarks.ending import end_with_parent
from benchmarks.trust.asking import Answer, get
from benchmarks.trust.at_the_door import is_closed_within
from benchmarks.trust.row import Bench, Measured, Row
from benchmarks.trust.unasked import Unasked
from foldserve.service.keys import new_key

CALL = "/inference.GRPCInferenceService/ModelInfer"
NAME = b"\n\x08lenet-bn"
LARGE_CALLS = 8
SILENT = 50
LEAST_MIB = 64.0  # what may be held of messages that nobody has a key for
WORDS = {
    "large without a key": "UNAUTHENTICATED",
    "empty inputs": "INVALID_ARGUMENT",
    "garbage": "INVALID_ARGUMENT",
}


def floods(bench: Bench) -> Measured:
    """K3: large messages without a key, millions of empty inputs, bytes that are no message, silent connections."""
    with TemporaryDirectory() as name:
        key, line = new_key("trust", ["infer", "read"])
        (Path(name) / "keys").write_text(f"{line}\n")
        flags = f"--grpc-port 0 --header-seconds 2 --keys-file {name}/keys --closed-scopes infer"
        with Unasked(bench, str(bench.models), flags) as service:
            return flood(service, (("x-api-key", key),))


def flood(service: Unasked, key: tuple[tuple[str, str], ...]) -> Measured:
    """Make all of the attacks on one service."""
    port = next(event["port"] for event in service.events if event["event"] == "gRPC listens")
    with contextlib.ExitStack() as stack, senders() as pool:
        began = time.perf_counter()
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(SILENT)]
        before, found, beside = service.rss_mib(), {}, list[Answer]()
        large = [pool.submit(call, port, "large without a key", ()) for _ in range(LARGE_CALLS)]
        found["large without a key"] = watched(service, large, beside)
        grew = service.rss_mib() - before
        found["empty inputs"] = watched(service, [pool.submit(call, port, "empty inputs", key)], beside)
        found["garbage"] = watched(service, [pool.submit(call, port, "garbage", key)], beside)
        closed = sum(is_closed_within(one, max(began + 4, time.perf_counter() + 0.1)) for one in silent)
    worst = max(one.seconds for one in beside)
    wrong = [f"{name}: {', '.join(codes)}" for name, codes in found.items() if codes != {WORDS[name]}]
    words = f"{'; '.join(wrong) or 'each refused by its status'}; liveness beside them {worst * 1e3:.0f} ms at most"
    words = f"{words}; {grew:+.0f} MiB; {closed} of {SILENT} silent ones closed"
    is_live = worst <= 0.1 and {one.status for one in beside} == {200}
    return Measured(words, not wrong and is_live and grew <= LEAST_MIB and closed == SILENT)


def message(name: str) -> bytes:
    """The bytes of an attack."""
    if name == "large without a key":
        return NAME + b":\x80\x80\x80\x1c" + bytes(58_720_256)  # 56 MiB in raw_input_contents
    if name == "empty inputs":
        return NAME + b"*\0" * 4_000_000  # 8 MB that would become four million messages
    return b"\xff" * 1_000


def watched(service: Unasked, calls: list["Future[str]"], beside: list[Answer]) -> set[str]:
    """The statuses of some calls; meanwhile it is asked whether it lives."""
    while not all(one.done() for one in calls):
        beside.append(get(service.port, "/v2/health/live"))
        time.sleep(0.005)
    return {one.result() for one in calls}


def senders() -> ProcessPoolExecutor:
    """Processes of their own, so that what they send holds up nobody here who asks for the time."""
    pool = ProcessPoolExecutor(4, multiprocessing.get_context("spawn"), end_with_parent)
    list(pool.map(len, WORDS))  # they have started
    return pool


def call(port: int, name: str, metadata: tuple[tuple[str, str], ...]) -> str:
    """The status of one call that sends the bytes of this name."""
    data = message(name)
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        try:
            channel.unary_unary(CALL, bytes, bytes)(data, timeout=30, metadata=metadata)
        except grpc.RpcError as err:
            return str(err.code().name)
    return "OK"


ROWS = [
    Row(
        "K3",
        "the door of gRPC",
        "refused by its status; liveness <= 100 ms beside, memory <= 64 MiB, silent ones closed in time",
        floods,
        change="credulous-messages",
        part=12,
    ),
]
