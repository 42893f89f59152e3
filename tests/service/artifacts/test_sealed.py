"""What was hashed is what runs, and only what is in the models folder is read at all."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from foldserve.service.artifacts.repository import Repository
from foldserve.service.artifacts.sealed import SealedFile
from foldserve.service.engines.load import load_engine
from foldserve.service.errors import ArtifactInvalid
from tests.support import artifacts


def test_a_sealed_copy_cannot_be_changed_and_does_not_follow_the_file(tmp_path):
    """The digest is that of the copy; writing to it, and to the file, changes nothing."""
    path = tmp_path / "file"
    data = os.urandom(3_000_000)
    path.write_bytes(data)
    sealed = SealedFile.at(path)
    path.write_bytes(b"other")
    assert sealed.path.read_bytes() == data
    assert sealed.sha256 == hashlib.sha256(data).hexdigest()
    with pytest.raises(PermissionError):
        sealed.path.write_bytes(b"x")
    sealed.close()
    sealed.close()


def test_a_file_that_changes_after_it_was_checked_does_not_run(fashion):
    """The engine is made of the bytes that were compared with the manifest, whatever stands on the disk by then."""
    artifact = Repository(fashion).open("fashion")
    other = artifacts.publish_classifier(fashion.parent / "elsewhere", seed=5)
    artifact.model_path.write_bytes((other / "model.onnx").read_bytes())
    engine = load_engine(artifact, provider="cpu", buckets=(1, 4))
    asked = artifacts.images(4)
    expected = artifacts.classify(asked, artifacts.classifier_weights(0))
    np.testing.assert_allclose(engine.run({"image": asked})["logits"], expected["logits"], rtol=1e-4, atol=1e-4)


def mounted(models: Path) -> None:
    """As a cluster mounts files: links to a link to a folder that is replaced whole."""
    folder = models / "fashion/1"
    (folder / "..2026_01_01").mkdir()
    for name in ("model.onnx", "manifest.json"):
        (folder / name).rename(folder / "..2026_01_01" / name)
        (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data").symlink_to("..2026_01_01")


def version_elsewhere_inside(models: Path) -> None:
    (models / ".store").mkdir()
    (models / "fashion/1").rename(models / ".store/abc")
    (models / "fashion/1").symlink_to("../.store/abc")


def model_elsewhere_inside(models: Path) -> None:
    (models / "fashion").rename(models / ".fashion-a")
    (models / "fashion").symlink_to(".fashion-a")


@pytest.mark.parametrize("change", [mounted, version_elsewhere_inside, model_elsewhere_inside])
def test_links_that_stay_inside_are_followed(fashion, tmp_path, change):
    """Of files, versions and models; also where the models folder itself is behind a link."""
    change(fashion)
    (tmp_path / "link").symlink_to(fashion)
    for root in (fashion, tmp_path / "link"):
        assert Repository(root).open("fashion").sealed is not None


def version_outside(models: Path) -> None:
    (models / "fashion/1").rename(models.parent / "outside")
    (models / "fashion/1").symlink_to(models.parent / "outside")


def model_outside(models: Path) -> None:
    (models / "fashion").rename(models.parent / "outside")
    (models / "fashion").symlink_to("../outside")


def file_outside(name: str):
    def change(models: Path) -> None:
        (models / "fashion/1" / name).rename(models.parent / name)
        (models / "fashion/1" / name).symlink_to(models.parent / name)

    return change


def by_a_way_round(models: Path) -> None:
    """A link inside that leads to another one, which leads out."""
    version_outside(models)
    (models / "fashion/1").rename(models / "hop")
    (models / "fashion/1").symlink_to("../hop")


def into_a_sibling(models: Path) -> None:
    """A folder whose name begins like that of the models folder is another folder."""
    sibling = models.with_name(models.name + "-2")
    sibling.mkdir()
    (models / "fashion/1").rename(sibling / "1")
    (models / "fashion/1").symlink_to(sibling / "1")


LEAVING = [
    version_outside, model_outside, file_outside("model.onnx"), file_outside("manifest.json"), by_a_way_round,
    into_a_sibling,
]  # fmt: skip


@pytest.mark.parametrize("change", LEAVING)
@pytest.mark.parametrize("unverified", [False, True])
def test_links_that_lead_out_are_refused(fashion, change, unverified):
    """Whatever is linked, and by whatever way."""
    change(fashion)
    with pytest.raises(ArtifactInvalid, match="link"):
        Repository(fashion, allow_unverified=unverified).open("fashion")


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_special_files_are_refused_at_once(fashion, tmp_path, kind, name):
    """Neither waited for nor read without end."""
    path = fashion / "fashion/1" / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mknod(path, 0o600 | 0o140000)
    with pytest.raises(ArtifactInvalid, match="regular file"):
        Repository(fashion).open("fashion")
