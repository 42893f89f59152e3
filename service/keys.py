"""API keys: how they are made and taken back, and the file that holds them, followed while it changes.

A key file holds one key a line, `<name> <scope,scope> <SHA-256 of the key>`. Keys are long random strings, so a plain
digest cannot be guessed back. Which calls need which scope is decided by `access`.
"""

import hashlib
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .audit import audit
from .errors import ArtifactInvalid, InvalidInput
from .regular_file import read_regular
from .request_context import Caller

_log = logging.getLogger(__name__)

INFER, METRICS, ADMIN, READ, OPEN = "infer", "metrics", "admin", "read", "open"
SCOPES = (INFER, METRICS, ADMIN, READ)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern})\s+([a-z,]+)\s+([0-9a-f]{{64}})")
_REVOKED = re.compile(rf"# revoked {_NAME.pattern} [0-9a-f]{{64}}")
_KEY_BYTES = 32
_MOST_BYTES = 16 * 1024 * 1024

LOOK_SECONDS = 0.25  # between two looks at the file
# For how long the content has to stay the same until it counts as whole. A key that would be lost waits longer: the
# file may be one that is being written again, in pieces.
_UNCHANGED_SECONDS = 0.1
_UNCHANGED_SECONDS_TO_LOSE = 0.6


@dataclass(frozen=True, slots=True)
class Key:
    """One key: who has it, the scopes that it gives, and the digest by which it is recognised."""

    name: str
    scopes: frozenset[str]
    digest: bytes


