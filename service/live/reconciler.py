"""Brings the models in memory in step with the disk: what is in the models folder, and what operators decided.

Every worker follows these two sources by itself. One pass at a time looks at both, loads what is missing beside what
serves, moves the labels once it is checked, and drains what is no longer wanted. A version that cannot be loaded is
refused with its reason, and the old one goes on.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..artifacts.repository import Repository
from ..errors import ArtifactInvalid, ServiceError
from ..metrics import Metrics
from ..processes.workers import Workers
from ..settings import Settings
from .loading import Loader
from .model import Model
from .registry import Registry
from .state import LATEST, ModelState
from .state_dir import StateDir
from .versions import VersionTable

_log = logging.getLogger(__name__)

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version is not served, and its files as they were then."""

    error: ServiceError
    files: Fingerprint


class Reconciler:
    """Keeps a registry in step with the disk, from `start` to `stop`.

    Args:
        registry: the models in memory, whose tables are replaced.
        settings: where the models and the decisions are, how often to poll, whether new versions take over by
            themselves, how many old ones stay warm.
        metrics: of loads, refusals and where `latest` points.
        workers: shares with other processes what was measured; None when there are none.

    Attributes:
        repository: the models on disk.
        state: what operators decided.
        refusals: why a version is not served, by name and version.
        loading: name and version of what is being loaded now.
    """

    def __init__(
        self, registry: Registry, settings: Settings, metrics: Metrics, workers: Workers | None = None
    ) -> None:
        self.repository = Repository(settings.models_dir, allow_unverified=settings.allow_unverified)
        spare = None if workers is None else workers.folder
        self.state = StateDir(settings.state_dir, metrics, settings.state_lock_seconds, spare)
        self.refusals: dict[tuple[str, int], Refusal] = {}
        self.loading: tuple[str, int] | None = None
        self._registry = registry
        self._loader = Loader(self.repository, settings, metrics, lambda err: registry.end(str(err)), workers)
        self._settings = settings
        self._metrics = metrics
        self._warm: dict[str, list[int]] = {}  # versions that were latest before, newest last
        self._is_started = False
        self._one_pass = asyncio.Lock()
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what is wanted of every model, and poll for changes from then on.

        Raises:
            StartError: there is no model, or one has no version that can be loaded and gives its golden answers.
        """
        try:
            self.state.make()
            await self._load_all()
        except BaseException as err:
            self._registry.close(str(err))
            await self.stop()
            raise
        self._is_started = True
        for name, version in self.refusals:  # where the start fails, its error holds the reason
            self._log_refusal(name, version)
        self._registry.open()
        if self._settings.poll_seconds:
            self._polling = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Stop polling, answer the requests that wait, refuse new ones, and end every engine's thread."""
        self._registry.close()
        if self._polling is not None:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._polling
        await self._loader.unload_all()

    async def reconcile(self, name: str, *, again: bool = False) -> None:
        """Bring one model in step; returns when what is wanted now has been loaded or refused.

        Args:
            name: the model, known or not.
            again: also try versions that were refused before and whose files are unchanged.
        """
        async with self._one_pass:
            if again:
                self.refusals = {key: refusal for key, refusal in self.refusals.items() if key[0] != name}
            await self._reconcile(name, self.repository.models().get(name, []))

    def previous(self, name: str) -> int | None:
        """Return the version that `latest` pointed at before, else the next older one on disk; None where none is.

        Versions rolled back since the last promote are passed over: a second rollback goes a step further back.
        """
        table = self._registry.tables.get(name)
        left = self.state.of(name).left_behind(LATEST)
        warm = [version for version in self._warm.get(name, []) if version not in left]
        if table is None or warm:
            return warm[-1] if warm else None
        older = (v for v in self.repository.models().get(name, []) if v < table.latest and v not in left)
        return max(older, default=None)

    async def _load_all(self) -> None:
        models = self.repository.models()
        if not models:
            raise ArtifactInvalid(
                f"{self.repository.root} holds no <model>/<version>/model.onnx; export a model there, "
                "or set --models-dir"
            )
        for name, versions in models.items():
            await self.reconcile(name)
            if name not in self._registry.tables and not self.state.of(name).is_unloaded:
                refused = [version for version in versions if (name, version) in self.refusals]
                if refused:
                    raise self.refusals[name, refused[-1]].error

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                on_disk = await asyncio.to_thread(self.repository.models)
                for name in sorted({*on_disk, *self._registry.tables}):
                    async with self._one_pass:
                        await self._reconcile(name, on_disk.get(name, []))
            except ServiceError as err:  # the disk can fail for a moment; what serves goes on
                _log.error("following the models failed: %s", err)
            except Exception:
                _log.exception("following the models failed")

    async def _reconcile(self, name: str, on_disk: Sequence[int]) -> None:
        state, table = self.state.of(name), self._registry.tables.get(name)
        if state.is_unloaded:
            self._registry.shadows.follow(name, None, {})
            self._replace(name, None)
            return
        loaded = dict(table.loaded) if table else {}
        latest = await self._load_latest(name, on_disk, state, loaded)
        if latest is None:
            return  # none of its versions can be loaded, and none was
        # `latest` moves as soon as its version is checked; the others may take their time.
        if table is None or latest != table.latest:
            self._move_latest(name, latest, loaded, state)
        wanted = {*state.labels.values(), *state.loaded, *([state.shadow.version] if state.shadow else [])}
        for version in sorted(wanted & set(on_disk)):
            await self._load(name, version, loaded)
        self._registry.shadows.follow(name, state.shadow, loaded)
        keep = wanted | {latest, *self._warm.get(name, [])}
        self._replace(name, _table(name, latest, state, {v: model for v, model in loaded.items() if v in keep}))

    async def _load_latest(
        self, name: str, on_disk: Sequence[int], state: ModelState, loaded: dict[int, Model]
    ) -> int | None:
        """Return the version that `latest` shall point at, loaded: the first of the candidates that can be."""
        for version in self._candidates(on_disk, state, self._registry.tables.get(name)):
            if await self._load(name, version, loaded):
                return version
        return None

    def _candidates(self, on_disk: Sequence[int], state: ModelState, table: VersionTable | None) -> list[int]:
        """Versions for `latest`, best first: the pinned one, else the newest; and always the one that it is now."""
        newest_first = sorted(on_disk, reverse=True)
        now = [table.latest] if table else []
        if LATEST in state.labels:
            return [state.labels[LATEST], *now, *newest_first]
        if now and not self._settings.promote_new:
            return [*now, *newest_first]
        return [version for version in newest_first if not now or version > now[0]] + now + newest_first

    async def _load(self, name: str, version: int, loaded: dict[int, Model]) -> bool:
        """Make sure that a version is loaded; returns whether it is."""
        if version in loaded:
            return True
        files = self._fingerprint(name, version)
        refusal = self.refusals.get((name, version))
        if refusal is not None and refusal.files == files:
            return False
        self.loading = (name, version)
        try:
            table = self._registry.tables.get(name)
            like = table.choose() if table is not None else None
            loaded[version] = await self._loader.load(name, version, is_beside=self._is_started, like=like)
        except ServiceError as err:
            self._refuse(name, version, Refusal(type(err)(str(err)), files))  # without its frames: they hold a session
            return False
        finally:
            self.loading = None
        self.refusals.pop((name, version), None)
        return True

    def _refuse(self, name: str, version: int, refusal: Refusal) -> None:
        self.refusals[name, version] = refusal
        self._metrics.refused_versions.labels(name).inc()
        if self._is_started:
            self._log_refusal(name, version)

    def _log_refusal(self, name: str, version: int) -> None:
        reason = str(self.refusals[name, version].error)
        _log.error("version refused", extra={"model": name, "version": version, "reason": reason})

    def _move_latest(self, name: str, latest: int, loaded: dict[int, Model], state: ModelState) -> None:
        table = self._registry.tables.get(name)
        before = table.latest if table else None
        if before is not None:
            warm = [version for version in self._warm.get(name, []) if version not in (before, latest)]
            keep = self._settings.keep_warm
            self._warm[name] = [*warm, before][-keep:] if keep else []
        self._replace(name, _table(name, latest, state, loaded))
        self._metrics.latest_version.labels(name).set(latest)
        _log.info("latest moved", extra={"model": name, "from": before, "to": latest})

    def _replace(self, name: str, table: VersionTable | None) -> None:
        """Change the table, and unload what is no longer in it."""
        before = self._registry.tables.get(name)
        if table == before:
            return
        self._registry.replace(name, table)
        kept = table.loaded if table else {}
        for version, model in (before.loaded if before else {}).items():
            if kept.get(version) is not model:
                self._loader.unload(model)

    def _fingerprint(self, name: str, version: int) -> Fingerprint:
        """Names, sizes and times of a version's files: a refused version is tried again when they change."""
        folder = self.repository.root / name / str(version)
        try:
            files = [(path.name, path.lstat()) for path in sorted(folder.iterdir())]
        except OSError:
            return ()
        return tuple((file, status.st_size, status.st_mtime_ns) for file, status in files)


def _table(name: str, latest: int, state: ModelState, loaded: dict[int, Model]) -> VersionTable:
    labels = {label: version for label, version in state.labels.items() if label != LATEST and version in loaded}
    return VersionTable(name, latest, labels, dict(loaded))
