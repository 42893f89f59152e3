"""R7, R8, R10, R11, R20 to R27, R29 and R32: what operators do, and what machines do to a service."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import ROOT
from benchmarks.ending import started
from benchmarks.endurance.setup import Service, wait_until
from benchmarks.trust.asking import Answer, ask, get, post, request
from benchmarks.trust.row import Bench, Measured, Row
from benchmarks.trust.unasked import Unasked
from benchmarks.trust.under_load import load
from foldserve.service.keys import new_key
from tests.support import artifacts, processes

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def by_tests(*tests: str) -> Callable[[Bench], Measured]:
    """Return a measurement that runs tests of the suite; a change of the bench is made under them."""

    def measure(bench: Bench) -> Measured:
        env = os.environ | {"BENCH_CHANGE": bench.change}
        if bench.change == "as-root":
            env["COMPOSE_FILE"] = "docker-compose.yml:benchmarks/trust/as_root.yml"
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-p",
            "benchmarks.trust.weakened",
        ]
        done = subprocess.run([*words, *tests], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        last = (done.stdout.strip().splitlines() or ["nothing ran"])[-1]
        passed = int(found[1]) if (found := re.search(r"(\d+) passed", last)) else 0
        is_kept = done.returncode == 0 and passed > 0
        has_run = re.search(r"\d+ (passed|failed|error)", last) is not None
        words = f"{passed} tests passed" if is_kept else last[:120]
        return Measured(words, is_kept, is_broken=not has_run)

    return measure


def hung(bench: Bench) -> Measured:
    """R7: a batch that never ends ends its process; of two workers the other goes on, and one is replaced."""
    with bench.serve("--hang-seconds 4", "hanging", lives=False) as service:
        process, before = service.running.process, set(service.workers())
        with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
            connection.sendall(
                request("POST", "/predict", bytes([7]) * 784, {"Content-Type": "application/octet-stream"})
            )
            if bench.workers == 1:
                seconds = wait_until(lambda: process.poll() is not None, 12)
                return Measured(f"ended after {seconds or 99:.1f} s, exit code {process.poll()}", (seconds or 99) <= 10)
            seconds = wait_until(lambda: set(service.workers()) != before and len(service.workers()) == 2, 12)
        answered = wait_until(lambda: post(service.port, service.bodies[0]).status == 200, 5)
    return Measured(f"replaced after {seconds or 99:.1f} s", (seconds or 99) <= 10 and answered is not None)


def drain(bench: Bench) -> Measured:
    """R8: SIGTERM while requests run, an upload is stuck and a connection idles."""
    with bench.serve("--buckets 1,2,4,8,16,32,64 --drain-seconds 8", "slowed", lives=False) as service:
        stuck, idle = (socket.create_connection(("127.0.0.1", service.port)) for _ in range(2))
        stuck.sendall(request("POST", "/predict", b"", {"Content-Length": "784", "Content-Type": "image/png"}) + b"x")
        idle.sendall(request("GET", "/v2/health/live"))
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(post, service.port, b"".join(service.bodies) * 60) for _ in range(4 * bench.workers)]
            time.sleep(0.3)
            began = time.perf_counter()
            service.running.process.send_signal(signal.SIGTERM)
            answered = [one.result().status for one in running]
        code = service.running.process.wait(40)
        seconds = time.perf_counter() - began
        stuck.close()
        idle.close()
    is_kept = answered == [200] * len(running) and code == 0 and seconds <= 30
    return Measured(f"in flight {answered}, exit code {code} after {seconds:.1f} s", is_kept)


def admin(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the flags and the header of an operator with a key."""
    key, line = new_key("trust", ["admin", "infer", "metrics", "read"])
    (folder / "keys").write_text(f"{line}\n")
    flags = f"--keys-file {folder}/keys --state-dir {folder}/state --closed-scopes read"
    return flags, {"Authorization": f"Bearer {key}"}


def reload_storm(bench: Bench) -> Measured:
    """R11: fifty loads at once."""
    with tempfile.TemporaryDirectory() as name:
        flags, key = admin(Path(name))
        for version in (1, 2, 3):
            artifacts.publish_classifier(Path(name) / "models", version=version, seed=version)
        path = "/v2/repository/models/fashion/load"
        with bench.serve(flags, models=Path(name) / "models", lives=False) as service, ThreadPoolExecutor(50) as pool:
            before = service.rss_kib()
            began = time.perf_counter()
            found = list(pool.map(lambda _: ask(service.port, "POST", path, b"", key, 30), range(50)))
            seconds = time.perf_counter() - began
            grew = (service.rss_kib() - before) / 1024
            after = post(service.port, bytes(784)).status
    answered = all(one.status == 200 for one in found) and after == 200
    return Measured(f"all answered in {seconds:.1f} s, {grew:+.0f} MiB, then {after}", answered and seconds <= 10)


