"""A load that begins before the application is there gives what one that begins later does."""

import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from foldserve.service.engines import load as loading
from foldserve.service.errors import ArtifactInvalid
from foldserve.service.live.live_models import LiveModels
from foldserve.service.live.opening import Opener
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live_models import loaded
from tests.support.wire import on_loop, until


@pytest.fixture
def settings(fashion: Path, tmp_path: Path) -> dict[str, Any]:
    artifacts.publish_classifier(fashion, "other", seed=3)
    return {"models_dir": fashion, "provider": "cpu", "buckets": (1, 4), "poll_seconds": 0, "state_dir": tmp_path / "s"}


async def begun(settings: dict[str, Any]) -> LiveModels:
    """Models whose loads have begun, and are as far as they can be."""
    models = LiveModels.of(Settings(**settings))
    models.reconciler.begin()
    assert models.reconciler._prepared is not None
    models.reconciler._prepared.result(30)
    wait([load.work for load in models.reconciler._loader._begun.values()], 30)
    return models


async def measure(settings: dict[str, Any]) -> None:
    """Start once, so that a state folder knows what was measured."""
    given = {name: value for name, value in settings.items() if name != "models_dir"}
    async with loaded(settings["models_dir"], **given):
        pass


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("engine-")]


@on_loop
async def test_what_was_measured_is_open_before_the_start_and_side_by_side(settings, monkeypatch):
    """Both models at a time, each in the thread in which it runs; the start makes no second engine."""
    await measure(settings)
    both = threading.Barrier(2, timeout=30)
    read = Opener.read
    monkeypatch.setattr(Opener, "read", lambda self, *given: (both.wait() and False) or read(self, *given))
    models = await begun(settings)
    engines = {name: load.work.result().engine for (name, _), load in models.reconciler._loader._begun.items()}
    assert set(engines) == {"fashion", "other"}
    assert None not in engines.values()
    await models.reconciler.start()
    assert {model.name: model.engine for model in models.registry.models()} == engines
    await models.reconciler.stop()
    assert engine_threads() == []


@on_loop
async def test_what_was_never_measured_is_read_and_the_first_graph_chosen(settings, monkeypatch):
    """Any other measurement would be wrong beside imports; what was chosen is not looked for again."""
    models = await begun(settings)
    first, second = [load.work.result() for load in models.reconciler._loader._begun.values()]
    assert (first.engine, second.engine) == (None, None)
    assert first.chosen is not None
    assert second.chosen is None
    looked_for, autotune = [], loading.autotune
    monkeypatch.setattr(loading, "autotune", lambda *given: (looked_for.append(given[0].name), autotune(*given))[1])
    await models.reconciler.start()
    assert "fashion" not in looked_for
    assert [model.name for model in models.registry.models()] == ["fashion", "other"]
    await models.reconciler.stop()


@on_loop
async def test_a_version_whose_files_changed_since_is_read_again(settings):
    """What serves is what is on the disk when the start looks, and what is noticed as a change later."""
    await measure(settings)
    models = await begun(settings)
    folder = settings["models_dir"] / "fashion"
    new = artifacts.publish_classifier(settings["models_dir"].parent / "new", seed=9)
    for name in ("model.onnx", "manifest.json"):
        (folder / "1" / name).write_bytes((new / name).read_bytes())
    await models.reconciler.start()
    served = {model.name: model for model in models.registry.models()}
    question = artifacts.images(4)
    answer = await served["fashion"].batcher.infer({"image": question})
    expected = artifacts.classify(question, artifacts.classifier_weights(9))
    assert abs(answer.outputs["logits"] - expected["logits"]).max() < 1e-3
    await models.reconciler.stop()


@on_loop
async def test_what_is_not_wanted_any_more_is_given_up(settings):
    """A pin that comes with a later look leaves no thread and no engine of what was begun."""
    await measure(settings)
    models = await begun(settings)
    artifacts.publish_classifier(settings["models_dir"], version=2, seed=5)
    await models.reconciler.start()
    assert [(model.name, model.version) for model in models.registry.models()] == [("fashion", 2), ("other", 1)]
    await until(lambda: sorted(engine_threads()) == ["engine-fashion_0", "engine-other_0"])
    await models.reconciler.stop()
    assert engine_threads() == []


@on_loop
async def test_what_cannot_be_begun_is_the_start_s_to_say(settings, tmp_path):
    """A damaged deployment file, no models, and a damaged model, each in the words of a start without beginning."""
    file = tmp_path / "deployment.toml"
    file.write_text("pin = 1")
    for change, reason in (
        ({"deployment_file": file}, "pin is not known"),
        ({"models_dir": tmp_path / "none"}, "cannot be read"),
    ):
        models = LiveModels.of(Settings(**{**settings, **change}))
        models.reconciler.begin()
        with pytest.raises(ArtifactInvalid, match=reason):
            await models.reconciler.start()
    (settings["models_dir"] / "other/1/model.onnx").write_bytes(b"no model")
    models = await begun(settings)
    await models.reconciler.start()
    assert [model.name for model in models.registry.models()] == ["fashion"]
    assert "bytes, its manifest says" in str(models.reconciler.refusals["other", 1].error)
    await models.reconciler.stop()
