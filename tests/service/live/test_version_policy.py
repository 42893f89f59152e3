"""The versions that a Triton folder's configuration says are served, and how operators and new versions meet it."""

import httpx
import pytest

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts, exported
from tests.support.live import serve
from tests.support.live_models import loaded
from tests.support.operator import publish
from tests.support.wire import on_loop

POLICIES = {
    "": ({3}, 3),
    "version_policy { latest { num_versions: 2 } }": ({2, 3}, 3),
    "version_policy { all { } }": ({1, 2, 3}, 3),
    "version_policy { specific { versions: [1, 2] } }": ({1, 2}, 2),
}


@pytest.mark.parametrize("is_verified", [True, False])
@pytest.mark.parametrize("text", POLICIES)
@on_loop
async def test_what_the_policy_names_is_served_and_the_newest_of_it_is_latest(tmp_path, text, is_verified):
    """With and without manifests; what it does not name is listed with the reason."""
    for version in (1, 2, 3):
        if is_verified:
            publish(tmp_path, version)
        else:
            exported.save(tmp_path, "fashion", artifacts.classifier_model(metadata={}), version)
    (tmp_path / "fashion/config.pbtxt").write_text(text)
    served, latest = POLICIES[text]
    async with loaded(tmp_path, allow_unverified=True) as models:
        table = models.registry.tables["fashion"]
        assert set(table.loaded) == served
        assert table.latest == latest
        if "specific" in text:
            assert models.reconciler.held_back["fashion", 3] == "config.pbtxt serves versions 1, 2 alone"


@on_loop
async def test_new_versions_and_a_new_policy_are_followed(tmp_path):
    """While running: the window moves with the newest, and what falls out of it is unloaded."""
    config = tmp_path / "fashion/config.pbtxt"
    for version in (1, 2):
        publish(tmp_path, version)
    config.write_text("version_policy { latest { num_versions: 2 } }")
    async with loaded(tmp_path, keep_warm=0) as models:
        publish(tmp_path, 3)
        await models.reconciler.reconcile("fashion")
        assert set(models.registry.tables["fashion"].loaded) == {2, 3}
        config.write_text("version_policy { specific { versions: [1] } }")
        await models.reconciler.reconcile("fashion")
        table = models.registry.tables["fashion"]
        assert (set(table.loaded), table.latest) == ({1}, 1)


@on_loop
async def test_an_operator_s_decision_wins_over_the_policy(tmp_path):
    """A version that was promoted by its number answers."""
    for version in (1, 2):
        publish(tmp_path, version)
    (tmp_path / "fashion/config.pbtxt").write_text("version_policy { specific { versions: [1] } }")
    async with loaded(tmp_path, state_dir=tmp_path.parent / "state") as models:
        assert models.registry.tables["fashion"].latest == 1
        await models.control.promote("fashion", 2)
        assert models.registry.tables["fashion"].latest == 2


def test_a_folder_of_triton_serves_as_it_did(tmp_path):
    """Rows, names of files and versions over HTTP, and the configuration says so again."""
    folder = tmp_path / "flowers"
    for version in (1, 2):
        saved = exported.save(tmp_path, "flowers", artifacts.classifier_model(metadata={}), version)
        (saved / "model.onnx").rename(saved / "net.onnx")
    (folder / "labels.txt").write_text("\n".join(f"kind {index}" for index in range(10)))
    (folder / "config.pbtxt").write_text(
        'max_batch_size: 3 default_model_filename: "net.onnx" version_policy { all { } }'
        ' output [ { name: "probabilities" label_filename: "labels.txt" } ]'
    )
    images = artifacts.images(7, seed=3)
    app = create_app(Settings(models_dir=tmp_path, provider="cpu", buckets=(1, 8), allow_unverified=True))
    with serve(app) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        config = http.get("/v2/models/flowers/versions/1/config").json()
        assert (config["max_batch_size"], config["default_model_filename"]) == (3, "net.onnx")
        assert config["version_policy"] == {"all": {}}
        tensor = {"name": "image", "datatype": "UINT8", "shape": images.shape, "data": images.ravel().tolist()}
        wanted = {"name": "probabilities", "parameters": {"classification": 1}}
        answer = http.post("/v2/models/flowers/versions/1/infer", json={"inputs": [tensor], "outputs": [wanted]})
        best = answer.json()["outputs"][0]["data"]
        assert len(best) == 7
        assert all("kind " in one for one in best)
        sizes = http.get("/v2/models/flowers/versions/1/stats").json()["model_stats"][0]["batch_stats"]
        assert max(size["batch_size"] for size in sizes) <= 3
