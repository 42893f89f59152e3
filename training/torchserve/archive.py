"""A TorchServe archive as a list of files with their sizes, which can be read one by one.

The three forms that torch-model-archiver writes: `.mar` (a zip), `.tar.gz`, and a folder. Nothing is unpacked under a
name that the archive chose, nothing is imported, and what an archive claims to hold is weighed before it is read.
"""

import contextlib
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import ConfigError

_GZIP = b"\x1f\x8b"
_SMALL = 2**28  # bytes that any archive may unpack to
_RATIO = 100  # weights shrink by a tenth, code and JSON by ten; a hundred is a bomb
_CHUNK = 2**20
_FORMS = "expected what torch-model-archiver wrote: a .mar, a .tar.gz or the folder of one"


@dataclass(frozen=True)
class Archive:
    """The files of an archive.

    Attributes:
        path: of the archive.
        sizes: name of each regular file -> bytes.
        opened: name -> its content, to be read once.
    """

    path: Path
    sizes: Mapping[str, int]
    opened: Callable[[str], IO[bytes]]

    def read(self, name: str, most: int) -> bytes:
        """Return the content of one file.

        Raises:
            ConfigError: it has more bytes than `most`, or cannot be read.
        """
        if self.sizes[name] > most:
            raise ConfigError(f"{self.path}: {name} has {self.sizes[name]} bytes, expected {most} at most")
        with self._reading(name), self.opened(name) as file:
            return file.read(most + 1)

    def copy(self, name: str, target: Path) -> None:
        """Write one file to `target`, no more of it than its size says.

        Raises:
            ConfigError: it cannot be read, or there is no space for it.
        """
        with self._reading(name), self.opened(name) as file, target.open("wb") as out:
            left = self.sizes[name]
            while left and (part := file.read(min(left, _CHUNK))):
                out.write(part)
                left -= len(part)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise ConfigError(f"{self.path}: {name} cannot be unpacked: {err.strerror or err}") from err
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as err:
            raise ConfigError(f"{self.path}: {name} is damaged, encrypted or packed in an unknown way: {err}") from err


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Give the files of an archive.

    Raises:
        ConfigError: it is no archive; a name in it leads out of it, stands there twice or is a link; or it unpacks to
            far more than its own size.
    """
    if path.is_dir():
        yield _folder(path)
        return
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; {_FORMS}")
    with contextlib.ExitStack() as stack:
        try:
            archive = _packed(path, stack)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as err:
            raise ConfigError(f"{path} cannot be read as an archive: {err}; {_FORMS}") from err
        yield archive


def _packed(path: Path, stack: contextlib.ExitStack) -> Archive:
    if zipfile.is_zipfile(path):
        return _zip(path, stack.enter_context(zipfile.ZipFile(path)))
    with path.open("rb") as file:
        if file.read(2) != _GZIP:
            raise ConfigError(f"{path} is neither a zip nor a .tar.gz; {_FORMS}")
    plain = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    _unzip(path, plain)
    return _tar(path, stack.enter_context(tarfile.open(fileobj=plain, mode="r:")))


def _zip(path: Path, file: zipfile.ZipFile) -> Archive:
    sizes: dict[str, int] = {}
    for entry in file.infolist():
        mode = entry.external_attr >> 16
        _check(path, entry.filename, sizes, is_link=stat.S_ISLNK(mode))
        if not entry.is_dir():
            sizes[entry.filename] = entry.file_size
    _weigh(path, sum(sizes.values()))
    return Archive(path, sizes, file.open)


def _tar(path: Path, file: tarfile.TarFile) -> Archive:
    members: dict[str, tarfile.TarInfo] = {}
    for member in file:
        _check(path, member.name, members, is_link=not (member.isreg() or member.isdir()))
        if member.isreg():
            members[member.name] = member
    top = {name.partition("/")[0] for name in members}
    if len(top) == 1:  # the archiver puts everything into a folder of the model's name
        members = {name.partition("/")[2]: member for name, member in members.items() if "/" in name}

    def opened(name: str) -> IO[bytes]:
        content = file.extractfile(members[name])
        assert content is not None
        return content

    return Archive(path, {name: member.size for name, member in members.items()}, opened)


def _folder(path: Path) -> Archive:
    sizes: dict[str, int] = {}
    for folder, folders, files in os.walk(path):
        for entry in (Path(folder) / name for name in (*folders, *files)):
            name, found = entry.relative_to(path).as_posix(), entry.lstat()
            _check(path, name, sizes, is_link=not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)))
            if stat.S_ISREG(found.st_mode):
                sizes[name] = found.st_size
    return Archive(path, sizes, lambda name: (path / name).open("rb"))


def _check(path: Path, name: str, known: Mapping[str, Any], *, is_link: bool) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name:
        raise ConfigError(f"{path}: the file {name!r} would lie outside of the archive; nothing of it is taken")
    if is_link:
        raise ConfigError(f"{path}: {name!r} is a link or no regular file; pack the file that it leads to")
    if name in known:
        raise ConfigError(f"{path}: {name!r} stands there twice; expected one model with each file once")


def _weigh(path: Path, size: int) -> None:
    """Raise ConfigError for a total size that no honest archive of this size on the disk has."""
    if size > _most(path):
        raise ConfigError(
            f"{path} would unpack to {size} bytes, {size // max(1, path.stat().st_size)} times its own size; nothing "
            "of it is taken"
        )


def _most(path: Path) -> int:
    return max(_SMALL, _RATIO * path.stat().st_size)


def _unzip(path: Path, plain: IO[bytes]) -> None:
    """Write what a gzip file unpacks to, up to the weight of a bomb."""
    import gzip

    with gzip.open(path) as file:
        size = 0
        while part := file.read(_CHUNK):
            size += len(part)
            _weigh(path, size)
            plain.write(part)
    plain.seek(0)
