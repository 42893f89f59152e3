"""What an operator can do with the models: list, load, unload, promote, roll back, compare.

Each call writes a decision where every worker reads it, brings this worker in step, and returns once the decision holds
here. Knows nothing of HTTP, nor who may call.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from foldserve.format.names import is_version

from ..audit import audited
from ..errors import InvalidInput, ModelNotFound, clip
from ..request_context import Caller
from .model import UNVERIFIED
from .reconciler import Reconciler
from .registry import Registry
from .state import LATEST, NOBODY, PROMOTE, ROLLBACK, ModelState, Shadow, check_label
from .versions import VersionTable

MAX_SHADOW_SECONDS = 30 * 24 * 3600.0


class ModelControl:
    """The calls.

    Args:
        registry: the models of this worker.
        reconciler: brings them in step with what is decided here.
        promotes_new: whether `latest` follows the newest version by itself.
    """

    def __init__(self, registry: Registry, reconciler: Reconciler, *, promotes_new: bool) -> None:
        self._registry = registry
        self._reconciler = reconciler
        self._state = reconciler.state
        self._promotes_new = promotes_new

    async def index(self, *, ready_only: bool = False) -> list[dict[str, Any]]:
        """Return every version, on disk or in memory: name, version, state, and the reason where it does not serve."""
        on_disk = await self._reconciler.look()
        names = sorted({*on_disk, *self._registry.tables})
        rows = [row for name in names for row in self._versions(name, on_disk.get(name, []))]
        return [row for row in rows if row["state"] == "READY"] if ready_only else rows

    async def show(self, name: str) -> dict[str, Any]:
        """Return labels, versions, history and comparison of one model.

        Raises:
            ModelNotFound: it is neither on disk nor in memory.
        """
        on_disk = await self._on_disk(name)
        state, table = self._reconciler.state_of(name), self._registry.tables.get(name)
        declared = self._reconciler.declared
        return {
            "name": name,
            "latest": table.latest if table else None,
            "pinned": LATEST in state.labels,
            "labels": dict(table.labels) if table else {},
            "versions": self._versions(name, on_disk),
            "shadow": self.shadow_report(name),
            "history": [asdict(move) for move in state.history],
            **({"declared": dict(declared.of(name))} if declared.of(name) else {}),
            **({"declared_lost": declared.loss} if declared.loss else {}),
            **({"state_lost": self._state.loss} if self._state.loss else {}),
        }

    async def load(self, name: str, version: int | None = None, caller: Caller = NOBODY) -> None:
        """Load the newest version, or a named one beside those that serve; refused ones are tried again.

        Raises:
            ModelNotFound: it is not on disk.
            InvalidInput: it was refused; the message has the reason.
            NotReady: a named version, or a model that was unloaded, needs the state folder.
        """
        with audited("load", caller, name, version=version):
            await self._load(name, version)

    async def unload(self, name: str, caller: Caller = NOBODY) -> None:
        """Let a model answer nothing any more, in no version, until it is loaded again.

        Raises:
            ModelNotFound: there is no such model.
            Conflict: versions of it are declared.
            NotReady: there is no state folder.
        """
        with audited("unload", caller, name):
            await self._on_disk(name)
            self._reconciler.declared.check_unload(name)
            self._state.check()
            await self._decide(name, lambda state: replace(state, is_unloaded=True, loaded=(), shadow=None))
            self._reconciler.follow(name)

    async def promote(self, name: str, version: int | None, label: str = LATEST, caller: Caller = NOBODY) -> None:
        """Point a label at a version, once that is loaded and has given its golden answers.

        `latest` follows the newest version again where that is the one, or where none is named; versions that their
        publisher holds back are followed by none, and pinned by their number.

        Raises:
            ModelNotFound: the version is not on disk.
            InvalidInput: it was refused, or no version is named for another label.
            Conflict: the label is declared to point at another version.
            NotReady: there is no state folder.
        """
        with audited(PROMOTE, caller, name, version=version, label=clip(label)):
            check_label(label)
            on_disk = await self._on_disk(name)
            if version is None and label != LATEST:
                raise InvalidInput(f"promote: no version, expected the one that {label!r} shall point at")
            self._reconciler.declared.check_move(name, label, version)
            self._state.check()
            target = version
            if version is not None:
                table = self._registry.tables.get(name)
                if table is None or version not in table.loaded:
                    await self._load(name, version)
                is_newest = version == max(on_disk, default=0) and (name, version) not in self._reconciler.held_back
                if label == LATEST and is_newest and self._promotes_new:
                    target = None
            await self._move(name, label, target, PROMOTE, self._target(name, label), version, caller)

    async def rollback(self, name: str, label: str = LATEST, caller: Caller = NOBODY) -> None:
        """Point a label back at the version it pointed at before; `latest` stays there until the next promote.

        Each further rollback goes one step further back.

        Raises:
            ModelNotFound: there is no such model or label.
            InvalidInput: there is nothing to go back to, that version was refused, or this is no label.
            Conflict: the label is declared.
            NotReady: there is no state folder.
        """
        with audited(ROLLBACK, caller, name, label=clip(label)):
            check_label(label)
            await self._on_disk(name)
            source = self._target(name, label)
            if source is None:
                raise ModelNotFound(f"model {name!r} has no label {label!r} to roll back")
            self._reconciler.declared.check_move(name, label, None)
            self._state.check()
            target = self._reconciler.previous(name) if label == LATEST else self._state.of(name).before(label)
            if target is None:
                raise InvalidInput(
                    f"rollback: {label!r} of model {name!r} has pointed at nothing before version {source}"
                )
            await self._move(name, label, target, ROLLBACK, source, target, caller)
            self._raise_refusal(name, target)

    async def shadow(self, name: str, version: int, seconds: float, caller: Caller = NOBODY) -> None:
        """Give a version a copy of live inputs for a while.

        Raises:
            ModelNotFound: the version is not on disk.
            InvalidInput: it was refused, it is `latest` itself, or the time is out of range.
            NotReady: there is no state folder.
        """
        with audited("shadow", caller, name, version=version):
            await self._on_disk(name, version)
            if not 0 < seconds <= MAX_SHADOW_SECONDS:
                raise InvalidInput(f"shadow: {seconds} seconds, expected a number above 0 and at most 30 days")
            if version == self._target(name, LATEST):
                raise InvalidInput(f"shadow: version {version} is the one that answers, expected another one")
            self._state.check()
            decided = Shadow(version, time.time(), time.time() + seconds)
            await self._decide(name, lambda state: replace(state, shadow=decided))
            await self._reconciler.reconcile(name, version, again=True)
            try:
                self._raise_refusal(name, version)
            except InvalidInput:
                await self._end_shadow(name)
                raise

    async def end_shadow(self, name: str, caller: Caller = NOBODY) -> None:
        """End a comparison; its version is unloaded unless a label points at it."""
        with audited("end-shadow", caller, name):
            await self._on_disk(name)
            await self._end_shadow(name)

    async def _load(self, name: str, version: int | None) -> None:
        on_disk = await self._on_disk(name, version)
        if version is not None:
            await self._decide(name, lambda state: replace(_with(state, version), is_unloaded=False))
        elif self._reconciler.state_of(name).is_unloaded:
            await self._decide(name, lambda state: replace(state, is_unloaded=False))
        await self._reconciler.reconcile(name, version, again=True)
        try:
            self._raise_refusal(name, version if version is not None else max(on_disk, default=0))
        except InvalidInput:
            if version is not None:
                await self._decide(name, lambda state: _without(state, version))
            raise

    async def _end_shadow(self, name: str) -> None:
        await self._decide(name, lambda state: replace(state, shadow=None))
        self._reconciler.follow(name)

    def shadow_report(self, name: str) -> dict[str, Any] | None:
        """Return the result of the comparison so far; None where there is none."""
        decided = self._state.of(name).shadow
        if decided is None:
            return None
        return {**asdict(decided), **self._registry.shadows.report(name, decided)}

    async def _decide(self, name: str, decide: Callable[[ModelState], ModelState]) -> None:
        """Write a decision; in a thread, since a sync to disk takes long and requests go on meanwhile."""
        await asyncio.to_thread(self._state.change, name, decide)

    async def _move(
        self,
        name: str,
        label: str,
        target: int | None,
        action: str,
        source: int | None,
        version: int | None,
        caller: Caller,
    ) -> None:
        """Point a label at `target` (None: `latest` follows); `version` is kept by it then, and by no load."""

        def decide(state: ModelState) -> ModelState:
            return replace(_without(state.moved(label, target, action, source, caller), version), is_unloaded=False)

        await self._decide(name, decide)
        self._reconciler.follow(name)
        table = self._registry.tables.get(name)
        if table is None or version is None or version not in table.loaded:
            await self._reconciler.reconcile(name, version)

    def _versions(self, name: str, on_disk: Sequence[int]) -> list[dict[str, Any]]:
        table = self._registry.tables.get(name)
        loaded = table.loaded if table else {}
        numbers = sorted({*on_disk, *loaded})
        return [self._row(name, number, table) for number in numbers]

    def _row(self, name: str, version: int, table: VersionTable | None) -> dict[str, Any]:
        row: dict[str, Any] = {"name": name, "version": str(version), "state": "READY", "reason": ""}
        if table is not None and version in table.loaded:
            verified = table.loaded[version].is_verified
            changed = self._reconciler.change_of(name, version)
            reason = changed or ("" if verified else f"unverified: {UNVERIFIED}")
            accuracy = table.loaded[version].artifact.accuracy
            known = {} if accuracy is None else {"accuracy": accuracy}
            return row | {"reason": reason, "labels": table.labels_of(version), "verified": verified, **known}
        if (name, version) in self._reconciler.loading:
            return row | {"state": "LOADING"}
        refusal = self._reconciler.refusals.get((name, version))
        held = self._reconciler.held_back.get((name, version))
        idle = "not loaded" if held is None else f"not promoted: {held}"
        return row | {"state": "UNAVAILABLE", "reason": str(refusal.error) if refusal else idle}

    async def _on_disk(self, name: str, version: int | None = None) -> Sequence[int]:
        """Return the versions on disk of a model that exists, as does the version that is named."""
        on_disk = await self._reconciler.look()
        if name not in on_disk and name not in self._registry.tables:
            raise ModelNotFound(f"model {name[:80]!r} does not exist; there are {sorted(on_disk)}")
        versions = on_disk.get(name, [])
        if version is not None and version not in versions:
            raise ModelNotFound(f"model {name!r} has no version {version}; there are {versions}")
        return versions

    def _target(self, name: str, label: str) -> int | None:
        """Return where a label points now; None where it points nowhere."""
        table = self._registry.tables.get(name)
        if label == LATEST:
            return table.latest if table else None
        return self._reconciler.state_of(name).labels.get(label)

    def _raise_refusal(self, name: str, version: int) -> None:
        refusal = self._reconciler.refusals.get((name, version))
        if refusal is not None:
            raise InvalidInput(f"version {version} was refused, and what served goes on: {refusal.error}")


def _with(state: ModelState, version: int) -> ModelState:
    return replace(state, loaded=tuple(sorted({*state.loaded, version})))


def _without(state: ModelState, version: int | None) -> ModelState:
    return replace(state, loaded=tuple(other for other in state.loaded if other != version))


def body_version(body: Mapping[str, Any]) -> int | None:
    """Return the version that a control call names, as a number or as text, or under `parameters` as Triton has it.

    Raises:
        InvalidInput: it is no positive whole number.
    """
    value = body.get("version", (body.get("parameters") or {}).get("version"))
    if value is None:
        return None
    if isinstance(value, str) and is_version(value):
        value = int(value)
    if type(value) is not int or value < 1:
        raise InvalidInput(f"version: {str(value)[:40]!r}, expected a positive whole number")
    return value
