"""Versions that must not serve, each published beside one that does: refused with a reason, and the old one goes on."""

import asyncio
import logging

import numpy as np
import pytest

from tests.support import artifacts
from tests.support.damage import BAD_VERSIONS
from tests.support.live_models import loaded

ASKED = artifacts.images(16, seed=7)


@pytest.mark.parametrize(("damage", "expected"), BAD_VERSIONS.values(), ids=BAD_VERSIONS.keys())
def test_a_bad_version_is_refused_with_its_reason_and_the_old_one_goes_on(models, caplog, damage, expected):
    """Live: the reason stands in the index and in the log, the metric counts it, and version 1 goes on answering."""
    artifacts.publish_classifier(models, version=1)

    async def test() -> str:
        async with loaded(models, buckets=(1, 4), threads=1) as live:
            damage(artifacts.publish_classifier(models, version=2))
            await live.reconciler.reconcile("fashion")
            assert live.registry.ready
            model = live.registry.get("fashion")
            assert model.version == 1
            answer = await model.batcher.infer({"image": ASKED[:3]})
            np.testing.assert_array_equal(answer.outputs["class_id"], artifacts.classify(ASKED[:3])["class_id"])
            assert live.value("refused_versions_total", model="fashion") == 1
            await live.reconciler.reconcile("fashion")  # it is not tried again for nothing, so it is not counted again
            assert live.value("refused_versions_total", model="fashion") == 1
            rows = await live.control.index()
            assert [(row["version"], row["state"]) for row in rows] == [("1", "READY"), ("2", "UNAVAILABLE")]
            return rows[1]["reason"]

    with caplog.at_level(logging.ERROR):
        reason = asyncio.run(test())
    assert any(part in reason for part in expected.split("|")), reason
    assert "\n" not in reason
    logged = [vars(record) for record in caplog.records if record.getMessage() == "version refused"]
    assert [(entry["model"], entry["version"], entry["reason"]) for entry in logged] == [("fashion", 2, reason)]
