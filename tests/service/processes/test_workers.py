"""Several real processes behind one port: what they count, how they end, who replaces them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from foldserve.service.cores import available_cores
from foldserve.service.processes.workers import Workers
from tests.support import artifacts
from tests.support.processes import OCTETS, children, failed, is_gone, read_until, started

TWO = ("--workers", "2", "--drain-seconds", "2", "--canary-seconds", "0")


def sleeps(pid: int) -> int:
    """How often a process has gone to sleep by itself."""
    return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])


def wait_until(holds, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.05)


def predict(address: str) -> int:
    """The status of one prediction on a connection of its own, so that the kernel chooses the worker."""
    return httpx.post(f"{address}/predict", content=bytes(784), headers=OCTETS, timeout=60).status_code


def samples(address: str) -> dict[tuple[str, frozenset], float]:
    text = httpx.get(f"{address}/metrics", timeout=60).text
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def total(found, name: str, **labels: str) -> float:
    return sum(value for (at, have), value in found.items() if at == name and frozenset(labels.items()) <= have)


def counted(address: str, answers: int) -> dict[tuple[str, frozenset], float]:
    """A scrape that has all of the client's answers."""
    found = {}

    def holds() -> bool:
        found.update(samples(address))
        return total(found, "foldserve_requests_total", route="/predict", status="200") == answers

    wait_until(holds)
    return found


@pytest.mark.slow
def test_counts_are_those_of_the_client_also_over_a_killed_worker(fashion):
    """Sixty answers from two workers, one of which is killed half-way and replaced: sixty are counted, rows too."""
    with started("--models-dir", str(fashion), *TWO, ready_lines=2) as (process, address):
        first = children(process.pid)
        assert len(first) == 2
        assert [predict(address) for _ in range(30)] == [200] * 30
        before = counted(address, 30)
        os.kill(first[0], signal.SIGKILL)
        assert read_until(process, "worker ended and is replaced")["exit_code"] == -signal.SIGKILL
        wait_until(lambda: is_gone(first[0]))
        assert [predict(address) for _ in range(15)] == [200] * 15  # no client notices
        assert read_until(process, "ready")
        assert [predict(address) for _ in range(15)] == [200] * 15
        after = counted(address, 60)
        assert total(after, "foldserve_rows_total", model="fashion") == 60
        assert total(after, "foldserve_model_requests_total", model="fashion", version="1", outcome="answered") == 60
        assert total(after, "foldserve_check_rows_total", source="golden") == 3 * 16  # of three loads
        assert total(after, "foldserve_request_seconds_count", route="/predict") == 60
        ours = {key for key in before if key[0].startswith("foldserve_")}  # a process counts its own time from 0
        counters = {key for key in ours if key[0].endswith(("_total", "_count", "_bucket"))}
        assert all(after[key] >= before[key] for key in counters)
        assert total(after, "foldserve_ready") == 2
        assert {dict(labels)["worker"] for name, labels in after if name == "foldserve_ready"} == {"0", "1"}
        assert len(children(process.pid)) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_statistics_are_those_of_all_workers_also_of_a_killed_one(fashion):
    """Whichever worker is asked, the requests, rows and batches of the infer route are those that the client sent."""
    with started("--models-dir", str(fashion), *TWO, ready_lines=2) as (process, address):

        def infer(times: int) -> None:
            for _ in range(times):
                headers = {**OCTETS, "Inference-Header-Content-Length": "0"}
                url = f"{address}/v2/models/fashion/infer"
                assert httpx.post(url, content=bytes(2 * 784), headers=headers, timeout=60).status_code == 200

        def readings() -> set[tuple[int, int, int]]:
            found = [httpx.get(f"{address}/v2/models/fashion/stats").json()["model_stats"][0] for _ in range(12)]
            return {
                (one["inference_stats"]["success"]["count"], one["inference_count"], one["execution_count"])
                for one in found
            }

        infer(20)
        assert readings() == {(20, 40, 20)}
        os.kill(children(process.pid)[0], signal.SIGKILL)
        read_until(process, "worker ended and is replaced")
        read_until(process, "ready")
        assert readings() == {(20, 40, 20)}
        infer(10)
        assert readings() == {(30, 60, 30)}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_all_workers_give_the_same_bytes(fashion):
    """Whichever graph the first of them measured to be the fastest, the others run too."""
    with started("--models-dir", str(fashion), *TWO, ready_lines=2) as (process, address):
        body = artifacts.images(5).tobytes()
        with ThreadPoolExecutor(8) as pool:
            ask = lambda _: httpx.post(f"{address}/predict", content=body, headers=OCTETS, timeout=60).text  # noqa: E731
            assert len(set(pool.map(ask, range(40)))) == 1
        assert counted(address, 40)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_workers_end_with_their_supervisor(fashion):
    """kill -9 of the supervisor leaves no orphan that holds the port, not even a stopped one, and no folder."""
    with started("--models-dir", str(fashion), *TWO, ready_lines=2) as (process, address):
        workers = children(process.pid)
        os.kill(workers[0], signal.SIGSTOP)
        files = [file.readlink() for file in Path(f"/proc/{workers[0]}/fd").iterdir()]
        (folder,) = {file.parent for file in files if file.name.startswith("place-")}  # its lock, held open
        process.kill()
        wait_until(lambda: all(is_gone(worker) for worker in workers), 30)
        host, port = address.removeprefix("http://").split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
        assert not folder.exists()


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_replaced(fashion):
    """SIGSTOP: it lives and holds its connections, and answers neither clients nor the supervisor."""
    flags = ("--models-dir", str(fashion), *TWO, "--log-level", "debug")
    with started(*flags, ready_lines=2) as (process, address):
        victim = children(process.pid)[0]
        come_up = {"event": "worker answers", "worker": victim}  # before that it may take long to start
        if not any(come_up.items() <= event.items() for event in process.events):
            read_until(process, **come_up)
        os.kill(victim, signal.SIGSTOP)
        assert read_until(process, "worker does not answer and is killed")["worker"] == victim
        assert read_until(process, "ready")
        assert predict(address) == 200
        assert is_gone(victim)


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_hide_the_end_of_another(fashion):
    """The one that was killed is replaced before it is known of the one that was stopped that it hangs."""
    with started("--models-dir", str(fashion), *TWO, "--log-level", "debug", ready_lines=2) as (process, _):
        hung, killed = children(process.pid)
        known = {event["worker"] for event in process.events if event["event"] == "worker answers"}
        while known < {hung, killed}:
            known.add(read_until(process, "worker answers")["worker"])
        os.kill(hung, signal.SIGSTOP)
        before = sleeps(process.pid)
        wait_until(lambda: sleeps(process.pid) >= before + 2)  # it has looked since, and asked
        os.kill(killed, signal.SIGKILL)
        ends = ("worker ended and is replaced", "worker does not answer and is killed")
        lines = (json.loads(line) for line in process.stderr)
        first = next(event for event in lines if event["event"] in ends)
        assert first["event"] == ends[0]
        assert first["worker"] == killed


