"""The models in memory, from their folders to answers."""

import asyncio
import threading
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
from foldserve.service.live.registry import Registry
from foldserve.service.metrics import Metrics
from foldserve.service.settings import Settings
from tests.support import artifacts


def registry_of(root, metrics=None, **settings):
    return Registry(Settings(models_dir=root, **settings), metrics or Metrics())


def with_loaded(root, check, **settings):
    async def test():
        registry = registry_of(root, **settings)
        await registry.load()
        try:
            await check(registry)
        finally:
            await registry.close()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_single_model_needs_no_name_and_answers(fashion):
    """The newest version is served; its answers are NumPy's."""
    artifacts.publish_classifier(fashion, version=2, seed=1)

    async def check(registry):
        model = registry.get()
        assert (model.name, model.version, model.labels) == ("fashion", 2, artifacts.LABELS)
        asked = artifacts.images(300)
        answer = await model.batcher.infer({"image": asked})
        expected = artifacts.classify(asked, artifacts.classifier_weights(1))
        assert np.array_equal(answer.outputs["class_id"], expected["class_id"])

    with_loaded(fashion, check)


def test_several_models_are_told_apart_by_name(fashion_and_echo):
    """Without a name the caller hears which there are."""

    async def check(registry):
        assert [model.name for model in registry.models()] == ["echo", "fashion"]
        assert registry.get("echo").image is None
        assert registry.get("fashion", 1).image is not None
        with pytest.raises(InvalidInput, match=r"\['echo', 'fashion'\]"):
            registry.get()
        with pytest.raises(ModelNotFound, match="'other' is not served"):
            registry.get("other")
        with pytest.raises(ModelNotFound, match="served in version 1, not 2"):
            registry.get("fashion", 2)

    with_loaded(fashion_and_echo, check)


def test_ready_is_true_only_between_load_and_close(fashion):
    """The reasons say why not, before and after."""

    async def test():
        metrics = Metrics()
        registry = registry_of(fashion, metrics)
        assert not registry.ready
        assert registry.reasons == ["the models are being loaded"]
        assert metrics.registry.get_sample_value("foldserve_ready") == 0
        await registry.load()
        assert registry.ready
        assert registry.reasons == []
        assert metrics.registry.get_sample_value("foldserve_ready") == 1
        batcher = registry.get().batcher
        await registry.close()
        assert not registry.ready
        assert registry.reasons == ["the service is shutting down"]
        with pytest.raises(NotReady):
            await batcher.infer({"image": artifacts.images(1)})

    asyncio.run(test())


def test_what_was_measured_at_load_is_in_the_metrics(fashion):
    """Device, fallback, batch invariance and the time of each bucket can be graphed."""

    async def test():
        metrics = Metrics()
        registry = registry_of(fashion, metrics, provider="cpu", buckets=(1, 8))
        await registry.load()
        value = metrics.registry.get_sample_value
        digest = registry.get().artifact.sha256
        labels = {"model": "fashion", "version": "1", "sha256": digest, "provider": "cpu", "verified": "true"}
        assert value("foldserve_model_info", labels) == 1
        assert value("foldserve_device_fallback", {"model": "fashion"}) == 0
        assert value("foldserve_batch_invariant", {"model": "fashion"}) == 1
        assert value("foldserve_bucket_seconds", {"model": "fashion", "bucket": "8"}) > 0
        assert value("foldserve_golden_deviation_ratio", {"model": "fashion"}) <= 1e-5
        assert value("foldserve_queued_rows", {"model": "fashion"}) == 0
        assert value("foldserve_rows_total", {"model": "fashion"}) == 16  # the golden questions took the real path
        await registry.close()

    asyncio.run(test())