def clocks(bench: Bench) -> Measured:
    """R20: the clock of the day jumps by an hour back and forth under load."""
    with tempfile.TemporaryDirectory() as name:
        stamp = Path(name) / "time"
        stamp.write_text("+0")
        fake = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(stamp), "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
        with bench.serve(environment=fake, lives=False) as service, ThreadPoolExecutor(1) as pool:
            run = pool.submit(load, service, 200, bench.seconds, 2_000)
            for number in range(int(2 * bench.seconds)):
                stamp.write_text(("+3600", "-3600", "+1", "+0")[number % 4])
                time.sleep(0.5)
            found = run.result()
            text = get(service.port, "/metrics").body.decode()
    negative = re.findall(r"^\S*seconds\S* -\d", text, re.MULTILINE)
    ok = found["statuses"].get("200", 0) == found["sent"]
    return Measured(
        f"{found['statuses']} of {found['sent']} sent, {len(negative)} negative durations", ok and not negative
    )


def full_log_disk(bench: Bench) -> Measured:
    """R21: while it serves, the log's disk fills up: nothing more can be written to it."""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        with bench.serve(f"--log-file {log} --log-level debug", lives=False) as service:
            log.unlink()
            log.symlink_to("/dev/full")
            found = [get(service.port, "/nothing").status for _ in range(25)]
            found += [post(service.port, service.bodies[0]).status for _ in range(25)]
    answered = found.count(200) + found.count(404)
    return Measured(f"{answered} of 50 answered", answered == 50)


def start(
    *flags: str, env: dict[str, str] | None = None, module: str = "service", patience: float = 12
) -> tuple[int, float, str]:
    """Start a service that should not; return its exit code (-1 where it still runs), seconds and last line."""
    began = time.perf_counter()
    argv = [sys.executable, "-m", module, *processes.command(*flags)[3:]]
    env = processes.environment() | (env or {})
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with started(argv, cwd=ROOT, text=True, env=env, **streams) as process:
        try:
            _, said = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            return -1, time.perf_counter() - began, "it runs"
        return process.returncode, time.perf_counter() - began, (said.strip().splitlines() or [""])[-1]


def gpu_truth(bench: Bench) -> Measured:
    """R24: asked for CUDA where there is none."""
    provider = "auto" if bench.change else "cuda"
    code, seconds, said = start("--provider", provider, "--models-dir", str(bench.models))
    is_kept = code > 0 and seconds <= 10 and "foldserve[gpu]" in said.replace("\\", "")
    return Measured(f"{'still up' if code < 0 else f'exit code {code}'} after {seconds:.1f} s: {said[-120:]}", is_kept)


def bad_starts(bench: Bench) -> Measured:
    """R26: the port is taken, there is no model, a setting is wrong."""
    good = ["--models-dir", str(bench.models)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        kinds = [
            [*good, "--port", "0" if bench.change else str(taken.getsockname()[1])],
            ["--models-dir", "/nowhere"],
            [*good, "--max-rows", "none"],
        ]
        found = [start(*flags, "--workers", str(bench.workers)) for flags in kinds]
    is_kept = all(code > 0 and seconds <= 5 for code, seconds, _ in found)
    return Measured(f"exit codes {[code for code, *_ in found]}, {max(one[1] for one in found):.1f} s at most", is_kept)


def first_request(bench: Bench) -> Measured:
    """R27: the first request after ready is like the others."""
    with tempfile.TemporaryDirectory() as name:
        artifacts.publish_classifier(Path(name))
        with Unasked(bench, name) as service:
            times = [post(service.port, bytes(784)).seconds for _ in range(40 * bench.workers)]
    usual, worst = sorted(times)[int(0.9 * len(times))], max(times)
    words = f"first {times[0] * 1e3:.1f} ms, worst {worst * 1e3:.1f} ms, nine of ten within {usual * 1e3:.1f} ms"
    return Measured(words, worst <= max(1.5 * usual, 0.05))


def few_descriptors(bench: Bench) -> Measured:
    """R29: five hundred clients where a process may open 128 files."""
    with Unasked(bench, str(bench.models), shell="ulimit -n 128") as service:
        port = service.port
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(500)]
        beside = answers_within(port, 2)
        for one in held:
            one.close()
        back = wait_until(lambda: answers_within(port, 1), 5)
        alive = service.process.poll() is None
    words = f"{'answers' if beside else 'deaf'} beside 500, back after {'5+' if back is None else f'{back:.1f}'} s"
    return Measured(words, alive and back is not None and beside)


