"""`foldserve pull` from a server that speaks S3, as the init container does it; `make cluster-test` brings both."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from foldserve.service.artifacts.repository import Repository
from tests.deploy.test_nginx import free_port, is_open
from tests.support import artifacts
from tests.support.manifests import ROOT, TOOLS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TOOLS / "bin/moto_server").exists(), reason="needs the tools of make cluster-test"),
]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20261126/us-east-1/s3/aws4_request"}  # it checks no more


@pytest.fixture
def s3() -> Iterator[str]:
    """A server with an empty bucket; its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [str(TOOLS / "bin/moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while not is_open(port):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.1)
        assert httpx.put(f"{url}/bucket", headers=SIGNED, timeout=30).status_code == 200
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def upload(url: str, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{url}/bucket/models/{path.relative_to(folder)}"
            assert httpx.put(key, content=path.read_bytes(), headers=SIGNED, timeout=30).status_code == 200


def pulled(url: str, to: Path) -> subprocess.CompletedProcess[str]:
    """The command in the environment that has s3fs and nothing of the service."""
    environment = {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": url, "PYTHONPATH": str(ROOT)}
    command = [str(TOOLS / "bin/python"), "-m", "foldserve", "pull", "s3://bucket/models", "--to", str(to)]
    return subprocess.run(command, cwd=to.parent, env=environment, capture_output=True, text=True, timeout=120)


def test_models_come_out_of_a_bucket(s3, tmp_path):
    """Whole, and again when there are new ones; while the bucket cannot be reached, what is there stays."""
    source, to = tmp_path / "source", tmp_path / "models"
    artifacts.publish_classifier(source)
    artifacts.publish_echo(source)
    upload(s3, source)
    done = pulled(s3, to)
    assert done.returncode == 0, done.stderr
    assert Repository(to).models() == {"echo": [1], "fashion": [1]}
    artifacts.publish_classifier(source, version=2)
    upload(s3, source)
    httpx.put(f"{s3}/bucket/models/echo/2/manifest.json", content=b"{", headers=SIGNED, timeout=30)
    done = pulled(s3, to)
    assert done.returncode == 1
    assert "bucket/models/echo/2 is refused" in done.stderr
    assert Repository(to).models() == {"echo": [1], "fashion": [1, 2]}
    assert Repository(to).open("fashion", 2).is_verified
    done = pulled(f"http://127.0.0.1:{free_port()}", to)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("what is there stays")
    assert Repository(to).models() == {"echo": [1], "fashion": [1, 2]}
