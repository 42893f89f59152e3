"""Where versions may lie: below a model's name, or one model by itself, as files or behind a cluster's links."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from foldserve.service.artifacts.repository import Repository
from foldserve.service.errors import ArtifactInvalid, ModelNotFound
from tests.support import artifacts, live_models


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A published version folder, `fashion` 3, outside any models folder."""
    return artifacts.publish_classifier(tmp_path / "published", version=3)


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """An empty folder at which something is mounted."""
    folder = tmp_path / "mnt/mounted"
    folder.mkdir(parents=True)
    return folder


def laid_flat(version: Path, mount: Path) -> None:
    version.rename(mount / "moved")
    for path in (mount / "moved").iterdir():
        path.rename(mount / path.name)
    (mount / "moved").rmdir()


def laid_as_versions(version: Path, mount: Path) -> None:
    version.rename(mount / version.name)


def laid_as_config_map(version: Path, mount: Path) -> None:
    """As the kubelet lays out a volume: files are links through `..data`, which is replaced whole."""
    version.rename(mount / "..2026_11_26_10_00_00.1")
    (mount / "..data").symlink_to("..2026_11_26_10_00_00.1")
    for path in (mount / "..data").iterdir():
        (mount / path.name).symlink_to(f"..data/{path.name}")


LAYOUTS = {"files": laid_flat, "versions": laid_as_versions, "config map": laid_as_config_map}


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", [None, "other"])
def test_a_model_that_is_mounted_by_itself_is_served(version, mount, lay, name):
    """Under the name that was given, else under the one that its manifest states; the number is the manifest's."""
    lay(version, mount)
    repository = Repository(mount, model_name=name)
    served = name or "fashion"
    assert repository.models() == {served: [3]}
    artifact = repository.open(served)
    assert (artifact.name, artifact.version) == (served, 3)
    assert repository.folder(served, 3) == artifact.path
    with pytest.raises(ModelNotFound, match="there are"):
        repository.open("mounted")


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
def test_a_file_without_a_manifest_has_the_name_of_its_folder(version, mount, lay):
    """What another exporter wrote is version 1, unless its folder has a number."""
    (version / "manifest.json").unlink()
    (version / "model.onnx").write_bytes(artifacts.two_inputs_model().SerializeToString())
    lay(version, mount)
    number = 3 if lay is laid_as_versions else 1
    assert Repository(mount).models() == {"mounted": [number]}
    with pytest.raises(ArtifactInvalid, match=r"holds no manifest\.json"):
        Repository(mount).open("mounted")
    assert not Repository(mount, allow_unverified=True).open("mounted", number).is_verified


def test_it_is_loaded_and_gives_its_golden_answers(version, mount):
    """The whole way of a start, with a name that differs from the manifest's."""
    laid_as_config_map(version, mount)

    async def served() -> int:
        async with live_models.loaded(mount, model_name="served") as models:
            return models.registry.get("served").version

    assert asyncio.run(served()) == 3


def test_models_beside_it_are_served_too(version, mount):
    """A folder of versions is no model called 1, and a folder of models stays one."""
    laid_as_versions(version, mount)
    artifacts.publish_echo(mount)
    artifacts.publish_echo(mount, "7", version=2)  # a model whose name is a number
    repository = Repository(mount)
    assert repository.models() == {"7": [2], "echo": [1], "fashion": [3]}
    assert [repository.open(name).name for name in ("7", "echo", "fashion")] == ["7", "echo", "fashion"]


def test_files_that_nobody_listed_are_neither_read_nor_in_the_way(version, mount):
    """A bucket brings a README; one level deeper, where folders are ours alone, it is refused as before."""
    laid_flat(version, mount)
    (mount / "README.md").write_text("x")
    assert Repository(mount).open("fashion").version == 3
    (mount / "model.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactInvalid, match="its manifest says"):
        Repository(mount).open("fashion")


def test_a_mounted_folder_keeps_to_its_number(version, mount):
    """Only the name may differ: a version that lies under another number is not that version."""
    version.rename(mount / "4")
    with pytest.raises(ArtifactInvalid, match="version is 3, expected 4"):
        Repository(mount).open("fashion", 4)


def test_a_new_content_behind_the_link_of_a_config_map_is_a_new_version(version, mount, tmp_path):
    """The mount is replaced whole, and the number that its manifest states is served under the name of before."""
    laid_as_config_map(version, mount)
    repository = Repository(mount)
    assert repository.models() == {"fashion": [3]}
    artifacts.publish_classifier(tmp_path / "published", "renamed", version=4, seed=1).rename(mount / "..new")
    (mount / "..data.new").symlink_to("..new")
    os.replace(mount / "..data.new", mount / "..data")
    assert repository.models() == {"fashion": [4]}
    assert repository.open("fashion").version == 4


def in_hub_cache(version: Path, folder: Path) -> Path:
    """As the hub's client keeps a download: links from a snapshot to blobs; returns the snapshot."""
    snapshot = folder / "models--owner--name/snapshots/0a1b2c"
    blobs = folder / "models--owner--name/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in version.iterdir():
        digest = artifacts.file_entry(path)["sha256"]
        path.rename(blobs / digest)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    return snapshot


def test_links_of_a_hub_cache_are_followed(version, tmp_path):
    """From the snapshot as the models folder, and from a version folder that is a link to it."""
    snapshot = in_hub_cache(version, tmp_path / "hub")
    assert Repository(snapshot).open("fashion").version == 3
    (tmp_path / "hub/fashion").mkdir()
    (tmp_path / "hub/fashion/3").symlink_to(snapshot)
    assert Repository(tmp_path / "hub").open("fashion").version == 3


@pytest.mark.parametrize("at", ["files", "hub"])
def test_a_link_that_leaves_the_volume_is_refused(version, mount, tmp_path, at):
    """Of a mount by itself as of a cache, whoever made the link."""
    elsewhere = tmp_path / "elsewhere.onnx"
    if at == "files":
        laid_flat(version, mount)
        root = mount
    else:
        root = in_hub_cache(version, mount)
    elsewhere.write_bytes((root / "model.onnx").read_bytes())
    (root / "model.onnx").unlink()
    (root / "model.onnx").symlink_to(elsewhere)
    with pytest.raises(ArtifactInvalid, match="link out of"):
        Repository(root).open("fashion")


@pytest.mark.parametrize("manifest", ["{", "[]", json.dumps({"format": 1, "name": "../x", "version": "3"}), "{}"])
def test_a_manifest_that_cannot_be_read_does_not_hide_its_folder(version, mount, manifest):
    """It is listed under the folder's name, and refused with the reason."""
    laid_flat(version, mount)
    (mount / "manifest.json").write_text(manifest)
    repository = Repository(mount)
    assert repository.models() == {"mounted": [1]}
    with pytest.raises(ArtifactInvalid, match=r"manifest\.json"):
        repository.open("mounted")
