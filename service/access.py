"""Who may call what: API keys with scopes, checked in the same way for HTTP and gRPC.

Where the keys are and what they look like is known to `keys`. Nothing here ever shows a key, nor most of a request.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .audit import RefusedKeys
from .errors import Forbidden, NotFound, ServiceError, TooManyRequests, Unauthorized
from .keys import ADMIN, INFER, METRICS, OPEN, READ, Key, KeysFile
from .processes.workers import Workers
from .rates import SharedTokenBucket, TokenBucket
from .request_context import Caller

if TYPE_CHECKING:
    from .metrics import Metrics

_MAX_KEY_LENGTH = 256  # characters that are compared; no key that was given out is longer


@dataclass(frozen=True, slots=True)
class Passed:
    """A request that may pass, as long as the keys are the same.

    Attributes:
        keys: all of them, as they were when its own was found.
        payer: the key that is to `spend` for each request; None where nothing is counted.
    """

    keys: tuple[Key, ...]
    payer: Key | None


class Access:
    """The checks of one worker.

    Args:
        keys_file: None: there are no keys. Everything is open, except what changes models, which is not there.
        closed: scopes that need a key once there is a file; `admin` always does.
        rate: requests a second of one key; 0 sets no limit.
        shared: folder of the workers, who count a key's requests together; None where there is only this process.
        metrics: where refused keys are counted; None where nobody reads them.

    Raises:
        ArtifactInvalid: the file cannot be read or a line is not a key's.
    """

    def __init__(
        self,
        keys_file: Path | None,
        closed: Iterable[str] = (INFER, METRICS),
        rate: float = 0.0,
        shared: Path | None = None,
        metrics: "Metrics | None" = None,
    ) -> None:
        is_news = Workers(shared).is_first if shared is not None else lambda change: True
        self.file = None if keys_file is None else KeysFile(keys_file, is_news)
        self._shared = shared
        self._closed = frozenset({*closed, ADMIN}) if keys_file else frozenset({ADMIN})
        self._rate = rate
        self._buckets: dict[str, TokenBucket] = {}
        self._metrics = metrics
        self._refused = RefusedKeys()

    def follow(self) -> None:
        """Follow the keys file while it changes, until `close`."""
        if self.file is not None:
            self.file.follow(self._refused.write_rest)

    def reload(self) -> None:
        """Have the keys file read now."""
        if self.file is not None:
            self.file.reload()

    def close(self) -> None:
        """Follow the file no more."""
        if self.file is not None:
            self.file.close()

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys that are known now; another tuple after each change."""
        return self.file.keys if self.file is not None else ()

    def passed(self, scope: str, authorization: bytes | None, api_key: bytes | None) -> Passed | None:
        """Return why a request may pass, for whoever remembers it; None where `check` would refuse it, which says why.

        Args:
            scope: what it needs; not `admin`.
            authorization: the header of that name.
            api_key: the header X-API-Key.
        """
        keys = self.keys
        if scope not in self._closed:
            return Passed(keys, None)
        given = _key_in(_text(authorization), _text(api_key))
        key = _find(keys, given) if given is not None else None
        if key is None or scope not in key.scopes:
            return None
        return Passed(keys, key if self._rate else None)

    def check(
        self,
        scope: str,
        authorization: str | None,
        api_key: str | None,
        target: str = "this call",
        address: str | None = None,
    ) -> str | None:
        """Let a request pass; returns the name of its key, None where it needs none.

        Args:
            scope: what it needs, as `scope_of` says.
            authorization: the header of that name.
            api_key: the header X-API-Key.
            target: what an error names as called.
            address: that it was sent from.

        Raises:
            NotFound: it would change models, and no admin key exists; the message says how to get one.
            Unauthorized: it has no key, or an unknown one.
            Forbidden: the key lacks the scope.
            TooManyRequests: the key has used up its share.
        """
        if scope == OPEN:
            return None
        keys = self.keys
        if scope == ADMIN and not any(ADMIN in key.scopes for key in keys):
            raise self._no_admin(target)
        if scope not in self._closed:
            return None
        given = _key_in(authorization, api_key)
        if given is None:
            self._count("missing")
            raise Unauthorized("no API key, expected one as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'")
        key = _find(keys, given)
        if key is None:
            message = "the API key is not known, expected one that was given out for this service"
            raise self._refuse("unknown", Unauthorized(message), Caller(None, address), target)
        if scope not in key.scopes:
            message = f"key {key.name!r} lacks the scope {scope}, which {target} needs"
            raise self._refuse("scope", Forbidden(message), Caller(key.name, address), target)
        if self._rate:
            self.spend(key)
        return key.name

    def needs_key(self, scope: str) -> bool:
        """Return whether a request that needs this scope needs a key."""
        return scope in self._closed

    def _no_admin(self, target: str) -> NotFound:
        """Return the error for a call that changes models while nobody may."""
        there = "no key in the keys file has it" if self.file is not None else "this service has no --keys-file"
        return NotFound(
            f"{target} needs a key with the scope admin, and {there}; "
            "`foldserve keys new --scopes admin --name <name>` makes one, with its line for the keys file"
        )

    def _refuse(self, reason: str, error: ServiceError, caller: Caller, target: str) -> ServiceError:
        """Count and log a key that was refused; returns the error."""
        self._count(reason)
        self._refused.note(reason, caller, target)
        return error

    def _count(self, reason: str) -> None:
        if self._metrics is not None:
            self._metrics.refused_keys.labels(reason).inc()

    def spend(self, key: Key) -> None:
        """Take one request from a key's share.

        Raises:
            TooManyRequests: it is used up.
        """
        if key.name not in self._buckets:
            shared = self._shared
            self._buckets[key.name] = (
                TokenBucket(self._rate)
                if shared is None
                else SharedTokenBucket(self._rate, shared / f"rate-{key.name}")
            )
        wait = self._buckets[key.name].take()
        if wait:
            self._count("rate")
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
    if path.startswith(("/v2/health/", "/static/")) or path in ("/", "/ping", "/docs", "/openapi.json"):
        return OPEN  # other methods are refused there, with those that would be taken
    if path.startswith("/v2/repository"):
        return READ if is_reading or path == "/v2/repository/index" else ADMIN
    if path.rstrip("/") == "/metrics":
        return METRICS
    return READ if is_reading else INFER


def _key_in(authorization: str | None, api_key: str | None) -> str | None:
    """Return the key in either of its headers; None where there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    return (token.strip() if scheme.lower() == "bearer" and token.strip() else (api_key or "").strip()) or None


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def _find(keys: Iterable[Key], given: str) -> Key | None:
    """Return the key that was given; every known one is compared, so that the time says nothing about which is near."""
    digest = hashlib.sha256(given[:_MAX_KEY_LENGTH].encode("utf-8", "surrogateescape")).digest()
    matching = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    return matching[-1] if matching else None
