"""Publishing into a folder that a running service polls, from several sides at once, one of them killed."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foldserve import publish
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support.live import serve

ROOT = Path(__file__).parents[3]
# A process that says when it is ready, waits for a line, publishes, and says which number it got or why not. One stops
# with everything written and the lock held, just before its version appears, until it is killed; one has a disk on
# which no file may have more than 100 bytes.
PUBLISHER = """
import os, resource, sys
from pathlib import Path
from foldserve import publish
from foldserve.training.errors import TrainingError
from tests.training.publish.test_polled import ROWS, times

kind, factor, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
if kind == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
if kind == "killed":
    def stop(*_):
        print("here", flush=True)
        sys.stdin.readline()
    os.rename = stop
print("ready", flush=True)
sys.stdin.readline()
try:
    print(publish(times(factor), name="times", examples=ROWS, models_dir=folder).folder.name, flush=True)
except TrainingError as err:
    print(err, flush=True)
"""

ROWS = np.random.default_rng(4).normal(size=(6, 3)).astype(np.float32)


def times(factor: int) -> onnx.ModelProto:
    """Rows of three numbers times a factor: an answer tells which model gave it."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    weight = numpy_helper.from_array((np.eye(3) * factor).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "times", values[:1], values[1:], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_nothing_half_appears_and_no_number_is_taken_twice(tmp_path: Path) -> None:
    """Four versions from two publishers, while somebody asks without a pause: each answer is a whole version's."""
    publish(times(1), name="times", examples=ROWS, models_dir=tmp_path)
    app = create_app(Settings(models_dir=tmp_path, provider="cpu", buckets=(1, 8), poll_seconds=0.05, specialise=False))
    done = threading.Event()

    def ask(http: httpx.Client) -> set[tuple[int, float]]:
        seen = set()
        while not done.is_set():
            answer = http.post("/predict?model=times", json={"instances": [[1, 0, 0]]})
            assert answer.status_code == 200, answer.text
            body = answer.json()
            seen.add((body["version"], body["predictions"][0]["outputs"]["y"][0]))
        return seen

    def publish_two(first: int) -> list[int]:
        made = [publish(times(n), name="times", examples=ROWS, models_dir=tmp_path) for n in (first, first + 1)]
        return [int(published.folder.name) for published in made]

    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(3) as pool:
        asking = pool.submit(ask, http)
        try:
            numbers = [number for made in pool.map(publish_two, (10, 20)) for number in made]
            for _ in range(3_000):  # until the newest one answers
                if http.post("/predict?model=times", json={"instances": [[1, 0, 0]]}).json()["version"] == 5:
                    break
            else:
                raise AssertionError("the newest version never answered")
        finally:
            done.set()
        seen = asking.result()
        index = http.post("/v2/repository/index").json()
    assert sorted(numbers) == [2, 3, 4, 5]
    assert len({version for version, _ in seen}) == len(seen)  # one version, one answer
    assert {factor for _, factor in seen} <= {1, 10, 11, 20, 21}
    assert not any("refused" in entry.get("reason", "") for entry in index), index
    assert not [path for path in (tmp_path / "times").iterdir() if path.name.startswith(".")]


def publisher(kind: str, factor: int, folder: Path) -> "subprocess.Popen[str]":
    """Return a process that publishes `times(factor)` as soon as it gets a line."""
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, kind, str(factor), str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_publisher_that_is_killed_and_one_without_space_leave_nothing(tmp_path: Path) -> None:
    """Four processes under one name: two numbers, one after another, and a service that sees them."""
    publish(times(1), name="times", examples=ROWS, models_dir=tmp_path)
    kinds = ["killed", "full", "plain", "plain"]
    processes = [publisher(kind, 10 + number, tmp_path) for number, kind in enumerate(kinds)]
    app = create_app(Settings(models_dir=tmp_path, provider="cpu", buckets=(1, 8), poll_seconds=0.05, specialise=False))
    try:
        with serve(app) as url, httpx.Client(base_url=url, timeout=60) as http:
            assert [said(process) for process in processes] == ["ready"] * 4
            go(processes[0])
            assert said(processes[0]) == "here"
            assert [path.name for path in (tmp_path / "times").iterdir() if path.name.isdecimal()] == ["1"]
            for process in processes[1:]:
                go(process)
            processes[0].kill()
            full, *numbers = [said(process) for process in processes[1:]]
            for _ in range(3_000):  # until the newest one answers
                body = http.post("/predict?model=times", json={"instances": [[1, 0, 0]]}).json()
                if body["version"] == 3:
                    break
            index = http.post("/v2/repository/index").json()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sorted(numbers) == ["2", "3"]
    assert "cannot be written (File too large)" in full
    assert "nothing was published" in full
    assert body["predictions"][0]["outputs"]["y"][0] == 12 + numbers.index("3")
    assert not any("refused" in entry.get("reason", "") for entry in index), index
    assert sorted(path.name for path in (tmp_path / "times").iterdir()) == ["1", "2", "3", "config.pbtxt"]