def test_a_model_that_does_not_give_its_golden_answers_stops_the_start(fashion):
    """One bad model among good ones is enough; the reason names it, and no thread stays behind."""
    bad = artifacts.classifier_weights()
    bad["fc.bias"][0] += 1
    asked = artifacts.images(16)
    artifacts.publish(fashion, "bad", artifacts.classifier_model(bad), {"image": asked}, artifacts.classify(asked))

    async def test():
        registry = registry_of(fashion)
        before = threading.active_count()
        with pytest.raises(ArtifactInvalid, match=r"model 'bad': output 'logits' is off by"):
            await registry.load()
        assert not registry.ready
        assert "model 'bad'" in registry.reasons[0]
        assert threading.active_count() == before

    asyncio.run(test())


def test_before_anything_is_loaded_a_request_hears_so(fashion):
    """503 rather than a 404 for a model that is on its way."""
    with pytest.raises(NotReady, match="the models are being loaded"):
        registry_of(fashion).get()


def test_a_run_that_hangs_does_not_keep_the_process(fashion):
    """The drain has an end, and what hung is left behind."""

    async def test():
        registry = registry_of(fashion, drain_seconds=0.05, inline_below_ms=0)
        await registry.load()
        model = registry.get()
        started, let_go = threading.Event(), threading.Event()

        def hang(inputs):
            started.set()
            assert let_go.wait(10)
            return {}

        model.engine.run = hang
        waiting = asyncio.ensure_future(model.batcher.infer({"image": artifacts.images(1)}))
        assert await asyncio.to_thread(started.wait, 10)
        await registry.close()
        assert not waiting.done()
        waiting.cancel()
        let_go.set()

    asyncio.run(asyncio.wait_for(test(), 30))


class Reversing(Batcher):
    """A batcher that mixes up its rows."""

    async def infer(self, inputs, *, deadline=None):
        answer = await super().infer(inputs, deadline=deadline)
        return replace(answer, outputs={name: rows[::-1] for name, rows in answer.outputs.items()})


def test_the_golden_questions_take_the_way_that_requests_take(fashion, monkeypatch):
    """A right engine behind a batcher that mixes up rows is not ready either."""
    monkeypatch.setattr("foldserve.service.live.loading.Batcher", Reversing)
    with pytest.raises(ArtifactInvalid, match="model 'fashion'"):
        asyncio.run(registry_of(fashion).load())


def test_a_lost_device_turns_ready_false_and_ends_the_process(fashion):
    """Nothing else can bring it back, and whoever watches over the process starts another."""
    ended = []

    async def test():
        metrics = Metrics()
        registry = Registry(Settings(models_dir=fashion), metrics, end_process=lambda: ended.append(True))
        await registry.load()
        model = registry.get()

        def lose(inputs):
            raise DeviceLost("CUDA error 700")

        model.engine.run = lose
        with pytest.raises(DeviceLost):
            await model.batcher.infer({"image": artifacts.images(1)})
        assert not registry.ready
        assert registry.reasons == ["CUDA error 700"]
        assert metrics.registry.get_sample_value("foldserve_ready") == 0
        assert ended == [True]
        await registry.close()

    asyncio.run(test())


def test_no_models_stop_the_start(models):
    """The sentence says where was looked and how to look elsewhere."""
    with pytest.raises(ArtifactInvalid, match="set --models-dir"):
        asyncio.run(registry_of(models).load())
    with pytest.raises(ArtifactInvalid, match="cannot be read"):
        asyncio.run(registry_of(models / "nowhere").load())


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is at hand")
def test_a_device_that_cannot_be_had_stops_the_start_or_is_reported(fashion):
    """cuda insists; auto falls back, and the gauge says so."""
    with pytest.raises(ProviderUnavailable, match=r"model 'fashion': .*install"):
        asyncio.run(registry_of(fashion, provider="cuda").load())

    async def test():
        metrics = Metrics()
        registry = registry_of(fashion, metrics, provider="auto")
        await registry.load()
        assert metrics.registry.get_sample_value("foldserve_device_fallback", {"model": "fashion"}) == 1
        await registry.close()

    asyncio.run(test())
