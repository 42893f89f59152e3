"""A service whose models have long runs: ready with the smallest batch, larger ones behind it, equal bytes always."""

from pathlib import Path

import pytest

from foldserve.service.engines import load as loading
from foldserve.service.engines.engine import Engine
from foldserve.service.engines.measured import Measured
from foldserve.service.engines.proving import Proving
from foldserve.service.errors import EngineError
from foldserve.service.live import memory
from tests.support import artifacts
from tests.support.lane import ONE, ask, service
from tests.support.live_models import loaded
from tests.support.wire import on_loop, until

BUCKETS = (1, 2, 4, 8)
LONG = {"specialise": False, "buckets": BUCKETS}
EIGHT = artifacts.images(8, seed=3).tobytes()


@pytest.fixture(autouse=True)
def all_long(monkeypatch):
    """Every run of this process counts as long."""
    monkeypatch.setattr(loading, "SHORT_RUN_SECONDS", 0.0)


@pytest.fixture
def measured(monkeypatch):
    """What a process of its own finds, without one; and the versions that it was asked for."""
    asked: list[int] = []

    def prove(self, artifact, *_, **__):
        asked.append(artifact.version)
        return Measured(None, None, dict.fromkeys(BUCKETS, 1e-3))

    monkeypatch.setattr(Proving, "prove", prove)
    return asked


@on_loop
async def test_one_image_gets_the_same_bytes_while_larger_batches_are_proved(fashion: Path) -> None:
    """From the first answer to the last, alone and among others, by way of a lane that grows with its model."""
    async with service(fashion, **LONG) as server, server.connect() as client:
        answers, largest = set(), set()
        for _ in range(3000):
            await client.send(ask(ONE))
            answers.add((await client.answer()).body)
            await client.send(ask(EIGHT))
            answers.add((await client.answer()).body.count(b"class_id"))
            (connection,) = server.server.server_state.connections
            largest.add(connection.lane.shared.endpoints[b"/predict"].route.max_batch_size)
            if max(largest) == BUCKETS[-1]:
                break
        assert len(answers) == 2
        assert 8 in answers
        assert (min(largest), max(largest)) == (1, BUCKETS[-1])


@on_loop
async def test_what_is_more_than_the_proved_batch_is_split(fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as nothing else is proved; here nothing ever is, since no process can be started."""
    monkeypatch.setattr(Proving, "prove", lambda *_, **__: None)
    async with loaded(fashion, **LONG) as held:
        model = held.registry.get()
        answer = await model.batcher.infer({"image": artifacts.images(8, seed=3)})
        assert model.engine.buckets == (1,)
        assert len(answer.outputs["class_id"]) == 8
        assert answer.batch_rows == 1


@on_loop
async def test_a_second_start_measures_nothing_and_proves_everything(
    fashion: Path, tmp_path: Path, measured: list[int]
) -> None:
    """What the first one measured is in the state folder; where that is deleted it is measured again."""
    state = tmp_path / "state"
    for number, starts in enumerate(([1], [1], [1, 1])):
        async with loaded(fashion, **LONG, state_dir=state) as held:
            model = held.registry.get()
            await until(lambda model=model: model.engine.buckets == BUCKETS)
            await until(lambda: len(list(state.glob("measured/*.json"))) == 1)
            await until(lambda held=held: held.value("bucket_seconds", model="fashion", bucket="8") is not None)
        assert measured == starts
        if number == 1:
            next(state.glob("measured/*.json")).unlink()


@on_loop
async def test_a_proof_that_fails_behind_the_service_leaves_it_as_it_is(
    fashion: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With one line in the log; what was proved goes on answering."""

    def fails(self):
        self._profile = self._profile.__class__(**{**vars(self._profile), "pending": ()})
        raise EngineError("the run failed: no memory")

    monkeypatch.setattr(Engine, "prove_next", fails)
    async with loaded(fashion, **LONG) as held:
        await until(lambda: any("no larger batches" in record.message for record in caplog.records))
        answer = await held.registry.get().batcher.infer({"image": artifacts.images(3)})
        assert len(answer.outputs["class_id"]) == 3


@on_loop
async def test_a_version_that_takes_over_has_all_its_batches(fashion: Path, measured: list[int]) -> None:
    """Nobody waits for it: the old one answers until every size of the new one is proved."""
    async with loaded(fashion, **LONG) as held:
        await until(lambda: held.registry.get().engine.buckets == BUCKETS)
        artifacts.publish_classifier(fashion, version=2, seed=2)
        await held.reconciler.reconcile("fashion")
        assert (held.registry.get().version, held.registry.get().engine.buckets) == (2, BUCKETS)
        assert held.registry.get().engine.pending == ()


def test_free_memory_is_what_system_and_cgroups_leave(tmp_path: Path) -> None:
    """The least of both; what a cgroup keeps only as cache counts as free, and what cannot be read as unlimited."""
    (tmp_path / "proc/self").mkdir(parents=True)
    assert memory.available_bytes(tmp_path) == 0
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8 kB\n")
    assert memory.available_bytes(tmp_path) == 8192
    for line, folder, names in (
        ("0::/inner", "sys/fs/cgroup/inner", ("memory.max", "memory.current", "inactive_file")),
        ("4:memory:/inner", "sys/fs/cgroup/memory",
         ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ):  # fmt: skip
        (tmp_path / "proc/self/cgroup").write_text(line + "\n")
        place = tmp_path / folder
        place.mkdir(parents=True)
        for name, text in zip(names[:2], ("5000", "3000"), strict=True):
            (place / name).write_text(text + "\n")
        (place / "memory.stat").write_text(f"anon 7\n{names[2]} 1000\n")
        assert memory.available_bytes(tmp_path) == 3000
        (place / names[0]).write_text("max\n")
        assert memory.available_bytes(tmp_path) == 8192
