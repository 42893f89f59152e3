"""Changes under load with two workers: each follows the pointers, and no caller notices."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest

from foldserve.service.keys import new_key
from tests.support import artifacts
from tests.support.operator import publish
from tests.support.processes import OCTETS, read_until, started

PIXELS = artifacts.images(3, seed=3).tobytes()

# Asks in a process of its own until its input ends; prints a line with its first answer, and at the end how often which
# version gave which answer.
CALLER = """
import hashlib, json, sys, threading, collections, httpx
url, pixels = sys.argv[1], bytes.fromhex(sys.argv[2])
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
seen = collections.Counter()
with httpx.Client(limits=httpx.Limits(max_keepalive_connections=0)) as http:
    while not ended.is_set():
        answer = http.post(url, content=pixels, headers={"Content-Type": "application/octet-stream"}, timeout=300)
        if not seen:
            print("asking", flush=True)
        seen[answer.status_code, answer.headers.get("x-model-version"), hashlib.sha256(answer.content).hexdigest()] += 1
print(json.dumps([[*key, count] for key, count in seen.items()]))
"""


@pytest.mark.slow
def test_two_workers_follow_every_change_under_load(models, tmp_path):
    """Promotions, rollbacks and a shadow: every answer is 200 and, byte for byte, that of the version in its header."""
    for version in (1, 2):
        publish(models, version)
    key, line = new_key("operator", ["admin"])
    (tmp_path / "keys").write_text(line)
    flags = ("--models-dir", str(models), "--workers", "2", "--state-dir", str(tmp_path / "state"), "--keys-file",
             str(tmp_path / "keys"), "--closed-scopes", "", "--poll-seconds", "0.05", "--keep-warm", "1",
             "--default-deadline-ms", "300000")  # fmt: skip
    new_connections = httpx.Limits(max_keepalive_connections=0)  # each may meet another worker
    with (
        started(*flags, ready_lines=2) as (process, address),
        httpx.Client(base_url=address, timeout=300, limits=new_connections) as http,
    ):
        log = threading.Thread(target=process.stderr.read)
        log.start()

        def ask(path: str = "/predict") -> httpx.Response:
            return http.post(path, content=PIXELS, headers=OCTETS)

        def change(call: str, **body: object) -> dict:
            answer = http.post(f"/v2/repository/models/fashion/{call}", json=body, headers={"X-API-Key": key})
            assert answer.status_code == 200, answer.text
            return answer.json()

        def settled(version: int) -> None:
            """Wait until many new connections in a row, and so both workers, answer with a version."""
            in_a_row = 0
            while in_a_row < 20:
                in_a_row = in_a_row + 1 if ask().headers["x-model-version"] == str(version) else 0

        expected = {}
        for version in (2, 1):
            change("promote", version=version)
            settled(version)
            expected[str(version)] = hashlib.sha256(ask().content).hexdigest()
        callers = [
            subprocess.Popen(
                [sys.executable, "-c", CALLER, f"{address}/predict", PIXELS.hex()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ),
            )
            for _ in range(2)
        ]  # fmt: skip
        for caller in callers:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "asking\n"
        for version in (2, 1):
            assert change("promote", version=version)["latest"] == version
            settled(version)
        assert change("rollback")["latest"] == 2
        settled(2)
        change("shadow", version=1, seconds=60)
        for _ in range(40):
            ask()
        seen: Counter[tuple[int, str, str]] = Counter()
        for caller in callers:
            for status, version, digest, count in json.loads(caller.communicate("", timeout=60)[0]):
                seen[status, version, digest] += count
        report = http.get("/v2/repository/models/fashion").json()
        assert report["shadow"]["rows"] > 0
        assert (report["latest"], report["pinned"]) == (2, True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        log.join()
    assert set(seen) == {(200, version, digest) for version, digest in expected.items()}
    assert sum(seen.values()) > 20


def test_a_worker_that_is_replaced_never_answers_with_another_content(tmp_path):
    """A folder rewritten under its number: the old worker answers as before, the new one 503 with the reason."""
    models = tmp_path / "models"
    artifacts.publish_classifier(models, version=1, seed=1)
    flags = ("--models-dir", str(models), "--workers", "2", "--poll-seconds", "0.1", "--default-deadline-ms", "300000")
    new_connections = httpx.Limits(max_keepalive_connections=0)
    with (
        started(*flags, ready_lines=2) as (process, address),
        httpx.Client(base_url=address, timeout=300, limits=new_connections) as http,
    ):
        before = http.post("/predict", content=PIXELS, headers=OCTETS).content
        other = artifacts.publish_classifier(tmp_path / "elsewhere", "fashion", version=1, seed=2)
        for name in ("model.onnx", "manifest.json"):
            (models / "fashion/1" / name).write_bytes((other / name).read_bytes())
        assert "what was proved answers on" in read_until(process, "a version that serves changed on disk")["reason"]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        read_until(process, "ready")
        log = threading.Thread(target=process.stderr.read)
        log.start()
        answers = [http.post("/predict", content=PIXELS, headers=OCTETS) for _ in range(60)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        log.join()
    assert {answer.content for answer in answers if answer.status_code == 200} == {before}
    refused = {answer.json()["error"] for answer in answers if answer.status_code != 200}
    assert {answer.status_code for answer in answers} == {200, 503}
    assert all("another content" in sentence for sentence in refused)
