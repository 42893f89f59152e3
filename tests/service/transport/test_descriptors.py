"""A service with fewer descriptors than connections: it takes fewer of them, says so, and stays reachable."""

import contextlib
import resource
import socket
import subprocess

import pytest

from foldserve.service.settings import Settings
from foldserve.service.transport import descriptors
from tests.support.processes import command, environment, started

HEALTH = b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(("limit", "allowed"), [(1, 1), (128, 64), (1_024, 768), (1 << 20, (1 << 20) - 256)])
def test_some_descriptors_are_kept_back(limit: int, allowed: int) -> None:
    """256, or half of a limit that is small; there is always one connection."""
    assert descriptors.allowed_connections(limit) == allowed
    assert descriptors.allowed_connections(resource.RLIM_INFINITY) > 1_000_000


def test_workers_and_grpc_have_descriptors_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps sixteen open; where nearly nothing is left there is still a connection of each kind."""
    for limit, http, rpc in ((128, 36, 4), (64, 1, 1)):
        monkeypatch.setattr(descriptors, "raise_limit", lambda limit=limit: limit)
        fitted = descriptors.fit_to_descriptors(Settings(grpc_port=0, workers=2))
        assert (fitted.max_connections, fitted.grpc_max_connections) == (http, rpc)


def test_an_address_keeps_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lowered is lowered for one address too, and settings that fit stay as they are."""
    monkeypatch.setattr(descriptors, "raise_limit", lambda: 1_024)
    fitted = descriptors.fit_to_descriptors(Settings())
    assert (fitted.max_connections, fitted.max_connections_per_address) == (768, 384)
    small = Settings(max_connections=768)
    assert descriptors.fit_to_descriptors(small) is small


def test_grpc_has_a_quarter_at_most_and_takes_three_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is switched on its connections are lowered too, and those of HTTP have what is left."""
    monkeypatch.setattr(descriptors, "raise_limit", lambda: 1_024)
    fitted = descriptors.fit_to_descriptors(Settings(grpc_port=0))
    assert (fitted.grpc_max_connections, fitted.grpc_max_connections_per_address) == (64, 32)
    assert fitted.max_connections + 3 * fitted.grpc_max_connections == 768


@pytest.mark.parametrize("workers", ["1", "2"])
def test_too_few_to_start_with_are_one_line(fashion, workers: str) -> None:
    """Below 64 nothing is tried that would fail half-way: exit code 3, and what to raise."""
    argv = [
        "/bin/sh",
        "-c",
        'ulimit -n 63; exec "$@"',
        "sh",
        *command("--models-dir", str(fashion), "--workers", workers),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=60)
    expected = "foldserve serve: this process may open 63 files, expected at least 64: raise ulimit -n\n"
    assert (done.returncode, done.stderr) == (3, expected)


def test_the_soft_limit_is_raised(fashion) -> None:
    """A low soft limit under a hard one that suffices costs nothing."""
    shell = "ulimit -S -n 200; ulimit -H -n 9000"
    with started("--models-dir", str(fashion), shell=shell) as (process, _):
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (9_000, 9_000)
        assert not [event for event in process.events if event["level"] == "warning"]


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_silent_connections_leave_room_for_others(fashion, workers: str) -> None:
    """500 silent clients of one address at 128 descriptors: another address is answered, and so is theirs, with 503."""
    flags = ("--models-dir", str(fashion), "--workers", workers)
    with started(*flags, shell="ulimit -n 128", ready_lines=int(workers)) as (process, address):
        (warning,) = [event for event in process.events if "--max-connections is lowered" in event["event"]]
        assert "from 8192 to 64" in warning["event"]
        port = int(address.rsplit(":", 1)[1])
        with contextlib.ExitStack() as silent:
            for _ in range(500):
                silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            with socket.create_connection(("127.0.0.1", port), 5, source_address=("127.0.0.2", 0)) as other:
                other.sendall(HEALTH)
                assert other.recv(100).startswith(b"HTTP/1.1 200 ")
