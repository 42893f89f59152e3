"""Versions that must not serve, each published beside one that does: refused with a reason, and the old one goes on."""

import asyncio
import logging

import numpy as np
import pytest

from foldserve.service.live.control import ModelControl
from foldserve.service.live.registry import Registry
from foldserve.service.metrics import Metrics
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.damage import BAD_VERSIONS

ASKED = artifacts.images(16, seed=7)


@pytest.mark.parametrize(("damage", "expected"), BAD_VERSIONS.values(), ids=BAD_VERSIONS.keys())
def test_a_bad_version_is_refused_with_its_reason_and_the_old_one_goes_on(models, caplog, damage, expected):
    """Live: the reason stands in the index and in the log, the metric counts it, and version 1 goes on answering."""
    artifacts.publish_classifier(models, version=1)

    async def test() -> str:
        metrics = Metrics()
        registry = Registry(
            Settings(models_dir=models, provider="cpu", buckets=(1, 4), threads=1, poll_seconds=0), metrics
        )
        await registry.load()
        damage(artifacts.publish_classifier(models, version=2))
        await registry.reconciler.follow("fashion")
        assert registry.ready
        model = registry.get("fashion")
        assert model.version == 1
        answer = await model.batcher.infer({"image": ASKED[:3]})
        np.testing.assert_array_equal(answer.outputs["class_id"], artifacts.classify(ASKED[:3])["class_id"])
        assert metrics.registry.get_sample_value("foldserve_refused_versions_total", {"model": "fashion"}) == 1
        await registry.reconciler.follow("fashion")  # it is not tried again for nothing, so it is not counted again
        assert metrics.registry.get_sample_value("foldserve_refused_versions_total", {"model": "fashion"}) == 1
        rows = ModelControl(registry, promotes_new=True).index()
        assert [(row["version"], row["state"]) for row in rows] == [("1", "READY"), ("2", "UNAVAILABLE")]
        await registry.close()
        return rows[1]["reason"]

    with caplog.at_level(logging.ERROR):
        reason = asyncio.run(test())
    assert any(part in reason for part in expected.split("|")), reason
    assert "\n" not in reason
    logged = [vars(record) for record in caplog.records if record.getMessage() == "version refused"]
    assert [(entry["model"], entry["version"], entry["reason"]) for entry in logged] == [("fashion", 2, reason)]
