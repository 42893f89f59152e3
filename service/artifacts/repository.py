"""The models on disk: names, versions, and version folders whose files match their manifest.

Between the folder that training publishes and the engine. Knows files, not sessions: names, shapes and labels stand
in the graph and are read by the engine.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from foldserve.format.errors import FormatError
from foldserve.format.golden import Golden, read_golden
from foldserve.format.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    check_files,
    check_key,
    held_back,
    read_manifest,
    regular_file,
    stated_accuracy,
)
from foldserve.format.names import MODEL_NAME_RULE, VERSION_RULE, is_model_name, is_version

from ..errors import ArtifactInvalid, ModelNotFound
from .dead_statistics import without_dead_statistics
from .external_data import refuse_external_data
from .layouts import MountedModel, is_folder, link_boundary
from .onnx_file import opened
from .operators import refuse_operators
from .sealed import SealedFile
from .triton_config import CONFIG_FILE, NEWEST, VersionPolicy, read_config, read_version_policy
from .unverified import refuse_ours, refuse_unsound_weights
from .weights_beside import with_weights_inside
from .zipmap import with_labels, without_zipmaps

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """One version folder; `sha256` is that of model.onnx and names the answers it gives.

    `sealed` holds the content that was hashed until the engine is made; None where that is done.
    `side_files` are those that weights were read from, with their SHA-256.
    `is_verified` is False where the folder holds no manifest: then that is empty, and so are the golden answers.
    `max_batch_size` is what a Triton configuration beside such a version says: rows of one run, 0 for one by one.
    `version_policy` says which versions of the model are served; by default the newest one.
    """

    name: str
    version: int
    path: Path
    model_path: Path
    sha256: str
    manifest: Mapping[str, Any]
    golden: Golden
    is_verified: bool = True
    sealed: SealedFile | None = None
    side_files: Mapping[str, str] = field(default_factory=dict)
    max_batch_size: int | None = None
    version_policy: VersionPolicy = NEWEST

    @property
    def source(self) -> Path:
        """Where to load the model from."""
        return self.model_path if self.sealed is None else self.sealed.path

    @property
    def accuracy(self) -> float | None:
        """The share of right answers that was measured when it was published; None where none was."""
        return stated_accuracy(self.manifest)


class Repository:
    """A folder of models, read again at each call.

    Args:
        root: holds `<name>/<version>/model.onnx`, or one model by itself, see `layouts`.
        allow_unverified: also open folders without a manifest, and so without golden answers.
        model_name: of a model that is there by itself; None takes that of its manifest, else that of the folder.
        room: says how many bytes may be copied into memory, 0 where that is not known.

    Attributes:
        root: as given.
        links: folder within which links may lead.
    """

    def __init__(
        self,
        root: Path,
        *,
        allow_unverified: bool = False,
        model_name: str | None = None,
        room: Callable[[], int] = lambda: 0,
    ) -> None:
        self.root = root
        self.links = link_boundary(root)
        self._mounted = MountedModel(root, self.links, model_name)
        self._allow_unverified = allow_unverified
        self._room = room
        self._named: set[Path] = set()  # folders that a warning has named
        self._policies: dict[Path, tuple[tuple[int, ...], VersionPolicy | None]] = {}  # of folders, by configuration
        self._held: dict[Path, tuple[tuple[int, ...], str | None]] = {}  # manifest -> its identity, and what it says

    def models(self) -> dict[str, list[int]]:
        """Return the versions of each model, oldest first; names in alphabetical order.

        A folder whose name breaks the rule for models or versions is left out, and named in one warning unless it is
        hidden, as a version is while it is being written.

        Raises:
            ArtifactInvalid: the root is not a folder that can be read.
        """
        return {name: sorted(places) for name, places in self.places().items()}

    def places(self) -> dict[str, dict[int, Path]]:
        """Return the folder of each version of each model, as `models` lists them.

        Raises:
            ArtifactInvalid: the root is not a folder that can be read.
        """
        try:
            names = set(self._folders(self.root, is_model_name, MODEL_NAME_RULE))
        except OSError as err:
            raise ArtifactInvalid(
                f"models folder {self.root} cannot be read: {err.strerror or err}; --models-dir names another, "
                "`foldserve publish` makes one, --demo serves the model that comes along"
            ) from err
        if mounted := self._mounted.versions():
            names.add(self._mounted.name(mounted))
        models = {name: self._places(name, mounted) for name in sorted(names)}
        return {name: places for name, places in models.items() if places}

    def folder(self, name: str, version: int) -> Path:
        """Return where a version is, or would be; one of a thousand is found without a look at the others."""
        return self._place(name, version) or self.root / name / str(version)

    def held_back(self, models: Mapping[str, Mapping[int, Path]]) -> dict[tuple[str, int], str]:
        """Return why versions are not to be `latest` by themselves; a manifest is read when it is new or changed."""
        before, self._held, reasons = self._held, {}, {}
        for name, places in models.items():
            for version, folder in places.items():
                path = folder / MANIFEST_FILE
                known = self._held[path] = _held_back(path, self.links, before.get(path))
                if known[1] is not None:
                    reasons[name, version] = known[1]
        return reasons

    def version_policies(self, models: Mapping[str, Mapping[int, Path]]) -> dict[str, VersionPolicy]:
        """Return which versions are served of the models whose Triton configuration says so; read when it changes."""
        before, self._policies, stated = self._policies, {}, {}
        for name, places in models.items():
            folder = self._folder_of(places[max(places)])
            identity = _identity(folder / CONFIG_FILE)
            known = before.get(folder)
            if known is None or known[0] != identity:
                known = identity, read_version_policy(folder, self.links)
            self._policies[folder] = known
            if known[1] is not None:
                stated[name] = known[1]
        return stated

    def open(self, name: str, version: int | None = None) -> Artifact:
        """Return one version after checking each of its files against the manifest, where there is one.

        Args:
            name: the model.
            version: which of its versions; None takes the newest.

        Raises:
            ModelNotFound: there is no such model or version.
            ArtifactInvalid: the folder does not match its manifest, or has none and needs one.
        """
        if version is None:
            version = max(self._places(name, self._mounted.versions()), default=0)
        path = self._place(name, version)
        if path is None:
            raise self._not_there(name, version)
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.links)):
            raise ArtifactInvalid(f"{path} is a link out of {self.links}; a link may only lead to a place within it")
        self._refuse_what_has_no_room(path)
        if os.path.lexists(path / MANIFEST_FILE):
            is_mounted = path in (self.root, self.root / str(version))
            artifact = _open(name, version, path, self.links, is_mounted=is_mounted, is_root=path == self.root)
            policy = read_version_policy(self._folder_of(path), self.links)
            return artifact if policy is None else replace(artifact, version_policy=policy)
        if self._allow_unverified:
            return _open_unverified(name, version, path, self._folder_of(path), self.links)
        raise ArtifactInvalid(
            f"{path} holds no {MANIFEST_FILE}, so its answers cannot be verified: publish it with "
            "`foldserve publish`, or serve it unverified with --allow-unverified"
        )

    def change_of(self, artifact: Artifact) -> str | None:
        """Return how the folder of a version differs from what was read from it; None where its model is the same."""
        kept = "what was proved answers on, and what is there now is not served under this number"
        files = {artifact.model_path: artifact.sha256}
        files |= {artifact.path / name: sha256 for name, sha256 in artifact.side_files.items()}
        for path, expected in files.items():
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as err:
                return f"{path} cannot be read any more: {err.strerror or err}; {kept}"
            if digest != expected:
                return f"{path} has SHA-256 {digest[:12]}, expected {expected[:12]}; {kept}"
        return None

    def _not_there(self, name: str, version: int) -> ModelNotFound:
        places = self._places(name, self._mounted.versions())
        if not places:
            return ModelNotFound(f"model {name!r} is not in {self.root}; there are {sorted(self.models())}")
        return ModelNotFound(f"model {name!r} has no version {version}; there are {sorted(places)}")

    def _place(self, name: str, version: int) -> Path | None:
        """Return the folder of one version, None where it is not there."""
        mounted = self._mounted.versions()
        if mounted and self._mounted.name(mounted) == name:
            return mounted.get(version)
        folder = self.root / name
        place = folder / str(version)
        is_there = is_model_name(name) and is_version(place.name) and folder not in mounted.values()
        return place if is_there and os.path.isdir(place) else None

    def _refuse_what_has_no_room(self, path: Path) -> None:
        """Refuse a version whose files do not fit into memory, before its model file is copied there.

        That happens in the process that serves, which the system would end.
        """
        room = self._room()
        with contextlib.suppress(OSError):  # whoever reads it says why that cannot be
            size = sum(file.stat().st_size for file in path.iterdir() if file.is_file()) if room else 0
            if size > room:
                raise ArtifactInvalid(f"{path} has {size} bytes, and there is room in memory for {room}")

    def _folder_of(self, version: Path) -> Path:
        """Return the folder of the model that a version's folder belongs to."""
        return version if version == self.root else version.parent

    def _places(self, name: str, mounted: dict[int, Path]) -> dict[int, Path]:
        """Return the folder of each version of one model; none where there is no such model.

        Args:
            name: of it.
            mounted: the versions of the model that is there by itself.
        """
        if mounted and self._mounted.name(mounted) == name:
            return mounted
        folder = self.root / name
        if not is_model_name(name) or not os.path.isdir(folder) or folder in mounted.values():
            return {}
        try:
            return {int(number): folder / number for number in self._folders(folder, is_version, VERSION_RULE)}
        except OSError as err:  # which takes no other model along
            if folder not in self._named:
                self._named.add(folder)
                _log.warning("folder %s is left out, it cannot be read: %s", folder, err.strerror or err)
            return {}

    def _folders(self, parent: Path, keeps_rule: Callable[[str], bool], rule: str) -> list[str]:
        """Return the names of the folders that keep a rule, in alphabetical order.

        Raises:
            OSError: the parent is not a folder that can be read.
        """
        with os.scandir(parent) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry))
        for name in names:
            if not keeps_rule(name) and parent / name not in self._named:
                self._named.add(parent / name)
                _log.warning("folder %s is left out; expected as its name: %s", parent / name, rule)
        return [name for name in names if keeps_rule(name)]


