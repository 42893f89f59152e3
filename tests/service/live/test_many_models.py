"""A hundred models cost a hundred small sums: one look at the disk, one arena, one measurement for each structure."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from foldserve.service.engines import autotune
from foldserve.service.live.disk_scan import DiskScan
from foldserve.service.live.reconciler import Reconciler
from tests.support import artifacts
from tests.support.live_models import loaded
from tests.support.wire import on_loop

FAST = {"threads": 1, "buckets": (1, 4)}


def resident_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


class Noted:
    """A repository that notes which threads look at it, and can be held up in the middle of a look."""

    def __init__(self, repository) -> None:
        self._places = repository.places
        self.threads: list[threading.Thread] = []
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def places(self):
        self.threads.append(threading.current_thread())
        found = self._places()
        self.has_begun.set()
        assert self.may_end.wait(30)
        return found


@on_loop
async def test_what_lists_models_looks_once_and_not_on_the_loop(models, monkeypatch):
    """However many models there are; every call that needs the disk goes this way, and twenty at once share a look."""
    for number in range(8):
        artifacts.publish_echo(models, f"echo{number}")
    async with loaded(models, **FAST) as live:
        noted = Noted(live.reconciler.repository)
        monkeypatch.setattr(live.reconciler.repository, "places", noted.places)
        calls = {
            "index": lambda: live.control.index(),
            "show": lambda: live.control.show("echo3"),
            "reconcile": lambda: live.reconciler.reconcile("echo3"),
            "load": lambda: live.control.load("echo3"),
        }
        for name, call in calls.items():
            noted.threads.clear()
            await call()
            assert threading.main_thread() not in noted.threads, name
            assert len(noted.threads) <= 2, name
        noted.threads.clear()
        listed = await asyncio.gather(*[live.control.index() for _ in range(20)])
        assert all([row["state"] for row in rows] == ["READY"] * 8 for rows in listed)
        assert len(noted.threads) == 1


@on_loop
async def test_a_look_begins_after_the_call(models):
    """What was published while an earlier look was on its way is in the answer to the next call."""
    artifacts.publish_echo(models)
    async with loaded(models, **FAST) as live:
        noted = Noted(live.reconciler.repository)
        noted.may_end.clear()
        disk = DiskScan(noted.places)
        first = asyncio.create_task(disk.look())
        assert await asyncio.to_thread(noted.has_begun.wait, 30)
        artifacts.publish_echo(models, version=2)
        second, third = asyncio.create_task(disk.look()), asyncio.create_task(disk.look())
        await asyncio.sleep(0)
        third.cancel()  # a client that goes takes nobody along
        noted.may_end.set()
        assert [sorted((await look)["echo"]) for look in (first, second)] == [[1], [1, 2]]
        assert len(noted.threads) == 2


@on_loop
async def test_opening_a_version_does_not_look_at_the_other_models(models, monkeypatch):
    """A start with a hundred models would look ten thousand times."""
    artifacts.publish_echo(models)
    async with loaded(models, **FAST) as live:
        noted = Noted(live.reconciler.repository)
        monkeypatch.setattr(live.reconciler.repository, "places", noted.places)
        assert live.reconciler.repository.open("echo").version == 1
        assert noted.threads == []


@on_loop
async def test_each_of_many_refused_versions_is_looked_at_by_itself(models, monkeypatch):
    """However many there are above the one that serves: none is found by listing the others, and each is tried once."""
    artifacts.publish_echo(models)
    for version in range(2, 42):
        (models / "echo" / str(version)).mkdir()
        (models / "echo" / str(version) / "model.onnx").write_bytes(b"x")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    sought, missing = [], Reconciler._missing
    monkeypatch.setattr(Reconciler, "_missing", lambda *given: sought.append(given) or missing(*given))
    async with loaded(models, **FAST) as live:
        assert live.registry.tables["echo"].latest == 1
        assert sorted(version for _, version in live.reconciler.refusals) == list(range(2, 42))
        assert listed.count("echo") <= 4
        assert len(sought) <= 4


@on_loop
async def test_graphs_that_differ_in_weights_alone_are_timed_once(models, monkeypatch):
    """Whatever their names are; each gives its own golden answers all the same."""
    timed = []
    fastest = autotune._fastest
    monkeypatch.setattr(autotune, "_fastest", lambda *given: timed.append(given[0].name) or fastest(*given))
    for number in range(4):
        artifacts.publish_classifier(models, f"fashion{number}", seed=number)
    async with loaded(models, **FAST) as live:
        assert [model.name for model in live.registry.models()] == [f"fashion{number}" for number in range(4)]
        assert len(timed) == 1
        for number, model in enumerate(live.registry.models()):
            assert model.engine.deviations, number


@pytest.mark.slow
@on_loop
async def test_a_model_keeps_little_more_than_its_weights(models):
    """Below 5 MiB each, though a batch of 256 rows needs 14 for a while: the memory of runs is shared."""
    artifacts.publish_classifier(models, "fashion")
    async with loaded(models, threads=1) as live:
        before = resident_mib()
        for number in range(20):
            artifacts.publish_classifier(models, f"fashion{number}", seed=number)
            await live.reconciler.reconcile(f"fashion{number}")
        assert len(live.registry.models()) == 21
        assert (resident_mib() - before) / 20 < 5
