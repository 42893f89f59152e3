"""`foldserve serve` as a user starts it: one line when it cannot start, an orderly end when it is told to."""

import contextlib
import json
import signal
import socket
from pathlib import Path

import httpx
import pytest

from foldserve.service.settings import MEBIBYTE
from foldserve.service.transport.listener import bind
from tests.support import artifacts
from tests.support.processes import OCTETS, failed, read_until, started


def test_it_starts_answers_and_ends(fashion):
    """A prediction from a real process, and exit code 0 on SIGTERM."""
    with started("--models-dir", str(fashion)) as (process, address):
        answer = httpx.post(f"{address}/predict", content=bytes(784), headers=OCTETS)
        assert len(answer.json()["predictions"]) == 1
        assert httpx.get(f"{address}/v2/health/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_stuck_upload_does_not_hold_up_the_end(fashion):
    """A client that sends half a body and stops is cut off after the drain time, and the exit code is still 0."""
    with started("--models-dir", str(fashion), "--drain-seconds", "1") as (process, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as stuck:
            stuck.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
                b"Content-Length: 784\r\nExpect: 100-continue\r\n\r\n"
            )
            assert stuck.recv(100).startswith(b"HTTP/1.1 100 ")  # the application is waiting for the body
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_second_sigterm_ends_it_at_once(fashion, workers):
    """A second signal ends the drain: the stuck client is cut off before the drain gives it up."""
    flags = ("--models-dir", str(fashion), "--drain-seconds", "60", "--workers", workers)
    with started(*flags, ready_lines=int(workers)) as (process, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as stuck:
            stuck.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n"
            )
            assert stuck.recv(100).startswith(b"HTTP/1.1 100 ")
            process.send_signal(signal.SIGTERM)
            assert read_until(process, "draining")
            process.send_signal(signal.SIGTERM)
            assert process.wait(50) == 0  # the drain alone would take longer


def test_a_port_in_use_is_one_line(fashion):
    """The line names the port and the flag that helps."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, lines = failed("--models-dir", str(fashion), "--port", port)
    assert code == 3
    (line,) = lines
    assert f"127.0.0.1:{port}: Address already in use" in line
    assert "--port" in line


def test_workers_answer_grpc_on_one_port_that_no_other_service_gets(fashion):
    """With `--grpc-port 0` all workers have the same free port, and a second service is told that it is taken."""
    pytest.importorskip("grpc", reason="needs the extra grpc")
    flags = ("--models-dir", str(fashion), "--workers", "2", "--grpc-port")
    with started(*flags, "0", ready_lines=2) as (process, _):
        ports = [event["port"] for event in process.events if event["event"] == "gRPC listens"]
        assert len(ports) == 2
        assert len(set(ports)) == 1
        code, (line,) = failed(*flags, str(ports[0]))
        assert code == 3
        assert f"127.0.0.1:{ports[0]}: Address already in use; choose another --grpc-port" in line


@pytest.mark.parametrize("damage", ["missing", "empty", "broken"])
def test_models_that_cannot_be_served_are_one_line(models: Path, damage: str):
    """A missing folder, an empty one, a model that is not what its manifest says: one line with the path, exit 3."""
    folder = models / "nowhere" if damage == "missing" else models
    if damage == "broken":
        (artifacts.publish_classifier(models) / "model.onnx").write_bytes(b"<html>")
    code, lines = failed("--models-dir", str(folder))
    assert code == 3
    (line,) = lines
    event = json.loads(line)
    assert event["level"] == "error"
    assert str(folder) in event["event"]
    assert "Traceback" not in line


@pytest.mark.parametrize("damage", ["empty", "broken"])
def test_workers_that_cannot_serve_are_not_started(models: Path, damage: str):
    """With several workers too, what is wrong with the models is one line, and there is no loop of restarts."""
    if damage == "broken":
        (artifacts.publish_classifier(models) / "model.onnx").write_bytes(b"<html>")
    code, lines = failed("--models-dir", str(models), "--workers", "2")
    assert code == 3
    (line,) = lines
    assert str(models) in line


def test_a_wrong_setting_is_told_before_anything_starts():
    """Exit code 2, as for every wrong command line."""
    code, lines = failed("--max-rows", "none")
    assert code == 2
    assert "--max-rows" in lines[-1]


def test_what_a_client_does_not_read_stays_with_us():
    """The system takes no megabytes of an answer that is not read: the write deadline could not see them."""
    with bind("127.0.0.1", 0) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            connection.setblocking(False)
            taken = 0
            with contextlib.suppress(BlockingIOError):
                while taken < 64 * MEBIBYTE:
                    taken += connection.send(bytes(MEBIBYTE))
        assert taken < MEBIBYTE
