"""The end of a service as a balancer sees it: first it is not ready, later it is not there, and nothing is lost."""

import signal
import socket
import time

import httpx
import pytest

from tests.support.processes import OCTETS, children, is_gone, read_until, started

WORKERS = ["1", pytest.param("2", marks=pytest.mark.slow)]


def get(address: str, path: str) -> int:
    return httpx.get(f"{address}{path}", timeout=30).status_code


def predict(address: str) -> int:
    return httpx.post(f"{address}/predict", content=bytes(784), headers=OCTETS, timeout=30).status_code


@pytest.mark.parametrize("workers", WORKERS)
def test_a_service_that_leaves_is_not_ready_and_answers_on(fashion, workers):
    """Each door that says whether it is ready says no, new connections are taken and answered, and it ends with 0."""
    flags = ("--models-dir", str(fashion), "--leave-seconds", "4", "--workers", workers)
    with started(*flags, ready_lines=int(workers)) as (process, address):
        assert get(address, "/v2/health/ready") == 200
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        while get(address, "/v2/health/ready") == 200 or get(address, "/v2/health/ready") == 200:
            assert time.monotonic() < told + 3
        for path in ("/v2/health/ready", "/v2/models/fashion/ready", "/v1/models/fashion", "/v1/models", "/ping"):
            assert get(address, path) == 503
        assert get(address, "/v2/health/live") == 200
        assert get(address, "/v2/models/fashion") == 200
        answered = 0
        try:
            while predict(address) == 200:
                answered += 1
        except httpx.TransportError:
            pass
        assert answered
        assert process.wait(30) == 0
        assert time.monotonic() > told + 4


@pytest.mark.parametrize("workers", WORKERS)
def test_a_service_that_leaves_answers_on_over_grpc(fashion, workers):
    """A connection that a balancer keeps and a new one: not ready at once, calls answered until the end."""
    grpc = pytest.importorskip("grpc", reason="needs the extra grpc")
    from foldserve.service.v2.rpc.descriptors import HEALTH, INFERENCE
    from tests.support.grpc_calls import request, stubs

    def is_ready(calls) -> bool:
        asked = HEALTH.messages["HealthCheckRequest"]()
        ready = calls.ServerReady(INFERENCE.messages["ServerReadyRequest"](), timeout=20).ready
        return ready or calls.Check(asked, timeout=20).status == 1

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--models-dir", str(fashion), "--leave-seconds", "4", "--workers", workers, "--grpc-port", str(port))
    with (
        started(*flags, ready_lines=int(workers)) as (process, _),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        calls, answered = stubs(channel), {"kept": 0, "new": 0}
        assert is_ready(calls)
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        while is_ready(calls):
            assert time.monotonic() < told + 3

        def ask_until_the_end() -> None:
            while True:
                assert len(calls.ModelInfer(request(), timeout=20).raw_output_contents) > 0
                answered["kept"] += 1
                # A subchannel of its own, or the library would use the connection that it has.
                options = [("grpc.use_local_subchannel_pool", 1)]
                with grpc.insecure_channel(f"127.0.0.1:{port}", options) as other:
                    stubs(other).ModelInfer(request(), timeout=20)
                answered["new"] += 1

        with pytest.raises(grpc.RpcError) as ended:
            ask_until_the_end()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert min(answered.values()) > 0
        assert process.wait(30) == 0
        assert time.monotonic() > told + 4


@pytest.mark.parametrize("workers", WORKERS)
def test_a_second_signal_ends_the_leaving(fashion, workers):
    """Whoever cannot wait need not."""
    flags = ("--models-dir", str(fashion), "--leave-seconds", "60", "--workers", workers)
    with started(*flags, ready_lines=int(workers)) as (process, address):
        assert get(address, "/v2/health/ready") == 200
        process.send_signal(signal.SIGTERM)
        read_until(process, "leaving")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.slow
def test_a_worker_that_is_replaced_does_not_make_the_service_unready(fashion):
    """SIGUSR2: the port stays, so the old worker ends at once and nobody is told to stay away."""
    flags = ("--models-dir", str(fashion), "--leave-seconds", "60", "--workers", "2")
    with started(*flags, ready_lines=2) as (process, address):
        before = children(process.pid)
        process.send_signal(signal.SIGUSR2)
        until = time.monotonic() + 40
        while not all(is_gone(worker) for worker in before):
            assert time.monotonic() < until
            assert get(address, "/v2/health/ready") == 200
        assert predict(address) == 200
