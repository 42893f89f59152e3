"""`foldserve pull`: versions from a bucket or another address into a models folder, each whole or not at all.

Reads through fsspec whatever that knows (s3, gs, az, hf, http, file), writes where the service reads, and compares
every byte with the manifest before a version appears. Versions that are there stay as they are.
"""

import argparse
import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arguments import Parser, add_json
from .exit_codes import DONE, FAILED
from .format.errors import FormatError
from .format.manifest import MANIFEST_FILE, check_files, check_key, read_manifest
from .format.names import is_model_name, is_version
from .json_document import complain, fill
from .patience import shown, tell

_PIECE_BYTES = 1024 * 1024
_MOST_MANIFEST_BYTES = 64 * _PIECE_BYTES
_TEMPORARY = ".pull-"  # hidden, so that no service looks into it
_LEFT_BEHIND_SECONDS = 3600.0


class PullError(Exception):
    """A version, or all of them, cannot be pulled; the message is a sentence."""


@dataclass(frozen=True)
class Found:
    """A version at the source; name and number as its folders state them, None where only its manifest does."""

    path: str
    name: str | None = None
    version: int | None = None


def pull(
    uri: str, to: Path, *, newest: int = 0, on_step: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[str, PullError | None]]:
    """Bring every version that is at an address into a models folder.

    Args:
        uri: of a folder of models, of one model, or of one version.
        to: the models folder; is made where it is not there.
        newest: how many versions of each model, from the newest one; 0 takes all.
        on_step: is told what goes on.

    Yields:
        What was done about each version, as a line, and why it was refused where it was.

    Raises:
        PullError: the address cannot be read, or holds no version.
        ModuleNotFoundError: fsspec is not installed.
    """
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(uri)
        found = _versions(files, root.rstrip("/"), newest)
    except (ImportError, ValueError) as err:
        raise PullError(f"{uri} cannot be read: {err}") from err
    except Exception as err:  # each file system has errors of its own: no network, no bucket, no rights
        raise PullError(f"{uri} cannot be read: {type(err).__name__}: {err}") from err
    if not found:
        raise PullError(f"{uri} holds no <model>/<version>/{MANIFEST_FILE}, nor one of a version or a model")
    to.mkdir(parents=True, exist_ok=True)
    _clear(to)
    for version in found:
        try:
            yield _fetch(files, version, to, on_step), None
        except (PullError, FormatError) as err:
            yield f"{version.path} is refused", PullError(str(err))
        except Exception as err:
            yield f"{version.path} is refused", PullError(f"{type(err).__name__}: {err}")


def _versions(files: Any, root: str, newest: int) -> list[Found]:
    """Look for versions at the address itself, one folder below it, and two."""
    if files.exists(f"{root}/{MANIFEST_FILE}"):
        return [Found(root)]
    models: dict[str | None, list[Found]] = {}
    for name in _folders(files, root):
        path = f"{root}/{name}"
        if is_version(name) and files.exists(f"{path}/{MANIFEST_FILE}"):
            models.setdefault(None, []).append(Found(path, None, int(name)))
        elif is_model_name(name):
            numbers = [number for number in _folders(files, path) if is_version(number)]
            models[name] = [Found(f"{path}/{number}", name, int(number)) for number in numbers]
    chosen = (sorted(found, key=lambda one: one.version or 0)[-newest:] for found in models.values())
    return [one for found in chosen for one in found]


