"""One content under one number: what becomes of a version whose folder changes or goes while it serves."""

import shutil

import pytest

from foldserve.service.errors import InvalidInput, NotReady
from foldserve.service.live.reconciler import Reconciler
from foldserve.service.live.registry import Registry
from foldserve.service.live.served import ServedVersions
from foldserve.service.live.shadow import Shadows
from foldserve.service.metrics import Metrics
from foldserve.service.processes.workers import Workers
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live_models import loaded
from tests.support.wire import on_loop


def test_the_first_digest_holds_for_all_workers(tmp_path):
    """Whoever comes second hears what the first one served; nothing replaces it."""
    first, second = ServedVersions(tmp_path), ServedVersions(tmp_path)
    assert first.digest("m", 1) is None
    assert first.claim("m", 1, "aa") == "aa"
    assert second.claim("m", 1, "bb") == "aa"
    assert ServedVersions(tmp_path).digest("m", 1) == "aa"
    assert second.claim("m", 2, "bb") == "bb"
    first.set_latest("m", 2)
    assert second.latest("m") == 2
    second.set_latest("m", None)
    assert first.latest("m") is None


def other_content(models) -> None:
    shutil.rmtree(models / "fashion/2")
    artifacts.publish_classifier(models, version=2, seed=9)


def in_place(models) -> None:
    other = artifacts.publish_classifier(models.parent / "elsewhere", version=2, seed=9)
    for name in ("model.onnx", "manifest.json"):
        (models / "fashion/2" / name).write_bytes((other / name).read_bytes())


def gone(models) -> None:
    shutil.rmtree(models / "fashion/2")


def model_gone(models) -> None:
    shutil.rmtree(models / "fashion")


def model_alone_gone(models) -> None:
    (models / "fashion/2/model.onnx").unlink()


def damaged(models) -> None:
    data = bytearray((models / "fashion/2/model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (models / "fashion/2/model.onnx").write_bytes(data)


CHANGES = [other_content, in_place, gone, model_gone, model_alone_gone, damaged]


async def polled(models) -> None:
    """One turn of the poll, by hand."""
    folders = models.reconciler._folders
    for model, change in folders.look().items():
        folders.note(model, change)


@pytest.mark.parametrize("change", CHANGES)
@on_loop
async def test_a_change_on_disk_is_noticed_and_reported_once(fashion, caplog, change):
    """The version answers on as it was proved; index, log and metric say what became of its folder."""
    kept = fashion.parent / "kept"
    artifacts.publish_classifier(fashion, version=2, seed=2)
    shutil.copytree(fashion / "fashion/2", kept)
    async with loaded(fashion) as models:
        model = models.registry.get()
        await polled(models)
        assert models.reconciler._folders.reasons == {}
        change(fashion)
        for _ in range(3):
            await polled(models)
        assert models.value("changed_versions", model="fashion") == 1
        row = next(row for row in [*await models.control.index()] if row["version"] == "2")
        assert row["state"] == "READY"
        assert "what was proved answers on" in row["reason"]
        lines = [record for record in caplog.records if record.getMessage() == "a version that serves changed on disk"]
        assert len(lines) == 1
        assert models.registry.get() is model
        shutil.rmtree(fashion / "fashion/2", ignore_errors=True)
        shutil.copytree(kept, fashion / "fashion/2")
        await polled(models)
        assert models.value("changed_versions", model="fashion") == 0


@on_loop
async def test_another_content_is_never_loaded_under_a_number_that_was_served(fashion, tmp_path):
    """Neither by a promote back to it nor after an unload; the old content is taken again."""
    kept = fashion.parent / "kept"
    shutil.copytree(fashion / "fashion/1", kept)
    artifacts.publish_classifier(fashion, version=2, seed=2)
    async with loaded(fashion, state_dir=tmp_path / "state", keep_warm=0) as models:
        await models.control.promote("fashion", 1)
        await models.control.promote("fashion", 2)
        shutil.rmtree(fashion / "fashion/1")
        artifacts.publish_classifier(fashion, version=1, seed=9)
        with pytest.raises(InvalidInput, match=r"another content .* than was served as version 1"):
            await models.control.promote("fashion", 1)
        assert models.registry.get("fashion").version == 2
        shutil.rmtree(fashion / "fashion/1")
        shutil.copytree(kept, fashion / "fashion/1")
        await models.control.promote("fashion", 1)
        assert models.registry.get("fashion").version == 1


class SecondWorker:
    """A worker that starts later, as a replacement does, and shares the folder of the first."""

    def __init__(self, root, shared, place: int = 0, **settings) -> None:
        self.metrics = Metrics()
        chosen = Settings(models_dir=root, provider="cpu", poll_seconds=0, **settings)
        self.registry = Registry(self.metrics, Shadows(None), end_process=lambda: None)
        self.reconciler = Reconciler(self.registry, chosen, self.metrics, Workers(shared), place)


@pytest.mark.parametrize("change", CHANGES)
@on_loop
async def test_a_worker_that_lacks_the_old_bytes_says_so(fashion, tmp_path, change):
    """503 with the reason for this model alone, neither another content nor another version; the old bytes mend it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    artifacts.publish_classifier(fashion, version=2, seed=2)
    artifacts.publish_echo(fashion)
    kept = fashion.parent / "kept"
    shutil.copytree(fashion / "fashion/2", kept)
    first = SecondWorker(fashion, shared)
    await first.reconciler.start()
    assert first.registry.get("fashion").version == 2
    change(fashion)
    second = SecondWorker(fashion, shared)
    await second.reconciler.start()
    try:
        assert second.registry.get("echo").version == 1
        with pytest.raises(NotReady, match="served as version 2"):
            second.registry.get("fashion")
        assert [model.name for model in second.registry.models()] == ["echo"]
        shutil.rmtree(fashion / "fashion/2", ignore_errors=True)
        shutil.copytree(kept, fashion / "fashion/2")
        await second.reconciler.reconcile("fashion")
        assert second.registry.get("fashion").version == 2
        digests = {worker.registry.get("fashion").artifact.sha256 for worker in (first, second)}
        assert len(digests) == 1
    finally:
        await second.reconciler.stop()
        await first.reconciler.stop()


@on_loop
async def test_a_new_version_ends_the_loss(fashion, tmp_path):
    """What cannot be had again is superseded, as any version is."""
    shared = tmp_path / "shared"
    shared.mkdir()
    artifacts.publish_classifier(fashion, version=2, seed=2)
    first = SecondWorker(fashion, shared)
    await first.reconciler.start()
    in_place(fashion)
    second = SecondWorker(fashion, shared)
    await second.reconciler.start()
    artifacts.publish_classifier(fashion, version=3, seed=3)
    for worker in (first, second):
        await worker.reconciler.reconcile("fashion")
        assert worker.registry.get("fashion").version == 3
        await worker.reconciler.stop()
