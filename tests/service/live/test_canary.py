"""Ready as a statement about now: a loaded registry whose model begins to answer wrongly, and recovers."""

import asyncio

import numpy as np
import pytest

from foldserve.service.live.canary import Canary
from tests.support import artifacts
from tests.support.live_models import loaded
from tests.support.wire import on_loop

FAST = {"threads": 1, "buckets": (1, 16)}


class Wrong:
    """Answers as the model does, with one logit changed in the last place that counts."""

    def __init__(self, runner) -> None:
        self._runner = runner

    def run(self, inputs):
        outputs = self._runner.run(inputs)
        outputs["logits"] = outputs["logits"] + np.float32(0.01)
        return outputs


@on_loop
async def test_a_model_that_answers_wrongly_is_not_ready_and_recovers(fashion):
    """The reason names the model; right answers make it ready again."""
    async with loaded(fashion, **FAST) as models:
        registry, canary = models.registry, Canary(models.registry, 5.0)
        (model,) = registry.models()
        await canary.check(model)  # it has just answered: this runs nothing
        runner = model.engine._runner
        model.engine._runner = Wrong(runner)
        await canary.check(model)
        assert not registry.ready
        assert "model 'fashion' no longer gives its golden answers" in registry.reasons[0]
        model.engine._runner = runner
        await canary.check(model)
        assert registry.ready
        assert registry.reasons == []
        assert not models.ended


@on_loop
async def test_a_model_that_stays_wrong_ends_the_process(fashion):
    """Three times in a row, once; and a process that ends is not ready again, whatever is answered meanwhile."""
    async with loaded(fashion, **FAST) as models:
        canary = Canary(models.registry, 5.0)
        (model,) = models.registry.models()
        await canary.check(model)
        runner = model.engine._runner
        model.engine._runner = Wrong(runner)
        for _ in range(5):
            await canary.check(model)
        assert models.ended == [True]
        model.engine._runner = runner
        await canary.check(model)
        assert not models.registry.ready


@on_loop
async def test_a_busy_model_is_not_checked(fashion):
    """A model that answers others need not answer a canary."""
    async with loaded(fashion, **FAST) as models:
        canary = Canary(models.registry, 5.0)
        (model,) = models.registry.models()
        for _ in range(3):
            await model.batcher.infer({"image": artifacts.images(1)})
            before = model.batcher.batches
            assert await canary.check(model) == 0
            assert model.batcher.batches == before
        assert 0 < await canary.check(model) < 10


@pytest.mark.parametrize("seconds", [0.0, 0.01])
@on_loop
async def test_it_checks_by_itself_unless_disabled(fashion, seconds):
    """0 disables the checks."""
    async with loaded(fashion, **FAST) as models:
        checked = asyncio.Event()

        class Noted(Canary):
            async def check(self, model) -> float:
                checked.set()
                return await super().check(model)

        canary = asyncio.create_task(Noted(models.registry, seconds).run())
        if seconds:
            await asyncio.wait_for(checked.wait(), 30)
            canary.cancel()
        else:
            await canary
            assert not checked.is_set()


@on_loop
async def test_a_registry_that_closes_stays_not_ready(fashion):
    """A right answer that comes late does not open it again."""
    async with loaded(fashion, **FAST) as models:
        await models.reconciler.stop()
        models.registry.doubt("fashion", None)
        assert not models.registry.ready
        assert models.registry.reasons == ["the service is shutting down"]