class KeysFile:
    """The keys of a file, as it was when it was last whole.

    It is whole when each line can be read and it has stayed the same for a while; one without any key only where they
    were revoked, since that is what a file looks like that is being written again.

    Args:
        path: of the file.
        is_news: told of each change, whether this process is the first of several that reports it.

    Attributes:
        keys: those that are known now.

    Raises:
        ArtifactInvalid: the file cannot be read or a line is not a key's.
    """

    def __init__(self, path: Path, is_news: Callable[[str], bool] = lambda change: True) -> None:
        self._path = path
        self._is_news = is_news
        self._data = _read(path)
        self.keys = parse_keys(path, self._data)
        self._next: tuple[bytes, float] | None = None  # another content, and since when it has been there
        self._problem: tuple[str, float, bool] | None = None  # what is wrong, since when, and whether that was said
        self._wake = threading.Event()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def follow(self, also: Callable[[], None]) -> None:
        """Look at the file from now on, in a thread, until `close`; `also` is called after each look."""
        self._thread = threading.Thread(target=self._follow, args=(also,), name="keys-file", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def reload(self) -> None:
        """Have the file read soon; its content counts as whole after a tenth of a second."""
        self._wake.set()

    def look(self, *, is_told: bool = False) -> None:
        """Look at the file once; what was read before stays until another content is whole.

        Args:
            is_told: an operator has said that the file is whole.
        """
        now = time.monotonic()
        try:
            data = _read(self._path)
            keys = self._parse(data)
        except ArtifactInvalid as err:
            self._next = None
            self._note(str(err), now)
            return
        self._problem = None
        if data == self._data:
            self._next = None
        elif self._next is None or self._next[0] != data:
            self._next = data, now
        elif now - self._next[1] >= (_UNCHANGED_SECONDS if is_told else self._wait_for(keys)):
            self._take(data, keys)

    def _follow(self, also: Callable[[], None]) -> None:
        while not self._is_closed:
            is_told = self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            try:
                self.look()
                if is_told and not self._is_closed:
                    time.sleep(_UNCHANGED_SECONDS)
                    self.look(is_told=True)
                also()
            except Exception:  # a mistake of ours: a key that is revoked later still has to be noticed
                _log.exception("following the keys file failed")

    def _parse(self, data: bytes) -> tuple[Key, ...]:
        keys = parse_keys(self._path, data)
        if not keys and self.keys and not any(map(_REVOKED.fullmatch, map(str.strip, data.decode().splitlines()))):
            raise ArtifactInvalid(f"key file {self._path} holds no key; `foldserve keys revoke` takes keys back")
        return keys

    def _wait_for(self, keys: tuple[Key, ...]) -> float:
        return _UNCHANGED_SECONDS if set(self.keys) <= set(keys) else _UNCHANGED_SECONDS_TO_LOSE

    def _take(self, data: bytes, keys: tuple[Key, ...]) -> None:
        before, self._data, self._next = self.keys, data, None
        self.keys = keys
        if not self._is_news(f"keys-{hashlib.sha256(data).hexdigest()[:16]}-{_changed_at(self._path)}"):
            return
        _log.info("keys read again", extra={"keys": len(keys)})
        old, new = ({key.name: key for key in known} for known in (before, keys))
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                action = "key-added" if name not in old else "key-removed" if name not in new else "key-changed"
                audit(action, Caller(name))

    def _note(self, problem: str, now: float) -> None:
        """Say once what keeps the file from being read, unless that passes by itself."""
        if self._problem is None or self._problem[0] != problem:
            self._problem = problem, now, False
        elif not self._problem[2] and now - self._problem[1] >= _UNCHANGED_SECONDS_TO_LOSE:
            self._problem = problem, now, True
            _log.error("the keys stay as they were: %s", problem)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Return the keys of a file; raises what `parse_keys` raises, also where the file cannot be read."""
    return parse_keys(path, _read(path))


def parse_keys(path: Path, data: bytes) -> tuple[Key, ...]:
    """Return the keys in the content of a file; empty lines and those that begin with # are skipped.

    Raises:
        ArtifactInvalid: a line is not `<name> <scope,scope> <SHA-256>`.
    """
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as err:
        raise ArtifactInvalid(f"key file {path} cannot be read: {err.reason} at byte {err.start}") from err
    keys = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        scopes = frozenset(match[2].split(",")) if match else frozenset()
        if match is None or not scopes <= set(SCOPES):
            raise ArtifactInvalid(
                f"key file {path}, line {number}: expected <name> <scope,scope> <SHA-256 in hex>, "
                f"with scopes among {', '.join(SCOPES)}"
            )
        keys.append(Key(match[1], scopes, bytes.fromhex(match[3])))
    return tuple(keys)


def new_key(name: str, scopes: Iterable[str]) -> tuple[str, str]:
    """Return a new key and the line that makes it known; only its owner ever sees the former.

    Raises:
        InvalidInput: the name or a scope could not stand in a key file.
    """
    scopes = list(scopes)
    if not set(scopes) <= set(SCOPES) or not _NAME.fullmatch(name):
        raise InvalidInput(f"key {name[:64]!r} with {scopes}, expected letters, digits, _ . - and some of {SCOPES}")
    key = secrets.token_urlsafe(_KEY_BYTES)
    return key, f"{name} {','.join(scopes)} {hashlib.sha256(key.encode()).hexdigest()}"


def add_key(path: Path, line: str) -> None:
    """Put the line of a new key at the end of a file, in one step; a new file is its owner's alone.

    Raises:
        ArtifactInvalid: the file cannot be read or written, or a line of it is not a key's.
    """
    if not path.exists():
        _write(path, f"{line}\n", 0o600)
        return
    read_keys(path)
    text = _read(path).decode()
    _write(path, f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n", path.stat().st_mode & 0o777)


def revoke_key(path: Path, name: str) -> int:
    """Take every key of this name out of a file, in one step; returns how many there were.

    A comment in the place of each says that it was revoked; a file without keys counts as unfinished otherwise.

    Raises:
        ArtifactInvalid: the file cannot be read or written, or a line is not a key's.
        InvalidInput: it holds no such key.
    """
    known = [key for key in read_keys(path) if key.name == name]
    if not known:
        raise InvalidInput(f"key file {path} holds no key {name[:64]!r}")
    lines = _read(path).decode().splitlines()
    _write(path, "".join(f"{_without(line, name)}\n" for line in lines), path.stat().st_mode & 0o777)
    return len(known)


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file in one step, with this mode from its first byte on."""
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        temporary.touch(mode=mode)
        temporary.write_text(text)
        temporary.replace(place)
    except OSError as err:
        temporary.unlink(missing_ok=True)
        raise ArtifactInvalid(f"key file {path} cannot be written: {err.strerror or err}") from err


def _without(line: str, name: str) -> str:
    match = _LINE.fullmatch(line.strip())
    return f"# revoked {name} {match[3]}" if match and match[1] == name else line


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _MOST_BYTES)
    except OSError as err:
        raise ArtifactInvalid(f"key file {path} cannot be read: {err.strerror or err}") from err


def _changed_at(path: Path) -> int:
    """When the file was changed last, by which workers tell one change from a later one to the same content."""
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return 0
