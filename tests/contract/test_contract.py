"""A stranger reads `/openapi.json` and asks all that it allows and much that it does not; every answer is as described.

Opt-in, `make contract-test`: `CONTRACT_PYTHON` names the Python of an environment made from requirements.txt.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from foldserve.service.keys import new_key
from tests.support import artifacts, processes

PYTHON = os.environ.get("CONTRACT_PYTHON", "")
EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "40"))
SEED = os.environ.get("CONTRACT_SEED", "14")
CONFIG = Path(__file__).with_name("schemathesis.toml")
SECONDS = 120
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="CONTRACT_PYTHON names no environment with schemathesis"),
]


@pytest.fixture(params=["open", "keys"])
def access(request, tmp_path: Path) -> tuple[str, list[str]]:
    """A key, and the flags that make the service ask for it; without them any key is as good as none."""
    key, line = new_key("contract", ["admin", "infer", "metrics", "read"])
    if request.param == "open":
        return key, []
    (tmp_path / "keys").write_text(f"{line}\n")
    return key, ["--keys-file", str(tmp_path / "keys"), "--closed-scopes", "infer,metrics,read"]


@pytest.fixture(params=[1, 2], ids=["one-worker", "two-workers"])
def service(request, access, tmp_path: Path) -> Iterator[str]:
    """The address of a service with one model of two versions."""
    for version in (1, 2):
        artifacts.publish_classifier(tmp_path / "models", version=version, seed=version)
    flags = ["--models-dir", str(tmp_path / "models"), "--state-dir", str(tmp_path / "state"), "--workers"]
    with processes.started(*flags, str(request.param), *access[1], ready_lines=request.param) as (process, address):
        with (tmp_path / "log").open("wb") as log:
            reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)
            yield address
            assert process.poll() is None, "the service ended"
            process.terminate()
            assert process.wait(60) == 0
            reader.wait(10)
        assert '"level": "error"' not in (tmp_path / "log").read_text()


def schemathesis(address: str, key: str, folder: Path, *flags: str) -> None:
    """Run it; what it found is the failure's text."""
    command = [PYTHON, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{address}/openapi.json"]
    command += ["--max-examples", str(EXAMPLES), "--max-time", str(SECONDS), "--seed", SEED, "--no-color"]
    environment = os.environ | {"CONTRACT_KEY": key}
    limits = {"timeout": SECONDS * 4, "cwd": folder}
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, **limits)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4_000:]


def test_the_service_answers_as_it_says(service, access, tmp_path):
    """No status, header, media type or body that the description does not name; what it forbids is refused."""
    key, _ = access
    phases = ("--phases", "examples,coverage,fuzzing")
    schemathesis(service, key, tmp_path, *phases, "--exclude-operation-id", "unload_model")
    schemathesis(service, key, tmp_path, *phases, "--include-operation-id", "unload_model")
    assert httpx.get(f"{service}/v2/health/live").status_code == 200