def _held_back(
    path: Path, root: Path, known: tuple[tuple[int, ...], str | None] | None
) -> tuple[tuple[int, ...], str | None]:
    """Return a manifest's identity, and why its version is held back; one that cannot be read will not be loaded."""
    identity = _identity(path)
    try:
        if known is not None and known[0] == identity:
            return known
        return identity, held_back(read_manifest(path.parent, root))
    except (OSError, FormatError):
        return (), None


def _identity(path: Path) -> tuple[int, ...]:
    """Return what a change of a file changes; empty where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _open(name: str, version: int, path: Path, root: Path, *, is_mounted: bool, is_root: bool) -> Artifact:
    """Return a version with its manifest, which names the model too unless that is mounted by itself."""
    model_path = path / MODEL_FILE
    copies: list[SealedFile] = []

    def keep(file: BufferedReader) -> str:
        copies.append(SealedFile(file))
        return copies[0].sha256

    try:
        manifest = read_manifest(path, root)
        if not is_mounted:
            check_key(path, manifest, "name", name)
        check_key(path, manifest, "version", version)
        digests = check_files(path, manifest, root, among_others=is_root, digest=keep)
        golden = read_golden(manifest.get("golden"))
    except FormatError as err:
        raise ArtifactInvalid(str(err)) from err
    sealed, digest = copies[0], digests[MODEL_FILE]
    sealed, side_files = _whole(model_path, sealed, root)
    if unlisted := sorted(side_files.keys() - digests.keys()):
        raise ArtifactInvalid(f"{path} keeps weights in {unlisted[0]!r}, which its manifest does not list")
    if changed := [name for name, sha256 in side_files.items() if sha256 != digests[name]]:
        raise ArtifactInvalid(f"{path / changed[0]} changed while it was read")
    _look_through(model_path, sealed, (refuse_external_data, refuse_operators))
    return Artifact(name, version, path, model_path, digest, manifest, golden, sealed=sealed, side_files=side_files)


def _open_unverified(name: str, version: int, path: Path, folder: Path, root: Path) -> Artifact:
    """Return a version without a manifest, as other exporters and model repositories have it."""
    config = read_config(folder, root)
    model_path = path / config.model_file
    try:
        sealed = _sealed(model_path, root)
    except FormatError as err:
        raise ArtifactInvalid(str(err)) from err
    checks = (refuse_external_data, refuse_operators, refuse_ours, refuse_unsound_weights)
    golden, digest = Golden({}, {}, {}), sealed.sha256
    sealed, side_files = _whole(model_path, sealed, root)
    sealed = _changed(sealed, without_dead_statistics)
    _look_through(model_path, sealed, checks)
    sealed = _changed(sealed, without_zipmaps)
    if config.labels:
        sealed = _changed(sealed, lambda data: with_labels(data, config.labels or ()))
    return Artifact(
        name,
        version,
        path,
        model_path,
        digest,
        {},
        golden,
        is_verified=False,
        sealed=sealed,
        side_files=side_files,
        max_batch_size=config.max_batch_size,
        version_policy=config.version_policy or NEWEST,
    )


def _whole(model_path: Path, sealed: SealedFile, root: Path) -> tuple[SealedFile, dict[str, str]]:
    """Return the model with the weights that lie beside it, and the digests of their files."""
    try:
        return with_weights_inside(sealed, model_path.parent, root)
    except ValueError as err:
        raise ArtifactInvalid(f"{model_path} is not an ONNX model: {err}") from err
    except ArtifactInvalid as err:
        raise ArtifactInvalid(str(err).replace(str(sealed.path), str(model_path))) from err


def _changed(sealed: SealedFile, change: Callable[[memoryview], bytes | None]) -> SealedFile:
    """Return the model as a change leaves it, which may find nothing to do."""
    with opened(sealed.path) as data:
        changed = change(data)
    if changed is None:
        return sealed
    sealed.close()
    return SealedFile.of([changed])


def _sealed(model_path: Path, root: Path) -> SealedFile:
    try:
        return SealedFile.at(regular_file(model_path, root))
    except OSError as err:
        raise ArtifactInvalid(f"{model_path} cannot be read: {err.strerror or err}") from err


def _look_through(model_path: Path, sealed: SealedFile, checks: Iterable[Callable[[Path], None]]) -> None:
    """Check the very bytes that were hashed; errors name the file that they were read from."""
    for check in checks:
        try:
            check(sealed.path)
        except ArtifactInvalid as err:
            raise ArtifactInvalid(str(err).replace(str(sealed.path), str(model_path))) from err
