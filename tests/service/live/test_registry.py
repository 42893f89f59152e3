"""The models in memory, from their folders to answers."""

import asyncio
import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from foldserve.service.batching.batcher import Batcher
from foldserve.service.errors import (
    ArtifactInvalid,
    DeviceLost,
    InvalidInput,
    ModelNotFound,
    NotReady,
    ProviderUnavailable,
)
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live_models import LiveModels, loaded
from tests.support.wire import on_loop


async def start(root, **settings) -> None:
    """Load what must not load."""
    async with loaded(root, **settings):
        raise AssertionError("it started")


@on_loop
async def test_a_single_model_needs_no_name_and_answers(fashion):
    """The newest version is served; its answers are NumPy's."""
    artifacts.publish_classifier(fashion, version=2, seed=1)
    async with loaded(fashion) as models:
        model = models.registry.get()
        assert (model.name, model.version, model.class_names) == ("fashion", 2, artifacts.LABELS)
        asked = artifacts.images(300)
        answer = await model.batcher.infer({"image": asked})
        expected = artifacts.classify(asked, artifacts.classifier_weights(1))
        assert np.array_equal(answer.outputs["class_id"], expected["class_id"])


@on_loop
async def test_several_models_are_told_apart_by_name(fashion_and_echo):
    """Without a name the caller hears which there are."""
    async with loaded(fashion_and_echo) as models:
        registry = models.registry
        assert [model.name for model in registry.models()] == ["echo", "fashion"]
        assert registry.get("echo").image is None
        assert registry.get("fashion", 1).image is not None
        with pytest.raises(InvalidInput, match=r"\['echo', 'fashion'\]"):
            registry.get()
        with pytest.raises(ModelNotFound, match="'other' is not served"):
            registry.get("other")
        with pytest.raises(ModelNotFound, match="served in version 1, not 2"):
            registry.get("fashion", 2)


@on_loop
async def test_ready_is_true_only_between_start_and_stop(fashion):
    """The reasons say why not, before and after."""
    models = LiveModels(Settings(models_dir=fashion))
    registry = models.registry
    assert not registry.ready
    assert registry.reasons == ["the models are being loaded"]
    assert models.value("ready") == 0
    await models.reconciler.start()
    assert registry.ready
    assert registry.reasons == []
    assert models.value("ready") == 1
    batcher = registry.get().batcher
    await models.reconciler.stop()
    assert not registry.ready
    assert registry.reasons == ["the service is shutting down"]
    with pytest.raises(NotReady):
        await batcher.infer({"image": artifacts.images(1)})


@on_loop
async def test_what_was_measured_at_load_is_in_the_metrics(fashion):
    """Device, fallback, batch invariance and the time of each bucket can be graphed."""
    async with loaded(fashion, buckets=(1, 8)) as models:
        digest = models.registry.get().artifact.sha256
        identity = {"model": "fashion", "version": "1", "sha256": digest, "provider": "cpu", "verified": "true"}
        assert models.value("model_info", **identity) == 1
        assert models.value("device_fallback", model="fashion") == 0
        assert models.value("batch_invariant", model="fashion") == 1
        assert models.value("bucket_seconds", model="fashion", bucket="8") > 0
        assert models.value("golden_deviation_ratio", model="fashion") <= 1e-5
        assert models.value("queued_rows", model="fashion") == 0
        assert models.value("check_rows_total", model="fashion", source="golden") == 16
        assert models.value("rows_total", model="fashion") == 0


@on_loop
async def test_a_model_that_does_not_give_its_golden_answers_stops_a_strict_start(fashion):
    """One bad model among good ones is enough; the reason names it, and no thread stays behind."""
    bad = artifacts.classifier_weights()
    bad["fc.bias"][0] += 1
    asked = artifacts.images(16)
    artifacts.publish(fashion, "bad", artifacts.classifier_model(bad), {"image": asked}, artifacts.classify(asked))
    models = LiveModels(Settings(models_dir=fashion, strict_start=True))
    with pytest.raises(ArtifactInvalid, match=r"model 'bad': output 'logits' is off by"):
        await models.reconciler.start()
    assert not models.registry.ready
    assert "model 'bad'" in models.registry.reasons[0]
    left = [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]
    for thread in left:
        await asyncio.to_thread(thread.join, 30)  # it is told to end, and does so when it gets a core
    assert not [thread.name for thread in left if thread.is_alive()]


def test_before_anything_is_loaded_a_request_hears_so(fashion):
    """503 rather than a 404 for a model that is on its way."""
    with pytest.raises(NotReady, match="the models are being loaded"):
        LiveModels(Settings(models_dir=fashion)).registry.get()


