"""Versions that run in a process of their own first: one that needs too much memory or time ends there."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines import proving as proving_module
from foldserve.service.engines.proving import Proving
from foldserve.service.errors import ArtifactInvalid, NotReady
from tests.service.live.test_loading import publish_endless
from tests.support import artifacts
from tests.support.live_models import loaded
from tests.support.wire import on_loop

OPTIONS = {"threads": 1, "cores": 1, "buckets": [1, 4], "is_autotuned": False}


def hungry_model(megabytes: int) -> onnx.ModelProto:
    """int64 `identity` [batch,4] -> `echo`, by way of so much memory a row; the file has less than a kilobyte."""
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["identity", "second"], ["one"]),  # (batch, 1, 4)
            helper.make_node("Expand", ["one", "shape"], ["many"]),
            helper.make_node("Gather", ["many", "first"], ["echo"], axis=1),
        ],
        "hungry",
        [helper.make_tensor_value_info("identity", TensorProto.INT64, ["batch", 4])],
        [helper.make_tensor_value_info("echo", TensorProto.INT64, ["batch", 4])],
        [
            numpy_helper.from_array(np.array([1], np.int64), "second"),
            numpy_helper.from_array(np.array([1, megabytes << 15, 1], np.int64), "shape"),
            numpy_helper.from_array(np.array(0, np.int64), "first"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def publish_hungry(root: Path, megabytes: int, version: int = 2) -> None:
    asked = np.arange(64, dtype=np.int64).reshape(16, 4)
    artifacts.publish(root, "echo", hungry_model(megabytes), {"identity": asked}, {"echo": asked}, version=version)


def prove(proving: Proving, models: Path, version: int, seconds: float = 60, **options) -> None:
    artifact = Repository(models).open("echo", version)
    proving.prove(artifact, models, OPTIONS | options, seconds, is_beside=True)


@pytest.fixture
def proving():
    found = Proving()
    yield found
    found.stop()


def test_a_version_that_needs_more_memory_than_there_is_ends_elsewhere(models, proving):
    """A file of a kilobyte that asks for 512 TiB; the same process goes on with a good one."""
    artifacts.publish_echo(models)
    publish_hungry(models, megabytes=1 << 29)
    prove(proving, models, 1)
    (helper,) = proving._idle
    with pytest.raises(ArtifactInvalid, match="needs more memory than there is"):
        prove(proving, models, 2)
    prove(proving, models, 1)
    assert proving._idle == [helper]


def test_a_process_that_ends_by_itself_leaves_the_proof_to_another(models, proving, monkeypatch):
    """It ends when it holds much memory, which is seen too late by whoever asks it just then."""
    artifacts.publish_echo(models)
    prove(proving, models, 1)
    (helper,) = proving._idle
    helper._socket.shutdown(socket.SHUT_WR)  # there are no more requests: it ends with 0
    assert helper._process.wait(30) == 0
    monkeypatch.setattr(proving_module._Helper, "is_idle", lambda _: True)  # as it was a moment ago
    artifact = Repository(models).open("echo", 1)
    assert proving.prove(artifact, models, OPTIONS, 60, is_beside=True) is not None
    assert helper not in proving._idle


def test_a_proof_that_the_system_kills_is_a_refusal(models, proving):
    """SIGKILL, as where memory runs out; the next proof has a process again."""
    artifacts.publish_echo(models)
    publish_endless(models)

    def kill() -> None:
        while not proving._busy:
            time.sleep(0.005)
        (helper,) = proving._busy
        os.kill(helper._process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ArtifactInvalid, match=r"needs more memory than there is: .* signal 9 \(SIGKILL\)"):
        prove(proving, models, 2)
    killer.join()
    prove(proving, models, 1)


def send_while_proving(proving: Proving, number: int) -> threading.Thread:
    def send() -> None:
        while not proving._busy:
            time.sleep(0.005)
        (helper,) = proving._busy
        os.kill(helper._process.pid, number)

    sender = threading.Thread(target=send)
    sender.start()
    return sender


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_that_means_the_service_ends_no_proof(models, proving, number):
    """A group of processes is told to end at once: the one that serves decides, and this one goes on until then."""
    artifacts.publish_echo(models)
    publish_endless(models)
    sender = send_while_proving(proving, number)
    with pytest.raises(ArtifactInvalid, match=r"not proved within 1 s"):
        prove(proving, models, 2, seconds=1)
    sender.join()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_version_that_ends_its_process_is_refused_by_the_signal_s_name(models, proving, number):
    """What is no lack of memory is called none."""
    artifacts.publish_echo(models)
    publish_endless(models)
    sender = send_while_proving(proving, number)
    with pytest.raises(ArtifactInvalid, match=f"cannot be proved: .* was ended by signal .* .{number.name}.") as err:
        prove(proving, models, 2)
    assert "memory" not in str(err.value)
    sender.join()


def test_a_process_that_takes_long_to_end_lacks_no_memory(models, proving, monkeypatch):
    """On a busy machine: it is killed at last, and the proof has another one."""
    artifacts.publish_echo(models)
    prove(proving, models, 1)
    (helper,) = proving._idle
    monkeypatch.setattr(proving_module, "_END_SECONDS", 0.01)
    monkeypatch.setattr(proving_module._Helper, "is_idle", lambda _: True)
    os.kill(helper._process.pid, signal.SIGSTOP)
    helper._socket.shutdown(socket.SHUT_RD)
    prove(proving, models, 1)
    assert helper._process.poll() == -signal.SIGKILL
    assert helper not in proving._idle


def test_a_proof_that_never_ends_is_given_up(models, proving):
    """With the setting that allows more; its process is gone afterwards."""
    publish_endless(models)
    with pytest.raises(ArtifactInvalid, match=r"not proved within 0\.5 s .* --load-seconds allows more"):
        prove(proving, models, 2, seconds=0.5)
    assert not proving._busy
    assert not proving._idle


def test_nothing_waits_for_a_proof_that_never_ends(models, proving):
    """Another proof has a process of its own meanwhile; the end of the service ends both."""
    artifacts.publish_echo(models)
    publish_endless(models)
    errors: list[str] = []

    def never_ends() -> None:
        with pytest.raises(NotReady, match="shutting down") as err:
            prove(proving, models, 2, seconds=600)
        errors.append(str(err.value))

    asker = threading.Thread(target=never_ends)
    asker.start()
    while not proving._busy:
        time.sleep(0.005)
    (stuck,) = proving._busy
    prove(proving, models, 1)
    assert not errors
    assert stuck.is_alive
    proving.stop()
    asker.join()
    assert errors
    assert not stuck.is_alive


def test_what_took_much_memory_gives_it_back(models, proving, monkeypatch):
    """The process ends after a proof that left it large, so that the load that follows has the room."""
    monkeypatch.setattr(proving_module, "_IDLE_SECONDS", 600.0)
    publish_hungry(models, megabytes=100)
    prove(proving, models, 2)
    for process in list(proving._idle):
        assert process._process.wait(60) == 0
    artifacts.publish_echo(models)
    prove(proving, models, 1)


def test_other_faults_are_left_to_the_load(fashion_and_echo, proving):
    """What is wrong with a version besides memory is told by the load, in its own words."""
    artifact = Repository(fashion_and_echo).open("echo", 1)
    assert proving.prove(artifact, fashion_and_echo, OPTIONS | {"buckets": [4, 1]}, 60, is_beside=False) is None


def test_where_no_process_can_be_started_nothing_is_proved(models, proving, monkeypatch, caplog):
    """One warning, and loads go on as without proofs."""
    artifacts.publish_echo(models)
    monkeypatch.setattr(proving_module, "_MODULE", "foldserve.nothing_of_this_name")
    prove(proving, models, 1)
    prove(proving, models, 1)
    assert [record.message[:35] for record in caplog.records] == ["no process can be started to prove "]


@on_loop
async def test_a_service_refuses_a_new_version_that_needs_too_much_memory(fashion_and_echo):
    """With the reason in the index; the old version serves on."""
    async with loaded(fashion_and_echo) as held:
        publish_hungry(fashion_and_echo, megabytes=1 << 29)
        await held.reconciler.reconcile("echo")
        assert "needs more memory than there is" in str(held.reconciler.refusals["echo", 2].error)
        assert held.registry.get("echo").version == 1
        assert held.value("refused_versions_total", model="echo") == 1


@on_loop
async def test_only_new_kinds_of_models_and_large_files_are_proved_elsewhere(fashion_and_echo, monkeypatch):
    """At the start small files are not; later a version that differs only in its weights is not either."""
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(
        Proving, "prove", lambda self, artifact, *_, **__: asked.append((artifact.name, artifact.version))
    )
    async with loaded(fashion_and_echo) as held:
        assert not asked
        artifacts.publish_classifier(fashion_and_echo, version=2, seed=2)
        await held.reconciler.reconcile("fashion")
        assert held.registry.get("fashion").version == 2
        assert not asked
        publish_hungry(fashion_and_echo, megabytes=1)
        await held.reconciler.reconcile("echo")
        assert asked == [("echo", 2)]
    async with loaded(fashion_and_echo, prove_above_bytes=1):
        assert set(asked[1:]) == {("echo", 2), ("fashion", 2)}


def test_a_process_says_what_it_measured_and_gives_way(fashion_and_echo, proving):
    """Beside requests it takes a tenth of a core that others want, and none from a process that has just been woken."""
    artifact = Repository(fashion_and_echo).open("fashion", 1)
    for _ in range(2):
        measured = proving.prove(artifact, fashion_and_echo, OPTIONS, 60, is_beside=True)
        assert sorted(measured.seconds) == [1, 4]
    (helper,) = proving._idle
    assert os.getpriority(os.PRIO_PROCESS, helper._process.pid) == max(10, os.getpriority(os.PRIO_PROCESS, 0))
    assert os.sched_getscheduler(helper._process.pid) == os.SCHED_BATCH


def test_a_process_that_starts_while_all_are_stopped_is_ended(tmp_path, monkeypatch):
    """A service that drains while it begins to prove leaves no process, and no socket of one."""
    artifacts.publish_echo(tmp_path, "echo", version=1)
    proving, starts, stopped, started = Proving(), threading.Event(), threading.Event(), []

    class Slow(proving_module._Helper):
        def __init__(self):
            super().__init__()
            started.append(self)
            starts.set()
            assert stopped.wait(60)

    monkeypatch.setattr(proving_module, "_Helper", Slow)

    def is_told() -> None:
        with pytest.raises(NotReady, match="shutting down"):
            prove(proving, tmp_path, 1)

    thread = threading.Thread(target=is_told)
    thread.start()
    assert starts.wait(60)
    proving.stop()
    stopped.set()
    thread.join(60)
    assert not thread.is_alive()
    (process,) = started
    assert not process.is_alive
    assert process._socket.fileno() == -1
