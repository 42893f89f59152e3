"""The image as compose starts it: built, asked and inspected on a real Docker engine.

Run by `make container-test`; where no engine or no docker-compose is at hand it is skipped and says so.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
CLASSIC_BUILDER = {"DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
HEALTHY_WITHIN_SECONDS = 60.0


def compose_command() -> list[str]:
    """Return the compose command at hand, or skip with the reason."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("no Docker engine answers: the container test did not run")
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    pytest.skip("neither docker-compose nor docker compose is installed: the container test did not run")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """The compose project, started; `url` is where it is published."""

    def __init__(self, compose: list[str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = os.environ | CLASSIC_BUILDER | {"PUBLISH_PORT": str(self.port)}
        self.prefix = [*compose, "-p", f"foldserve-test-{self.port}"]
        self.container = ""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )

    def start(self) -> None:
        started = self.run("up", "-d")
        assert started.returncode == 0, started.stderr[-3000:]
        self.container = self.run("ps", "-q", "cpu").stdout.strip()
        self.wait_until_healthy()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", "exec", self.container, *command], capture_output=True, text=True)

    def inspect(self, template: str) -> str:
        command = ["docker", "inspect", "--format", template, self.container]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY_WITHIN_SECONDS
        while (status := self.inspect("{{.State.Health.Status}}")) != "healthy":
            if time.monotonic() > deadline:
                pytest.fail(f"health is {status!r} after {HEALTHY_WITHIN_SECONDS:.0f} s:\n{self.run('logs').stdout}")
            time.sleep(0.2)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack(compose_command())
    built = stack.run("build")
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    try:
        stack.start()
        yield stack
    finally:
        stack.run("down", "--volumes", "--timeout", "40")


def golden() -> tuple[np.ndarray, np.ndarray]:
    """Return the committed version's golden images (n, 784) uint8 and classes (n,)."""
    tensors = json.loads((ROOT / "models/lenet-bn/1/manifest.json").read_text())["golden"]
    images = np.frombuffer(base64.b64decode(tensors["inputs"]["image"]["data"]), np.uint8).reshape(-1, 784)
    classes = np.frombuffer(base64.b64decode(tensors["outputs"]["class_id"]["data"]), "<i8")
    return images, classes


@pytest.mark.container
def test_compose_up_turns_healthy_and_answers_predict_rightly(stack: Stack) -> None:
    """The committed model, in the image, gives the golden classes over the published port."""
    images, classes = golden()
    request = urllib.request.Request(
        f"{stack.url}/predict", data=images.tobytes(), headers={"Content-Type": "application/octet-stream"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer = json.load(response)
    assert [p["class_id"] for p in answer["predictions"]] == classes.tolist()


@pytest.mark.container
def test_image_holds_neither_torch_nor_training_code_nor_pip(stack: Stack) -> None:
    """What the service does not need is not there to be attacked or downloaded."""
    found = stack.execute(
        "python",
        "-c",
        "import importlib.util as u; print([m for m in ('torch','training','onnx','pip') if u.find_spec(m)])",
    )
    assert found.stdout.strip() == "[]"
    assert stack.execute("python", "-c", "import foldserve.service, service").returncode == 0


@pytest.mark.container
def test_the_commands_of_the_documents_run_in_the_container(stack: Stack) -> None:
    """As they stand there, from any folder: what an operator types."""
    listed = stack.execute("foldserve", "models", "list")
    assert [line.split()[:3] for line in listed.stdout.splitlines()][1] == ["lenet-bn", "1", "READY"], listed
    assert stack.execute("sh", "-c", "cd /tmp && foldserve keys new --name client --scopes infer").stdout.startswith(
        "the key, shown "
    )


@pytest.mark.container
def test_a_name_of_training_says_what_to_install(stack: Stack) -> None:
    """The link to the training code leads nowhere in the image."""
    asked = stack.execute("python", "-c", "from foldserve import fold")
    assert asked.returncode == 1
    assert asked.stderr.strip().endswith("pip install 'foldserve[training]'")


@pytest.mark.container
def test_container_runs_unprivileged_on_a_read_only_root(stack: Stack) -> None:
    """A numeric user without capabilities cannot write anywhere but /tmp, the models included."""
    assert stack.execute("id", "-u").stdout.strip() == "10001"
    assert stack.inspect("{{.HostConfig.ReadonlyRootfs}}") == "true"
    assert "ALL" in stack.inspect("{{.HostConfig.CapDrop}}")
    effective = [line for line in stack.execute("cat", "/proc/1/status").stdout.splitlines() if "CapEff" in line]
    assert effective
    assert int(effective[0].split()[1], 16) == 0
    for path in ("/app/x", "/models/x", "/opt/venv/x"):
        assert stack.execute("python", "-c", f"open({path!r}, 'w')").returncode != 0
    assert stack.execute("python", "-c", "open('/state/x', 'w')").returncode == 0


@pytest.mark.container
def test_container_stops_by_itself_when_asked(stack: Stack) -> None:
    """SIGTERM drains and ends the service with exit code 0, well inside the grace period."""
    subprocess.run(["docker", "stop", "--time", "30", stack.container], check=True, capture_output=True)
    assert stack.inspect("{{.State.ExitCode}}") == "0"
    assert stack.inspect("{{.State.OOMKilled}}") == "false"


@pytest.mark.container
def test_the_pull_image_brings_models_and_holds_nothing_of_the_service(tmp_path: Path) -> None:
    """What an init container runs: the target `pull`, read-only and as its own user, with no network to reach."""
    compose_command()
    tag = f"foldserve:pull-test-{os.getpid()}"
    command = ["docker", "build", "-q", "--target", "pull", "-t", tag, "."]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | CLASSIC_BUILDER, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    target = tmp_path / "models"
    target.mkdir()
    target.chmod(0o777)  # the container's user is none of this machine
    run = ["docker", "run", "--rm", "--read-only", "--network", "none", "--tmpfs", "/tmp"]
    try:
        mounts = ["-v", f"{ROOT / 'models'}:/from:ro", "-v", f"{target}:/to"]
        pulled = subprocess.run([*run, *mounts, tag, "file:///from", "--to", "/to"], capture_output=True, text=True)
        assert pulled.returncode == 0, pulled.stdout + pulled.stderr
        for name in ("manifest.json", "model.onnx"):
            place = Path("lenet-bn/1") / name
            assert (target / place).read_bytes() == (ROOT / "models" / place).read_bytes()
        wanted = "('foldserve.service', 'service', 'onnxruntime', 'torch', 'pip')"
        program = f"import importlib.util as u; import s3fs; print([m for m in {wanted} if u.find_spec(m)])"
        found = subprocess.run([*run, "--entrypoint", "python", tag, "-c", program], capture_output=True, text=True)
        assert found.stdout.strip() == "[]", found.stderr
    finally:
        subprocess.run(["docker", "image", "rm", "-f", tag], capture_output=True)
