"""Who may call what: API keys with scopes, checked in the same way for HTTP and gRPC.

A key file holds one key a line, `<name> <scope,scope> <SHA-256 of the key>`; it is read again when it changes. Keys are
long random strings, so a plain digest cannot be guessed back. Nothing here ever shows a key, nor most of a request.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import ArtifactInvalid, Forbidden, InvalidInput, TooManyRequests, Unauthorized, nothing_served
from .rates import SharedTokenBucket, TokenBucket

_log = logging.getLogger(__name__)

INFER, METRICS, ADMIN, READ, OPEN = "infer", "metrics", "admin", "read", "open"
SCOPES = (INFER, METRICS, ADMIN, READ)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern})\s+([a-z,]+)\s+([0-9a-f]{{64}})")
_LOOK_SECONDS = 1.0
_KEY_BYTES = 32
_MAX_KEY_LENGTH = 256  # characters that are compared; no key that was given out is longer


@dataclass(frozen=True, slots=True)
class Key:
    """One key: who has it, the scopes that it gives, and the digest by which it is recognised."""

    name: str
    scopes: frozenset[str]
    digest: bytes


class Access:
    """The checks of one worker.

    Args:
        keys_file: None: there are no keys. Everything is open, except what changes models, which is not there.
        closed: scopes that need a key once there is a file; `admin` always does.
        rate: requests a second of one key; 0 sets no limit.
        shared: folder of the workers, who count a key's requests together; None where there is only this process.

    Raises:
        ArtifactInvalid: the file cannot be read or a line is not a key's.
    """

    def __init__(
        self,
        keys_file: Path | None,
        closed: Iterable[str] = (INFER, METRICS),
        rate: float = 0.0,
        shared: Path | None = None,
    ) -> None:
        self._shared = shared
        self._file = keys_file
        self._closed = frozenset({*closed, ADMIN}) if keys_file else frozenset({ADMIN})
        self._rate = rate
        self._keys: tuple[Key, ...] = ()
        self._buckets: dict[str, TokenBucket] = {}
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at = float("-inf")
        if keys_file is not None:
            self._keys, self._stamp = read_keys(keys_file), _stamp(keys_file)
            self._looked_at = time.monotonic()

    def check(
        self, scope: str, authorization: str | None, api_key: str | None, target: str = "this call"
    ) -> str | None:
        """Let a request pass; returns the name of its key, None where it needs none.

        Args:
            scope: what it needs, as `scope_of` says.
            authorization: the header of that name.
            api_key: the header X-API-Key.
            target: what an error names as called.

        Raises:
            NotFound: it would change models, and no admin key exists.
            Unauthorized: it has no key, or an unknown one.
            Forbidden: the key lacks the scope.
            TooManyRequests: the key has used up its share.
        """
        if scope == OPEN:
            return None
        keys = self._current()
        if scope == ADMIN and not any(ADMIN in key.scopes for key in keys):
            raise nothing_served(target)
        if scope not in self._closed:
            return None
        key = _find(keys, _key_in(authorization, api_key))
        if scope not in key.scopes:
            raise Forbidden(f"key {key.name!r} lacks the scope {scope}, which {target} needs")
        if self._rate:
            self._spend(key)
        return key.name

    def needs_key(self, scope: str) -> bool:
        """Return whether a request that needs this scope needs a key."""
        return scope in self._closed

    def _current(self) -> tuple[Key, ...]:
        """Return the keys; the file is looked at once a second, and a damaged one changes nothing."""
        if self._file is not None and time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._looked_at = time.monotonic()
            try:
                stamp = _stamp(self._file)
                if stamp != self._stamp:
                    self._keys, self._stamp = read_keys(self._file), stamp
                    known = {key.name for key in self._keys}
                    self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in known}
                    _log.info("keys read again", extra={"keys": len(self._keys)})
            except ArtifactInvalid as err:
                _log.error("the keys stay as they were: %s", err)
        return self._keys

    def _spend(self, key: Key) -> None:
        if key.name not in self._buckets:
            shared = self._shared
            self._buckets[key.name] = (
                TokenBucket(self._rate)
                if shared is None
                else SharedTokenBucket(self._rate, shared / f"rate-{key.name}")
            )
        wait = self._buckets[key.name].take()
        if wait:
            raise TooManyRequests(
                f"key {key.name!r} has sent more than {self._rate:g} requests a second; wait {wait:.2f} s",
                int(wait) + 1,
            )


def scope_of(method: str, path: str) -> str:
    """Return the scope that a request needs, decided on the very path that the routes are found by.

    What is not known to be harmless needs more: any method but GET and HEAD infers, and any in the repository changes
    models.
    """
    is_reading = method in ("GET", "HEAD", "OPTIONS")
    if path.startswith(("/v2/health/", "/static/")) or path in ("/", "/docs", "/openapi.json"):
        return OPEN if is_reading else INFER
    if path.startswith("/v2/repository"):
        return READ if is_reading or (method == "POST" and path == "/v2/repository/index") else ADMIN
    if path.rstrip("/") == "/metrics":
        return METRICS
    return READ if is_reading else INFER


def read_keys(path: Path) -> tuple[Key, ...]:
    """Return the keys of a file; empty lines and those that begin with # are skipped.

    Raises:
        ArtifactInvalid: it cannot be read, or a line is not `<name> <scope,scope> <SHA-256>`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise ArtifactInvalid(f"key file {path} cannot be read: {err}") from err
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


def _key_in(authorization: str | None, api_key: str | None) -> str:
    """Return the key in either of its headers."""
    scheme, _, token = (authorization or "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" and token.strip() else (api_key or "").strip()
    if not key:
        raise Unauthorized("no API key, expected one as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'")
    return key


def _find(keys: Iterable[Key], given: str) -> Key:
    """Return the key that was given; every known one is compared, so that the time says nothing about which is near."""
    digest = hashlib.sha256(given[:_MAX_KEY_LENGTH].encode("utf-8", "surrogateescape")).digest()
    matching = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    if not matching:
        raise Unauthorized("the API key is not known, expected one that was given out for this service")
    return matching[-1]


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as err:
        raise ArtifactInvalid(f"key file {path} cannot be read: {err.strerror}") from err
    return status.st_ino, status.st_mtime_ns, status.st_size
