"""Files that appear whole or not at all, and folders that one process holds at a time.

Everything that training leaves on a disk is written here. It knows paths and bytes, not what they mean.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from .errors import ArtifactError

TEMPORARY = ".tmp-"  # how the name of an unfinished file or folder begins


def write_file(path: Path, content: bytes, remedy: str) -> Path:
    """Write `content` to `path` as `write_whole` does, and return `path`.

    Raises:
        ArtifactError: the disk refuses; the message ends with `remedy`.
    """
    try:
        write_whole(path, content)
    except OSError as err:
        raise ArtifactError(f"{path} cannot be written ({err.strerror or err}); {remedy}") from err
    return path


def write_whole(path: Path, content: bytes, *, replaces: bool = True) -> None:
    """Write `content` to `path` so that `path` is the old file or the new one at every moment.

    Args:
        path: of the file.
        content: all of it.
        replaces: whether a file that is there already gives way.

    Raises:
        OSError: as the system says; the temporary file is gone again.
    """
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), permissions(0o666))  # mkstemp makes files for their owner alone
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replaces:
            os.replace(temporary, path)
        else:
            _publish(Path(temporary), path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_folder(path.parent)


def _publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name; a hard link, unlike a rename, fails when another process was faster."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(temporary, path)


def obstacle(folder: Path) -> Path | None:
    """Return the file, or the folder without the right, that keeps `folder` from being filled; None: there is none."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return None if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK) else existing


def sync_folder(folder: Path) -> None:
    """Return when the entries of `folder` are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def permissions(mode: int) -> int:
    """Return `mode` without what the process's umask takes away; the umask can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mode & ~mask


class FolderLock:
    """The system's lock on `folder`; it ends with the process however the process ends.

    Args:
        folder: to hold; a file can be held in the same way.
        waits: whether to wait for another holder.

    Raises:
        BlockingIOError: another process holds the folder, and `waits` is False.
        OSError: the folder cannot be opened.
    """

    def __init__(self, folder: Path, *, waits: bool = True) -> None:
        self._handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the folder back; a second time does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Give a new file in `folder`, held by this process until the block ends; it is gone then, if it was not renamed.

    A file that nobody holds is one of a process that was killed, and is removed.
    """
    with FolderLock(folder):  # or another process would find the new file before it is held
        for left_behind in folder.glob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError), FolderLock(left_behind, waits=False):
                left_behind.unlink()
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=folder)
        os.close(handle)
        path = Path(name)
        held = FolderLock(path)
    try:
        with held:
            yield path
    finally:
        path.unlink(missing_ok=True)