def _folders(files: Any, path: str) -> list[str]:
    entries = files.ls(path, detail=True, refresh=True)
    return sorted({entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"})


def _fetch(files: Any, found: Found, to: Path, on_step: Callable[[str], None]) -> str:
    """Bring one version; returns what was done.

    Raises:
        PullError: it is not what its folders say, or other bytes are there under its number.
        FormatError: it is not what its manifest says.
    """
    content = _read(files, f"{found.path}/{MANIFEST_FILE}")
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=to) as temporary:
        folder = Path(temporary) / "version"
        folder.mkdir(mode=0o755)
        (folder / MANIFEST_FILE).write_bytes(content)
        manifest = read_manifest(folder)
        name, version = manifest.get("name"), manifest.get("version")
        if not isinstance(name, str) or not is_model_name(name) or type(version) is not int or version < 1:
            raise PullError(f"{MANIFEST_FILE} names {str(name)[:80]!r}, version {str(version)[:20]}")
        for key, expected in (("name", found.name), ("version", found.version)):
            if expected is not None:
                check_key(Path(found.path), manifest, key, expected)
        place = to / name / str(version)
        if place.exists():
            return _compared(place, content, f"{name}/{version}")
        size = _copy(files, found.path, folder, manifest, on_step)
        check_files(folder, manifest)
        place.parent.mkdir(exist_ok=True)
        try:
            folder.rename(place)
        except OSError:
            if not place.exists():
                raise
            return _compared(place, content, f"{name}/{version}")  # another one was quicker
    _sync(place.parent)
    return f"{name}/{version} is pulled: {size} bytes"


def _compared(place: Path, content: bytes, name: str) -> str:
    if (place / MANIFEST_FILE).read_bytes() != content:
        raise PullError(f"{place} holds another content than {name} at the source: a number stands for one content")
    return f"{name} is there"


def _copy(files: Any, source: str, folder: Path, manifest: dict[str, Any], on_step: Callable[[str], None]) -> int:
    """Copy the files that a manifest lists, and no more bytes than it states; returns how many."""
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise PullError(f"{MANIFEST_FILE} lists no files")
    size = 0
    for name, entry in listed.items():
        if not name or "/" in name or "\\" in name or "\0" in name or name in (".", "..", MANIFEST_FILE):
            raise PullError(f"{MANIFEST_FILE} lists {name[:80]!r}, expected names of files beside it")
        expected = entry.get("bytes") if isinstance(entry, dict) else None
        if type(expected) is not int:
            raise PullError(f"{MANIFEST_FILE} lists {name[:80]!r} without its size")
        size += _stream(files, f"{source}/{name}", folder / name, expected, on_step)
    return size


def _stream(files: Any, source: str, target: Path, expected: int, on_step: Callable[[str], None]) -> int:
    size = 0
    with files.open(source, "rb") as read, target.open("xb") as write:
        while piece := read.read(_PIECE_BYTES):
            size += len(piece)
            if size > expected:
                raise PullError(f"{source} has more than the {expected} bytes that its manifest states")
            write.write(piece)
            on_step(f"{source}: {size >> 20} of {expected >> 20} MiB")
        write.flush()
        os.fsync(write.fileno())
    if size < expected:
        raise PullError(
            f"{source} has {size} bytes, its manifest states {expected}: half a download, or half an upload"
        )
    return size


def _read(files: Any, path: str) -> bytes:
    with files.open(path, "rb") as file:
        content: bytes = file.read(_MOST_MANIFEST_BYTES + 1)
    if len(content) > _MOST_MANIFEST_BYTES:
        raise PullError(f"{path} has more than {_MOST_MANIFEST_BYTES} bytes")
    return content


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _clear(to: Path) -> None:
    """Remove what a pull that was killed has left; one that goes on is younger."""
    for folder in to.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str]) -> int:
    """Pull once, or again and again; returns 1 where something was refused the last time."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.json and arguments.every:
        parser.error("--json with --every: one document would never be whole; leave one out")
    ended = threading.Event()
    if arguments.every:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
    while True:
        code = _once(arguments)
        if not arguments.every or ended.wait(arguments.every):
            return DONE if ended.is_set() else code


def _once(arguments: argparse.Namespace) -> int:
    step, versions = [f"looking into {arguments.uri}"], []
    try:
        with shown(lambda: step[-1]):
            for line, refused in pull(
                arguments.uri, arguments.to, newest=arguments.newest, on_step=lambda now: step.__setitem__(0, now)
            ):
                versions.append({"says": line, "refused": None if refused is None else str(refused)})
                if refused is not None:
                    complain(f"foldserve pull: {line}: {refused}")
                elif not (arguments.every and line.endswith("is there")):
                    tell(line)
    except (PullError, OSError) as err:
        complain(f"foldserve pull: {err}; what is there stays")
        return FAILED
    finally:
        fill(versions=versions)
    return FAILED if any(version["refused"] for version in versions) else DONE


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="foldserve pull",
        description="Bring versions from a bucket or another address into a models folder, each whole or not at all: "
        "digests are checked before a version appears, and what is there stays.",
    )
    parser.add_argument(
        "uri", help="folder of models, of a model, or of a version: s3://bucket/models, hf://owner/repo"
    )
    parser.add_argument("--to", type=Path, default=Path("models"), help="models folder (default: models)")
    parser.add_argument(
        "--newest", type=int, default=0, help="how many versions of each model, from the newest; 0: all (default: 0)"
    )
    parser.add_argument(
        "--every",
        type=float,
        default=0.0,
        help="seconds after which to look again, until SIGTERM; 0: once (default: 0)",
    )
    add_json(parser)
    return parser
