"""What workers share where there is no room: nothing is killed, and each goes on by itself."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from foldserve.service.live.served import ServedVersions
from foldserve.service.processes.workers import Workers
from tests.support.processes import FAST, OCTETS, children, environment, is_gone

# Counts in files that may have so many bytes, as if the disk were full beyond them; then in full ones of old.
COUNTS = """
import json, logging, pathlib, resource, sys
folder, limit = pathlib.Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
logging.basicConfig(format="%(message)s", stream=sys.stdout)
from foldserve.service.processes.counters import Counters
from foldserve.service.processes.metric_files import count_in, totals
count_in(folder, 0)
from prometheus_client import CollectorRegistry, Counter
counter = Counter("things", "Things.", ["which"], registry=CollectorRegistry())
for round in range(2):
    for number in range(1000):
        counter.labels(f"number-{number}").inc()
own = [counter.labels(f"number-{number}")._value.get() for number in range(1000)]
counted = Counters(10_000, folder / "counts")
counted.add([3.0])
shared = [sample.value for metric in totals(folder).collect() for sample in metric.samples]
print(json.dumps([own, shared, counted.totals()[0], sorted(file.stat().st_size for file in folder.glob("*.db"))]))
"""


@pytest.mark.parametrize(("limit", "shared"), [(1 << 30, 1000), (65_536, 500), (4_096, 0)])
def test_counts_that_find_no_room_are_kept_by_the_process(tmp_path, limit, shared):
    """None is lost to it, those that found room are read by others, and one line says why the rest is not."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTS, str(tmp_path), str(limit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *said, result = done.stdout.splitlines()
    own, of_all, counted, sizes = json.loads(result)
    assert own == [2.0] * 1000
    assert set(of_all) <= {2.0}
    assert len(of_all) >= shared
    assert counted == 3
    assert sum(sizes) <= limit
    assert [line.partition(" for ")[0] for line in said] == (["no room"] if limit < 1 << 30 else [])


def test_what_cannot_be_told_is_known_to_one_worker():
    """A digest holds in the process that claimed it; a question that nobody can keep has the same answer for all."""
    full = Path("/proc/no-files-here")
    assert Workers(full).decide("graph", lambda: "fast") == ""
    assert Workers(full).is_first("start-failure")
    served = ServedVersions(full)
    assert served.claim("m", 1, "abc") == "abc"
    assert served.claim("m", 1, "other") == "abc"
    served.set_latest("m", 1)


@pytest.fixture
def small_memory() -> list[str]:
    """What to put before a command so that its /dev/shm has 6 MiB."""
    words = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=6m none /dev/shm && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    return words


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.slow
def test_two_workers_outlive_a_full_dev_shm(fashion, small_memory):
    """Answers, metrics and a replaced worker, all with no byte of it left; one line a worker says so."""
    flags = ("--port", "0", *FAST, "--models-dir", str(fashion), "--workers", "2", "--canary-seconds", "0")
    process = subprocess.Popen(
        [*small_memory, sys.executable, "-m", "service", *flags], stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        lines = (json.loads(line) for line in process.stderr)
        address = next(line["address"] for line in lines if line["event"] == "starting")
        for _ in range(2):
            next(line for line in lines if line["event"] == "ready")
        fill(Path(f"/proc/{process.pid}/root/dev/shm/fill"))
        victim = children(process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        until_ready = list(itertools.takewhile(lambda line: line["event"] != "ready", lines))
        assert [line["exit_code"] for line in until_ready if "exit_code" in line] == [-signal.SIGKILL]
        assert any(line["event"].startswith("no room for /dev/shm/") for line in until_ready)
        with httpx.Client(base_url=address, timeout=60) as http:
            for path in (f"/nowhere-{number}" for number in range(20)):
                assert http.get(path, headers={"Connection": "close"}).status_code == 404
                asked = http.post("/predict", content=bytes(784), headers={**OCTETS, "Connection": "close"})
                assert asked.status_code == 200
            assert http.get("/metrics").status_code == 200
        workers = children(process.pid)
        assert len(workers) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert all(map(is_gone, workers))
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()