def answers_within(port: int, seconds: float) -> bool:
    """Whether a request is heard: any answer in the form of HTTP."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(request("GET", "/v2/health/live"))
            return connection.recv(64).startswith(b"HTTP/1.1")
    except OSError:
        return False


def parent_dies(bench: Bench) -> Measured:
    """R32: the supervisor is killed, and nobody keeps the port."""
    with bench.serve(lives=False) as service:
        workers = service.workers()
        os.kill(service.running.process.pid, signal.SIGKILL)
        seconds = wait_until(lambda: all(processes.is_gone(pid) for pid in workers), 8)
        for pid in workers:
            if not processes.is_gone(pid):
                os.kill(pid, signal.SIGKILL)
    return Measured(
        f"workers gone after {seconds if seconds is not None else 9:.1f} s", seconds is not None and seconds <= 5
    )


def pointer_moves(bench: Bench) -> Measured:
    """K8: a rollback of a warm version while another model's load takes long."""
    with tempfile.TemporaryDirectory() as name:
        flags, key = admin(Path(name))
        models = Path(name) / "models"
        for version in (1, 2):
            artifacts.publish_classifier(models, version=version, seed=version)
        with bench.serve(f"{flags} --keep-warm 1", models=models, lives=False) as service:
            path = "/v2/repository/models/fashion"
            moved = [move(service, path, key, version) for version in (1, 2, 1, 2)]
            back = ask(service.port, "POST", f"{path}/rollback", b"", key)
    worst = max([one.seconds for one in moved[1:]] + [back.seconds])
    ok = all(one.status == 200 for one in [*moved, back])
    return Measured(f"{worst * 1e3:.0f} ms at most", ok and worst <= 0.05)


def move(service: Service, path: str, key: dict[str, str], version: int) -> Answer:
    """Promote a version."""
    return ask(service.port, "POST", f"{path}/promote", json.dumps({"version": version}).encode(), key)


def lost_state(bench: Bench) -> Measured:
    """K9: the state folder disappears after a rollback."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags, key = admin(folder)
        for version in (1, 2):
            artifacts.publish_classifier(folder / "models", version=version, seed=version)
        flags = f"{flags} --poll-seconds 0.2"
        with bench.serve(flags, models=folder / "models", lives=False) as service:
            path = "/v2/repository/models/fashion"
            rolled = move(service, path, key, 1).status
            shutil.rmtree(folder / "state")
            time.sleep(1.5)
            answering = post(service.port, bytes(784)).headers.get("x-model-version")
            refused = move(service, path, key, 2).status
    return Measured(
        f"version {answering} still answers, promote is {refused}",
        rolled == 200 and answering == "1" and refused == 503,
    )


ONE, TWO = (1,), (2,)
GPU = "needs a GPU"
ROWS = [
    Row(
        "R7",
        "a hung worker is replaced",
        "<= 10 s (here with --hang-seconds 4)",
        hung,
        flags="--hang-seconds 0",
        part=7,
    ),
    Row("R8", "drain", "all in flight answered, exit code 0, <= 30 s", drain, flags="--drain-seconds 0.1", part=7),
    Row(
        "R10",
        "bad versions are refused",
        "each with its reason, the old one goes on",
        by_tests("tests/service/artifacts/test_bad_versions.py"),
        change="unproved",
        workers=ONE,
        part=7,
    ),
    Row(
        "R11", "a storm of loads", "all answered within 10 s, and it serves", reload_storm, change="slow-loads", part=7
    ),
    Row(
        "R20", "the clock jumps", "no timeout early or late, no negative duration", clocks, change="wall-clock", part=8
    ),
    Row("R21", "a full log disk does not stop it", "all answered", full_log_disk, change="failing-log", part=8),
    Row(
        "R22",
        "a kill while publishing leaves whole versions",
        "every moment of a publication",
        by_tests("tests/training/test_artifact.py", "-k", "kill or full_disk or limit"),
        change="hasty-publish",
        workers=ONE,
        part=8,
    ),
    Row(
        "R23",
        "a killed training goes on bit for bit",
        "equal weights",
        by_tests("tests/training/test_checkpoint.py", "-k", "bit_for_bit or same_bits"),
        change="forgetful-checkpoint",
        workers=ONE,
        part=9,
    ),
    Row(
        "R24",
        "the truth about the GPU",
        "exit code != 0 in 10 s with what to install",
        gpu_truth,
        change="auto",
        workers=ONE,
        part=8,
    ),
    Row("R25", "a GPU without memory", "split or 503, no death", None, why_not=GPU),
    Row("R26", "a start that cannot be", "exit code != 0 in 5 s", bad_starts, change="good-start", part=8),
    Row(
        "R27",
        "ready is honest",
        "the first requests <= 1.5 x the usual ones, or 50 ms",
        first_request,
        change="cold",
        part=8,
        is_quick=True,
    ),
    Row(
        "R29",
        "descriptors",
        "answers beside 500 clients of 128 descriptors, back in 5 s",
        few_descriptors,
        change="any-descriptors",
        part=8,
    ),
    Row("R32", "the supervisor dies", "no worker after 5 s", parent_dies, change="orphans", workers=TWO, part=8),
    Row("K8", "a pointer moves at once", "<= 50 ms", pointer_moves, change="slow-moves", part=9),
    Row(
        "K9",
        "the state folder disappears",
        "the last decision holds, admin calls are 503",
        lost_state,
        change="forgetful-state",
        part=9,
    ),
]
