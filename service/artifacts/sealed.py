"""A copy of a model file that nothing can change any more: what was hashed and looked through is what runs.

The copy is in memory and has no name; it goes when it is closed, once a session was made of it.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path

_PIECE_BYTES = 8 * 1024 * 1024  # each piece waits three times for its turn among the threads of Python


class SealedFile:
    """The content of a file as it was when it was read, once.

    Args:
        file: a regular file, open at its beginning.

    Attributes:
        sha256: of the content.

    Raises:
        OSError: it cannot be read, or memory does not suffice.
    """

    def __init__(self, file: BufferedReader) -> None:
        self._fill(iter(lambda: file.read(_PIECE_BYTES), b""))

    @classmethod
    def at(cls, path: Path) -> "SealedFile":
        """Return the content of the file at a path; raises OSError as well where there is none."""
        with path.open("rb") as file:
            return cls(file)

    @classmethod
    def of(cls, parts: Iterable[bytes | memoryview]) -> "SealedFile":
        """Return the content that the parts make together as such a file."""
        sealed = cls.__new__(cls)
        sealed._fill(parts)
        return sealed

    def _fill(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Copy content into memory, and seal that."""
        self.descriptor = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            self._write(piece)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.sha256 = digest.hexdigest()

    @property
    def path(self) -> Path:
        """Where this process reads the copy."""
        return Path(f"/proc/self/fd/{self.descriptor}")

    def close(self) -> None:
        """Give the memory back."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        """Give the memory back where nobody has."""
        if hasattr(self, "descriptor"):
            self.close()

    def _write(self, piece: bytes | memoryview) -> None:
        left = memoryview(piece)
        while left:
            left = left[os.write(self.descriptor, left) :]
