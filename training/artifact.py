"""Writes a version folder whole or not at all, and reads it back with its digests checked.

Last step of the training half: `models/<name>/<version>/` is the only thing that the service will see. It knows files
and digests; what stands in the graph and in the manifest was decided before.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from foldserve.format.errors import FormatError
from foldserve.format.manifest import MANIFEST_FILE, MODEL_FILE, check_files, held_back, read_manifest, write_manifest
from foldserve.format.names import MODEL_NAME_RULE, VERSION_RULE, is_model_name, is_version

from .disk import TEMPORARY, FolderLock, obstacle, permissions, sync_folder, write_whole
from .errors import ArtifactError, ConfigError
from .triton import LABELS_NAME, companion_files


def publish(
    models_dir: Path,
    name: str,
    model: bytes,
    manifest: Mapping[str, Any],
    *,
    version: int | None = None,
    texts: Mapping[str, bytes] | None = None,
) -> Path:
    """Write `model` and its manifest as a new version of `name` and return the version's folder.

    The folder appears by one rename, after everything in it is on the disk: a crash or a full disk at any moment leaves
    the earlier versions and nothing else to be seen. Publishers of one model wait for each other.

    Args:
        models_dir: the model repository; made when it is not there.
        name: of the model, by the rule of `foldserve.format.names`.
        model: content of model.onnx.
        manifest: the manifest without `format`, `name`, `version` and `files`, which are added here.
        version: the wanted number; by default one above the highest there is.
        texts: file name -> content of what travels with the version for people, such as its licence.

    Raises:
        ArtifactError: the name or version is not allowed, the version exists, labels or config of the model's earlier
            versions differ, or the disk refuses.
    """
    check_name(name)
    if version is not None and not is_version(str(version)):
        raise ArtifactError(f"version {version}: expected {VERSION_RULE}")
    companions = companion_files(name, onnx.ModelProto.FromString(model))
    folder = models_dir / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(models_dir)
        with FolderLock(folder):
            _remove_left_behind(folder)
            _check_companions(folder, companions)
            return _publish_next(folder, model, manifest, companions, version, texts or {})
    except OSError as err:
        _remove_if_empty(folder)
        raise ArtifactError(
            f"{folder} cannot be written ({err.strerror or err}); nothing was published, free the disk or choose "
            "another --models-dir"
        ) from err


def check_name(name: str) -> None:
    """Raise ArtifactError when `name` cannot be the name of a model, which is a folder and part of an URL."""
    if not is_model_name(name):
        raise ArtifactError(f"model name {name!r}: expected {MODEL_NAME_RULE}")


def check_publishable(models_dir: Path, name: str, class_names: Sequence[str] | None) -> None:
    """Raise ConfigError for what `publish` would refuse, as far as it can be known before a network is trained."""
    try:
        check_name(name)
    except ArtifactError as err:
        raise ConfigError(f"--name: {err}") from err
    labels = models_dir / name / LABELS_NAME
    if (
        class_names is not None
        and labels.is_file()
        and labels.read_text(encoding="utf-8", errors="replace").splitlines() != list(class_names)
    ):
        raise ConfigError(f"--name {name}: {labels} names other classes; publish under another --name")
    existing = obstacle(models_dir / name)
    if existing is not None:
        raise ConfigError(f"--models-dir {models_dir}: {existing} is no folder that can be written; choose another")


def check_companions(models_dir: Path, name: str, model: bytes) -> None:
    """Raise ArtifactError when the versions of `name` that are there have another interface than `model`."""
    _check_companions(models_dir / name, companion_files(name, onnx.ModelProto.FromString(model)))


def versions(folder: Path) -> list[int]:
    """Return the version numbers in a model's `folder`, ascending."""
    return sorted(int(entry.name) for entry in folder.iterdir() if is_version(entry.name))


def newest_promoted(folder: Path) -> Path | None:
    """Return the newest version of a model's `folder` that its publisher did not hold back; None: there is none."""
    for number in reversed(versions(folder) if folder.is_dir() else []):
        version = folder / str(number)
        with contextlib.suppress(FormatError):
            if held_back(read_manifest(version)) is None:
                return version
    return None


def version_of_run(folder: Path, run: str, epochs: int) -> Path | None:
    """Return the version in a model's `folder` that was published by `run` after `epochs`; None: there is none.

    Args:
        folder: of the model.
        run: its identity, as the manifest states it; no version is that of an empty one.
        epochs: that it had trained.
    """
    for number in reversed(versions(folder) if run and folder.is_dir() else []):
        version = folder / str(number)
        with contextlib.suppress(FormatError):
            training = read_manifest(version).get("training", {})
            if training.get("run") == run and len(training.get("epochs", ())) == epochs:
                return version
    return None


def read(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Return model.onnx and the manifest of a version folder, every file checked against the manifest.

    Raises:
        ArtifactError: a file is missing, cut off or not what the manifest says.
    """
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        return (folder / MODEL_FILE).read_bytes(), manifest
    except FormatError as err:
        raise ArtifactError(f"{err}; expected a version folder as it was published") from err
    except OSError as err:
        raise ArtifactError(f"{err.filename} cannot be read ({err.strerror}); expected a version folder") from err


def _publish_next(
    folder: Path,
    model: bytes,
    manifest: Mapping[str, Any],
    companions: Mapping[str, str],
    version: int | None,
    texts: Mapping[str, bytes],
) -> Path:
    while True:
        target = folder / str(version or 1 + max(versions(folder), default=0))
        if target.exists():
            raise ArtifactError(
                f"{target} exists and a version is never overwritten; leave the number out for a new one"
            )
        try:
            written = write_manifest(folder.name, int(target.name), model, manifest, texts)
            _publish_as(target, {**texts, MODEL_FILE: model, MANIFEST_FILE: written}, companions)
            return target
        except OSError:
            # A process that does not take our lock may have filled `target`; then the next number is ours.
            if version is not None or not target.exists():
                raise


def _publish_as(target: Path, files: Mapping[str, bytes], companions: Mapping[str, str]) -> None:
    folder = target.parent
    with contextlib.ExitStack() as undo:
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
        undo.callback(shutil.rmtree, temporary, ignore_errors=True)
        for name, content in files.items():
            write_whole(temporary / name, content)
        temporary.chmod(permissions(0o777))  # mkdtemp makes folders for their owner alone
        for path in (folder / name for name in companions if not (folder / name).exists()):
            undo.callback(path.unlink, missing_ok=True)
            write_whole(path, companions[path.name].encode())
        os.rename(temporary, target)  # the system refuses when `target` is there and not empty
        undo.pop_all()
    sync_folder(folder)


def _remove_left_behind(folder: Path) -> None:
    """Remove what publishers that were killed have left; under the lock no running process owns any of it."""
    for entry in folder.glob(f"{TEMPORARY}*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _check_companions(folder: Path, companions: Mapping[str, str]) -> None:
    if LABELS_NAME not in companions and (folder / LABELS_NAME).exists():
        raise ArtifactError(
            f"{folder / LABELS_NAME} names classes and this model has none; give --labels, or publish under "
            "another --name"
        )
    for name, content in companions.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != content:
            raise ArtifactError(
                f"{path} belongs to the versions there and differs from what this model needs; "
                "publish under another --name"
            )


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