@pytest.mark.slow
def test_workers_that_a_signal_exchanged_or_added_are_looked_after(fashion):
    """SIGUSR2: two others, and none too many; SIGTTIN: a third; each is replaced when it is killed."""
    with started("--models-dir", str(fashion), *TWO, ready_lines=2) as (process, address):
        first = set(children(process.pid))
        process.send_signal(signal.SIGUSR2)
        wait_until(lambda: len(now := set(children(process.pid))) == 2 and not now & first)
        process.send_signal(signal.SIGTTIN)
        wait_until(lambda: len(children(process.pid)) == 3)
        for victim in children(process.pid):
            os.kill(victim, signal.SIGKILL)
            assert read_until(process, "worker ended and is replaced")["worker"] == victim
        wait_until(lambda: len(children(process.pid)) == 3)
        assert predict(address) == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_a_worker_that_cannot_live_is_tried_again_more_and_more_rarely(fashion):
    """Once a service has served, a worker that dies at every start is replaced after longer and longer pauses."""
    options = ("--models-dir", str(fashion), *TWO, "--poll-seconds", "0", "--log-level", "debug")
    with started(*options, ready_lines=2) as (process, address):
        if not any(event["event"] == "worker serves" for event in process.events):
            read_until(process, "worker serves")  # the supervisor asks twice a second
        (fashion / "fashion").rename(fashion / ".gone")
        os.kill(children(process.pid)[0], signal.SIGKILL)
        ends = [read_until(process, "worker ended and is replaced") for _ in range(3)]
        assert [end["exit_code"] for end in ends] == [-signal.SIGKILL, 3, 3]
        assert [end["again_in_seconds"] for end in ends] == [0.0, 1.0, 2.0]
        assert [predict(address) for _ in range(10)] == [200] * 10  # the other one answers
        (fashion / ".gone").rename(fashion / "fashion")
        assert read_until(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


class Caller(threading.Thread):
    """Asks over one connection as long as it can, once more where that breaks; keeps what came of it."""

    def __init__(self, address: str, body: bytes, ended: threading.Event) -> None:
        super().__init__()
        self.url, self.body, self.ended = f"{address}/predict", body, ended
        self.answers: Counter[tuple[int, str]] = Counter()
        self.broken = 0

    def run(self) -> None:
        with httpx.Client(timeout=60) as http:
            while not self.ended.is_set():
                try:
                    answer = http.post(self.url, content=self.body, headers=OCTETS)
                except httpx.TransportError:
                    self.broken += 1
                    answer = http.post(self.url, content=self.body, headers=OCTETS)
                self.answers[answer.status_code, answer.text] += 1


@pytest.mark.slow
def test_killed_workers_are_replaced_and_who_asks_twice_never_notices(fashion):
    """kill -9 again and again under load: at most one broken request a caller and kill, and every answer is right."""
    kills, ended = int(os.environ.get("KILLS", "4")), threading.Event()
    with started("--models-dir", str(fashion), *TWO, ready_lines=2) as (process, address):
        callers = [Caller(address, artifacts.images(2, seed=number).tobytes(), ended) for number in range(4)]
        expected = [httpx.post(caller.url, content=caller.body, headers=OCTETS, timeout=60).text for caller in callers]
        for caller in callers:
            caller.start()
        try:
            for number in range(kills):
                asked = sum(caller.answers.total() for caller in callers)
                wait_until(lambda asked=asked: sum(caller.answers.total() for caller in callers) > asked + 20)
                victim = children(process.pid)[number % 2]
                os.kill(victim, signal.SIGKILL)
                read_until(process, "worker ended and is replaced", worker=victim)
                read_until(process, "ready")
        finally:
            ended.set()
            for caller in callers:
                caller.join()
        for caller, right in zip(callers, expected, strict=True):
            assert set(caller.answers) == {(200, right)}
            assert caller.broken <= kills
        assert predict(address) == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_what_only_workers_find_is_one_line_and_no_loop(models):
    """A model whose golden answers are not its own passes every check of the files, and fails in each worker."""
    folder = artifacts.publish_classifier(models)
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    other = {name: array[::-1] for name, array in artifacts.classify(artifacts.images(16, seed=7)).items()}
    artifacts.rewrite_manifest(folder, golden=golden | {"outputs": artifacts.encode(other)})
    code, lines = failed("--models-dir", str(models), *TWO)
    assert code == 3
    (line,) = lines
    assert "golden" in json.loads(line)["event"]


def test_a_gpu_has_one_owner(fashion):
    """Several workers on a GPU are refused before anything starts."""
    code, lines = failed("--models-dir", str(fashion), *TWO, "--provider", "cuda")
    assert code == 3
    (line,) = lines
    assert "one process should own" in line
    assert "--provider cpu" in line


@pytest.mark.slow
def test_more_workers_than_cores_are_warned_about(models):
    """One line that says how many of each; the service starts as it was told to."""
    cores = available_cores()
    _, lines = failed("--models-dir", str(models), "--workers", str(cores + 1))
    assert f"{cores + 1} workers share {cores} cores" in lines[0]


def test_the_first_worker_decides_for_all(tmp_path):
    """The others wait for its answer and give it too, as do those that start later."""
    workers, asked = Workers(tmp_path), []
    inside, may_go_on = threading.Event(), threading.Event()

    def measure() -> str:
        asked.append(1)
        inside.set()
        may_go_on.wait(30)
        return "the fast one"

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(workers.decide, "graph", measure)
        assert inside.wait(30)
        others = [pool.submit(workers.decide, "graph", measure) for _ in range(3)]
        may_go_on.set()
        assert {future.result(30) for future in [first, *others]} == {"the fast one"}
    assert asked == [1]
    assert workers.decide("another", lambda: "") == ""
    assert workers.decide("another", lambda: "never asked") == ""


def test_an_answer_that_was_cut_off_is_asked_for_again(tmp_path):
    """A worker that fails, or is killed, while it measures decides nothing."""
    workers = Workers(tmp_path)
    with pytest.raises(ZeroDivisionError):
        workers.decide("graph", lambda: str(1 // 0))
    (tmp_path / "decided-graph").write_text("half an ans")
    assert workers.decide("graph", lambda: "whole") == "whole"


def test_an_event_is_news_once(tmp_path):
    """One line for what goes wrong in every worker."""
    workers = Workers(tmp_path)
    assert [workers.is_first("start-failure"), workers.is_first("start-failure")] == [True, False]


def test_the_folder_belongs_to_one_user_and_goes_away():
    """No other user can read or add to it."""
    workers = Workers.create()
    assert workers.folder.stat().st_mode & 0o777 == 0o700
    workers.remove()
    assert not workers.folder.exists()


def test_what_workers_cannot_share_is_imported_by_themselves():
    """A copy has only the thread that copied, so the supervisor must not have been given any other."""
    code = (
        "import os, sys\n"
        "for name in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS'):\n"
        "    os.environ.pop(name, None)\n"
        "import foldserve.service.command, foldserve.service.factory\n"
        "foldserve.service.factory.import_libraries()\n"
        "print('numpy' in sys.modules, 'onnxruntime' in sys.modules, len(os.listdir('/proc/self/task')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True False 1\n", done.stderr


def test_a_service_that_may_be_alone_imports_no_library_before_it_knows():
    """Whatever is wrong with the settings or the port is said at once."""
    heavy = ("numpy", "fastapi", "onnxruntime", "prometheus_client", "PIL")
    code = f"import sys, foldserve.service.command; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