@on_loop
async def test_a_run_that_hangs_does_not_keep_the_process(fashion):
    """The drain has an end, and what hung is left behind."""
    async with loaded(fashion, drain_seconds=0.05, inline_below_ms=0) as models:
        model = models.registry.get()
        started, let_go = threading.Event(), threading.Event()

        def hang(inputs):
            started.set()
            assert let_go.wait(10)
            return {}

        model.engine.run = hang
        waiting = asyncio.ensure_future(model.batcher.infer({"image": artifacts.images(1)}))
        assert await asyncio.to_thread(started.wait, 10)
        await models.reconciler.stop()
        assert not waiting.done()
        waiting.cancel()
        let_go.set()


class Reversing(Batcher):
    """A batcher that mixes up its rows."""

    async def infer(self, inputs, **options):
        answer = await super().infer(inputs, **options)
        return replace(answer, outputs={name: rows[::-1] for name, rows in answer.outputs.items()})


def test_the_golden_questions_take_the_way_that_requests_take(fashion, monkeypatch):
    """A right engine behind a batcher that mixes up rows is not ready either."""
    monkeypatch.setattr("foldserve.service.live.loading.Batcher", Reversing)
    with pytest.raises(ArtifactInvalid, match="model 'fashion'"):
        asyncio.run(start(fashion))


def engine_threads() -> list[str]:
    """Those that loads make; the loop's own pool grows and shrinks as it likes."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("engine-"))


@on_loop
async def test_a_version_that_was_refused_leaves_nothing_behind(fashion, monkeypatch):
    """Neither its thread nor its session: a folder that is tried again each hour must not fill the memory."""
    engines = []

    class Noted(Reversing):
        def __init__(self, engine, **options):
            engines.append(weakref.ref(engine))
            super().__init__(engine, **options)

    async with loaded(fashion) as models:
        artifacts.publish_classifier(fashion, version=2, seed=2)
        threads = engine_threads()
        monkeypatch.setattr("foldserve.service.live.loading.Batcher", Noted)
        await models.reconciler.reconcile("fashion")
        assert (await models.control.index())[1]["state"] == "UNAVAILABLE"
        gc.collect()
        assert engine_threads() == threads
        assert [engine() for engine in engines] == [None]


@on_loop
async def test_a_lost_device_turns_ready_false_and_ends_the_process(fashion):
    """Only a new process can bring it back: a supervisor or the container's owner starts one."""
    async with loaded(fashion) as models:
        model = models.registry.get()

        def lose(inputs):
            raise DeviceLost("CUDA error 700")

        model.engine.run = lose
        with pytest.raises(DeviceLost):
            await model.batcher.infer({"image": artifacts.images(1)})
        assert not models.registry.ready
        assert models.registry.reasons == ["CUDA error 700"]
        assert models.value("ready") == 0
        assert models.ended == [True]


def test_no_models_stop_the_start(models):
    """The sentence says where was looked and how to look elsewhere."""
    with pytest.raises(ArtifactInvalid, match="set --models-dir"):
        asyncio.run(start(models))
    with pytest.raises(ArtifactInvalid, match="cannot be read"):
        asyncio.run(start(models / "nowhere"))


@on_loop
async def test_a_models_folder_that_goes_is_503_for_operators_alone(fashion, tmp_path):
    """Calls that look at it say what is gone; what serves goes on, and all is well again when it is back."""
    async with loaded(fashion, state_dir=tmp_path / "state") as models:
        fashion.rename(tmp_path / "elsewhere")
        calls = (models.control.index, lambda: models.control.show("fashion"), lambda: models.control.load("fashion"),
                 lambda: models.control.promote("fashion", 1), lambda: models.control.unload("fashion"))  # fmt: skip
        for call in calls:
            with pytest.raises(NotReady, match=r"cannot be read: No such file or directory; what serves goes on"):
                await call()
        assert models.registry.get("fashion").version == 1
        (tmp_path / "elsewhere").rename(fashion)
        assert [row["state"] for row in await models.control.index()] == ["READY"]


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is at hand")
@on_loop
async def test_a_device_that_cannot_be_had_stops_the_start_or_is_reported(fashion):
    """cuda insists; auto falls back, and the gauge says so."""
    with pytest.raises(ProviderUnavailable, match=r"model 'fashion': .*install"):
        await start(fashion, provider="cuda")
    async with loaded(fashion, provider="auto") as models:
        assert models.value("device_fallback", model="fashion") == 1
