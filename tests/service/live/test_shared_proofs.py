"""What one worker has proved, the next one proves in fewer runs, and never takes on trust."""

from collections import Counter
from contextlib import asynccontextmanager

import numpy as np
import pytest

from foldserve.service.engines import buckets
from foldserve.service.engines.measured import Measured
from foldserve.service.engines.measured_cache import MeasuredCache
from foldserve.service.engines.runners import PlainRunner
from foldserve.service.errors import ServiceError
from foldserve.service.live.loading import Loader
from foldserve.service.live.reconciler import Reconciler
from foldserve.service.live.registry import Registry
from foldserve.service.live.shadow import Shadows
from foldserve.service.metrics import Metrics
from foldserve.service.processes.workers import Workers
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.wire import on_loop

BUCKETS = (1, 4, 16)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """On a busy machine the runs of a small model take long, too: none is left for later here."""
    monkeypatch.setattr(buckets, "SHORT_RUN_SECONDS", 10.0)
    monkeypatch.setattr("foldserve.service.engines.load.SHORT_RUN_SECONDS", 10.0)


@pytest.fixture
def runs(monkeypatch) -> Counter[int]:
    """How many runs there were of each number of rows."""
    seen: Counter[int] = Counter()
    run = PlainRunner.run

    def counted(runner, inputs):
        seen[len(next(iter(inputs.values())))] += 1
        return run(runner, inputs)

    monkeypatch.setattr(PlainRunner, "run", counted)
    return seen


@asynccontextmanager
async def worker(root, shared, place=0, **options):
    """One of two workers."""
    small = {"threads": 1, "buckets": BUCKETS, "specialise": False}
    settings = Settings(models_dir=root, provider="cpu", poll_seconds=0, workers=2, **small, **options)
    metrics = Metrics()
    registry = Registry(metrics, Shadows(None), end_process=lambda: None)
    reconciler = Reconciler(registry, settings, metrics, Workers(shared), place)
    await reconciler.start()
    try:
        yield registry
    finally:
        await reconciler.stop()


def rows_of(runs: Counter[int]) -> int:
    return sum(rows * count for rows, count in runs.items())


async def answers(registry) -> dict[str, np.ndarray]:
    return (await registry.get("fashion").batcher.infer({"image": artifacts.images(5, seed=9)})).outputs


@on_loop
async def test_the_second_worker_proves_what_the_first_has_proved_in_fewer_runs(fashion, tmp_path, runs):
    """Each golden row in every batch size, but not at every position; the answers are the same bytes."""
    async with worker(fashion, tmp_path) as first:
        in_full = Counter(runs)
        runs.clear()
        async with worker(fashion, tmp_path, 1) as second:
            in_brief = Counter(runs)
            engines = [registry.get("fashion").engine for registry in (first, second)]
            assert [engine.buckets for engine in engines] == [BUCKETS, BUCKETS]
            assert [engine.batch_invariant for engine in engines] == [True, True]
            given, again = await answers(first), await answers(second)
            assert all(given[name].tobytes() == again[name].tobytes() for name in given)
    assert all(in_brief[bucket] >= -(-16 // bucket) for bucket in BUCKETS)
    assert rows_of(in_brief) < rows_of(in_full) / 2


@on_loop
async def test_another_content_is_proved_in_full(fashion, tmp_path, runs):
    """Other weights of the same structure are another content."""
    async with worker(fashion, tmp_path):
        in_full = rows_of(runs)
    artifacts.publish_classifier(fashion, version=2, seed=2)
    runs.clear()
    async with worker(fashion, tmp_path, 1) as second:
        assert second.get("fashion").version == 2
    assert rows_of(runs) > in_full / 2


@on_loop
async def test_what_was_measured_before_a_restart_is_no_proof(fashion, tmp_path, runs):
    """It saves the timing alone: the machine, and what its kernels do, may have changed."""
    (tmp_path / "state").mkdir()
    totals = []
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        runs.clear()
        async with worker(fashion, tmp_path / name, state_dir=tmp_path / "state"):
            totals.append(rows_of(runs))
    assert totals[1] > totals[0] / 2


@pytest.mark.parametrize("is_wrong", [False, True])
@on_loop
async def test_a_proof_that_is_claimed_lets_no_wrong_answer_through(models, tmp_path, monkeypatch, is_wrong):
    """Whatever lies in the shared folder, a version that does not give its golden answers is refused."""
    wrong = artifacts.classifier_weights(2) if is_wrong else artifacts.classifier_weights(0)
    asked = artifacts.images(16, seed=7)
    artifacts.publish(
        models,
        "fashion",
        artifacts.classifier_model(artifacts.classifier_weights(0)),
        {"image": asked},
        artifacts.classify(asked, wrong),
    )
    claimed = Measured(None, None, dict.fromkeys(BUCKETS, 1e-4))
    monkeypatch.setattr(MeasuredCache, "get", lambda *_: claimed)
    if is_wrong:
        with pytest.raises(ServiceError, match="golden"):
            async with worker(models, tmp_path):
                pass
    else:
        async with worker(models, tmp_path) as first:
            assert first.get("fashion").engine.buckets == BUCKETS


@on_loop
async def test_workers_begin_with_different_models(models, tmp_path, monkeypatch):
    """So that each model is proved in full by one of them."""
    for number in range(4):
        artifacts.publish_echo(models, f"echo{number}")
    order: list[str] = []
    load = Loader.load

    async def noted(loader, name, *args, **options):
        order.append(name)
        return await load(loader, name, *args, **options)

    monkeypatch.setattr(Loader, "load", noted)
    for place in (0, 1):
        shared = tmp_path / str(place)
        shared.mkdir()
        async with worker(models, shared, place):
            pass
    assert order == ["echo0", "echo1", "echo2", "echo3", "echo2", "echo3", "echo0", "echo1"]
