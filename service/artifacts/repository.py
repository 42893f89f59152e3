"""The models on disk: names, versions, and version folders whose every byte is what the manifest says.

Between the folder that training publishes and the engine. Knows files, not sessions: names, shapes and labels stand
in the graph and are read by the engine.
"""

import hashlib
import hmac
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldserve.format.names import is_model_name, is_version

from ..errors import ArtifactInvalid, ModelNotFound
from ..tensors import TensorSpec
from .external_data import refuse_external_data
from .golden import Golden, golden_from_manifest
from .operators import refuse_operators
from .unverified import refuse_ours, refuse_unsound_weights

__all__ = ["Artifact", "Golden", "Repository", "TensorSpec"]

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """One version folder; `sha256` is that of model.onnx and names the answers it gives.

    `is_verified` is False where the folder holds no manifest: then that is empty, and so are the golden answers.
    """

    name: str
    version: int
    path: Path
    model_path: Path
    sha256: str
    manifest: Mapping[str, Any]
    golden: Golden
    is_verified: bool = True


class Repository:
    """A folder of models, read afresh at each call.

    Args:
        root: holds `<name>/<version>/model.onnx`.
        allow_unverified: open folders without a manifest too, which say nothing of what their model should answer.
    """

    def __init__(self, root: Path, *, allow_unverified: bool = False) -> None:
        self.root = root
        self._allow_unverified = allow_unverified

    def models(self) -> dict[str, list[int]]:
        """Return the versions of each model, oldest first; names in alphabetical order.

        Folders whose name is not a model's name or not a positive integer are left out: a version that is being
        written has a temporary name.

        Raises:
            ArtifactInvalid: the root is not a folder that can be read.
        """
        try:
            folders = sorted(path for path in self.root.iterdir() if path.is_dir() and is_model_name(path.name))
            found = {path.name: _versions(path) for path in folders}
        except OSError as err:
            raise ArtifactInvalid(f"models folder {self.root} cannot be read: {err.strerror or err}") from err
        return {name: versions for name, versions in found.items() if versions}

    def open(self, name: str, version: int | None = None) -> Artifact:
        """Return one version after checking each of its files against the manifest, where there is one.

        Args:
            name: the model.
            version: which of its versions; None takes the newest.

        Raises:
            ModelNotFound: there is no such model or version.
            ArtifactInvalid: the folder is not what its manifest says, or has none and needs one, with the reason.
        """
        models = self.models()
        if name not in models:
            raise ModelNotFound(f"model {name!r} is not in {self.root}; there are {sorted(models)}")
        version = models[name][-1] if version is None else version
        if version not in models[name]:
            raise ModelNotFound(f"model {name!r} has no version {version}; there are {models[name]}")
        path = self.root / name / str(version)
        if os.path.lexists(path / MANIFEST_FILE):
            return _open(name, version, path)
        if self._allow_unverified:
            return _open_unverified(name, version, path)
        raise ArtifactInvalid(
            f"{path} holds no {MANIFEST_FILE}, so nothing says what its model should answer: export it with its "
            "manifest, or serve it unproved with --allow-unverified"
        )


def _versions(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and is_version(path.name))


def _open(name: str, version: int, path: Path) -> Artifact:
    manifest = _read_manifest(path / MANIFEST_FILE)
    _expect(path, "format", manifest.get("format"), MANIFEST_FORMAT)
    _expect(path, "name", manifest.get("name"), name)
    _expect(path, "version", manifest.get("version"), version)
    digests = _check_files(path, manifest.get("files"))
    refuse_external_data(path / MODEL_FILE)
    refuse_operators(path / MODEL_FILE)
    golden = golden_from_manifest(manifest.get("golden"))
    return Artifact(name, version, path, path / MODEL_FILE, digests[MODEL_FILE], manifest, golden)


def _open_unverified(name: str, version: int, path: Path) -> Artifact:
    """Return a version that came without a manifest, as somebody else's exporter or model repository has it."""
    model_path = path / MODEL_FILE
    try:
        with _regular(model_path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise ArtifactInvalid(f"{model_path} cannot be read: {err.strerror or err}") from err
    refuse_external_data(model_path)
    refuse_operators(model_path)
    refuse_ours(model_path)
    refuse_unsound_weights(model_path)
    return Artifact(name, version, path, model_path, digest, {}, Golden({}, {}, {}), is_verified=False)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_regular(path).read_bytes())
    except (OSError, ValueError) as err:
        raise ArtifactInvalid(f"{path} cannot be read as JSON: {err}") from err
    if not isinstance(manifest, dict):
        raise ArtifactInvalid(f"{path} holds a {type(manifest).__name__}, expected an object")
    return manifest


def _expect(path: Path, key: str, actual: object, expected: object) -> None:
    if actual != expected or type(actual) is not type(expected):
        raise ArtifactInvalid(f"{path / MANIFEST_FILE}: {key} is {actual!r}, expected {expected!r}")


def _check_files(path: Path, listed: Any) -> dict[str, str]:
    """Compare the folder with the manifest's list, name by name and byte by byte; returns the digests."""
    if not isinstance(listed, dict) or MODEL_FILE not in listed:
        raise ArtifactInvalid(f"{path / MANIFEST_FILE} lists no {MODEL_FILE} under files")
    present = set(os.listdir(path)) - {MANIFEST_FILE}
    if present != set(listed):
        raise ArtifactInvalid(f"{path} holds {sorted(present)}, its manifest lists {sorted(listed)}")
    return {name: _check_file(path / name, entry) for name, entry in listed.items()}


def _check_file(path: Path, entry: Any) -> str:
    """SHA-256 of a listed file, after comparing it and the size with the manifest's."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise ArtifactInvalid(f"{path.parent / MANIFEST_FILE}: {path.name} is listed without its sha256")
    try:
        with _regular(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.get("bytes"):
                raise ArtifactInvalid(f"{path} has {size} bytes, its manifest says {entry.get('bytes')}")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise ArtifactInvalid(f"{path} cannot be read: {err.strerror or err}") from err
    if not hmac.compare_digest(digest, entry["sha256"]):
        raise ArtifactInvalid(f"{path} has SHA-256 {digest}, its manifest says {entry['sha256']}")
    return digest


def _regular(path: Path) -> Path:
    """Return `path` if it is a file of this folder itself; a link could lead anywhere."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ArtifactInvalid(f"{path} is not a regular file; links are not followed")
    return path
