"""A version folder's manifest, and whether every byte of the folder is what it says.

`model.onnx` and what else the manifest lists under `files`, each a regular file with its size and SHA-256. What the
graph states is not repeated here; see docs/architecture.md for the keys.
"""

import hashlib
import hmac
import json
import os
import stat
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from .errors import FormatError

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
CARD_FILE, LICENSE_FILE = "README.md", "LICENSE"  # for people; the service reads neither
FORMAT = 1
MOST_MANIFEST_BYTES = 256 * 1024 * 1024  # golden answers take most of it


def write_manifest(
    name: str, version: int, model: bytes, rest: Mapping[str, Any], texts: Mapping[str, bytes] | None = None
) -> bytes:
    """Return the content of manifest.json: `rest`, headed by what names the version and lists its files."""
    head = {"format": FORMAT, "name": name, "version": version}
    contents = {MODEL_FILE: model, **(texts or {})}
    files = {file: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for file, c in contents.items()}
    whole = {**head, **rest, **head, "files": files}
    return (json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_manifest(folder: Path, root: Path | None = None) -> dict[str, Any]:
    """Return the manifest of a version folder.

    Args:
        folder: of the version.
        root: folder within which links may lead; None: none are followed.

    Raises:
        FormatError: there is none, or it is not an object of the format that is known here.
    """
    path = folder / MANIFEST_FILE
    try:
        with regular_file(path, root).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_MANIFEST_BYTES:
                raise FormatError(f"{path} has {size} bytes, expected at most {MOST_MANIFEST_BYTES}")
            manifest = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as err:
        raise FormatError(f"{path} cannot be read as JSON: {err}") from err
    if not isinstance(manifest, dict):
        raise FormatError(f"{path} holds a {type(manifest).__name__}, expected an object")
    check_key(folder, manifest, "format", FORMAT)
    return manifest


def held_back(manifest: Mapping[str, Any]) -> str | None:
    """Return why a version is not to become `latest` by itself, as its publisher decided; None where it may."""
    promotion = manifest.get("promotion")
    if not isinstance(promotion, dict) or promotion.get("promoted") is not False:
        return None
    return str(promotion.get("reason") or "its publisher did not promote it")


def stated_accuracy(manifest: Mapping[str, Any]) -> float | None:
    """Return the share of right answers that was measured when a version was published; None where none was."""
    accuracy = manifest.get("accuracy")
    share = accuracy.get("test") if isinstance(accuracy, dict) else None
    return float(share) if isinstance(share, int | float) and 0 <= share <= 1 else None


def check_key(folder: Path, manifest: Mapping[str, Any], key: str, expected: object) -> None:
    """Raise FormatError when the manifest of `folder` states another value, or one of another type, for `key`."""
    actual = manifest.get(key)
    if actual != expected or type(actual) is not type(expected):
        raise FormatError(f"{folder / MANIFEST_FILE}: {key} is {actual!r}, expected {expected!r}")


def sha256_of(file: BufferedReader) -> str:
    """Return the SHA-256 of what is left of an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(
    folder: Path,
    manifest: Mapping[str, Any],
    root: Path | None = None,
    *,
    among_others: bool = False,
    digest: Callable[[BufferedReader], str] = sha256_of,
) -> dict[str, str]:
    """Compare a version folder with its manifest's list, name by name and byte by byte; returns the SHA-256 of each.

    Args:
        folder: of the version.
        manifest: of the version.
        root: folder within which links may lead, whose entries that begin with `..` are those of a cluster's mount;
            None: no links are followed.
        among_others: whether other files may lie there, as in a folder that somebody else made; nothing reads them.
        digest: reads the model file to its end and returns its SHA-256: whoever needs the bytes too keeps them.

    Raises:
        FormatError: a file is missing, is not listed, is a link, cannot be read, or is not what the manifest says.
    """
    listed = manifest.get("files")
    if not isinstance(listed, dict) or MODEL_FILE not in listed:
        raise FormatError(f"{folder / MANIFEST_FILE} lists no {MODEL_FILE} under files")
    present = set(os.listdir(folder)) - {MANIFEST_FILE}
    if root is not None:
        present = {name for name in present if not name.startswith("..")}
    if present != set(listed) and not (among_others and present > set(listed)):
        raise FormatError(f"{folder} holds {sorted(present)}, its manifest lists {sorted(listed)}")
    digests = {MODEL_FILE: digest}
    return {n: _check_file(folder / n, entry, root, digests.get(n, sha256_of)) for n, entry in listed.items()}


def _check_file(path: Path, entry: Any, root: Path | None, digest_of: Callable[[BufferedReader], str]) -> str:
    """SHA-256 of a listed file, after comparing it and the size with the manifest's."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise FormatError(f"{path.parent / MANIFEST_FILE}: {path.name} is listed without its sha256")
    try:
        with regular_file(path, root).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.get("bytes"):
                raise FormatError(f"{path} has {size} bytes, its manifest says {entry.get('bytes')}")
            digest = digest_of(file)
    except OSError as err:
        raise FormatError(f"{path} cannot be read: {err.strerror or err}") from err
    if not hmac.compare_digest(digest, entry["sha256"]):
        raise FormatError(f"{path} has SHA-256 {digest}, its manifest says {entry['sha256']}")
    return digest


def regular_file(path: Path, root: Path | None = None) -> Path:
    """Return where the content of `path` is, if that is a regular file.

    Args:
        path: of a file.
        root: folder within which links may lead, as those of a cluster's mount do; None: none are followed.

    Raises:
        OSError: there is nothing at `path`.
        FormatError: it is a folder, no file at all, or a link that leads elsewhere.
    """
    place = path
    if root is not None and path.is_symlink():
        place = Path(os.path.realpath(path, strict=True))  # `resolve` raises no OSError where a link leads to itself
        if not place.is_relative_to(os.path.realpath(root)):
            raise FormatError(f"{path} is not a regular file but a link out of {root}; links are not followed there")
    if not stat.S_ISREG(place.lstat().st_mode):
        raise FormatError(f"{path} is not a regular file; links are not followed")
    return place
