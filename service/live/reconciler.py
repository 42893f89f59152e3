"""What is on disk and what operators decided -> what is loaded and where the labels point.

Every worker follows the same two sources by itself: the models folder and the state file. One pass at a time looks at
both, loads what is missing beside what serves, moves the pointers once it is proved, and drains what nobody wants any
more. A version that cannot be had is refused with its reason, and the old one goes on.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..artifacts.repository import Repository
from ..errors import ArtifactInvalid, ServiceError
from ..metrics import Metrics
from ..settings import Settings
from .loading import Loader
from .model import Model
from .shadow import Shadows
from .state import LATEST, ModelState, StateDir
from .versions import Versions

_log = logging.getLogger(__name__)

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version is not served, and the files for which that was found."""

    error: ServiceError
    files: Fingerprint

    @property
    def reason(self) -> str:
        """One sentence."""
        return str(self.error)


class Followed(Protocol):
    """The models in memory, as far as they are changed here; the registry."""

    shadows: Shadows

    @property
    def tables(self) -> Mapping[str, Versions]:
        """Versions and labels of each model."""

    def replace(self, name: str, versions: Versions | None) -> None:
        """Put another table in the place of a model's; None takes the model out."""


class Reconciler:
    """Keeps the registry in step with the disk.

    Args:
        repository: the models on disk.
        state: what operators decided.
        loader: loads and unloads single versions.
        registry: whose tables are replaced.
        settings: how often to look, whether new versions take over by themselves, how many old ones stay warm.
        metrics: told of refusals and of where `latest` points.
    """

    def __init__(
        self,
        repository: Repository,
        state: StateDir,
        loader: Loader,
        registry: Followed,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.repository = repository
        self.state = state
        self.refusals: dict[tuple[str, int], Refusal] = {}
        self.loading: tuple[str, int] | None = None
        self._loader = loader
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._warm: dict[str, list[int]] = {}  # versions that were latest before, newest last
        self._is_started = False
        self._one_pass = asyncio.Lock()
        self._unloading: set[asyncio.Task[None]] = set()
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what is wanted of every model; look again from time to time.

        Raises:
            StartError: there is no model, or one has no version that answers rightly.
        """
        names = self.repository.models()
        if not names:
            raise ArtifactInvalid(
                f"{self.repository.root} holds no <model>/<version>/model.onnx; export a model there, "
                "or set --models-dir"
            )
        states = self.state.read()
        for name in names:
            await self.follow(name)
            if name not in self._registry.tables and not states.get(name, ModelState()).is_unloaded:
                self._raise_refusal(name, names[name])
        self._is_started = True
        for name, version in self.refusals:  # those of a start that fails are its last words instead
            self._log_refusal(name, version)
        if self._settings.poll_seconds:
            self._polling = asyncio.create_task(self._poll())

    async def stop(self, loaded: Iterable[Model]) -> None:
        """Stop looking, and drain everything."""
        if self._polling is not None:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._polling
        await asyncio.gather(*self._unloading, *(self._loader.unload(model) for model in loaded))

    async def follow(self, name: str, *, again: bool = False) -> None:
        """Bring one model in step; returns when what is wanted now has been loaded or refused.

        Args:
            name: the model, known or not.
            again: also try versions that were refused before and whose files are the same.
        """
        async with self._one_pass:
            if again:
                self.refusals = {key: refusal for key, refusal in self.refusals.items() if key[0] != name}
            on_disk = self.repository.models().get(name, [])
            await self._bring_in_step(name, on_disk, self.state.read().get(name, ModelState()))

    def previous(self, name: str) -> int | None:
        """Return the version that `latest` pointed at before, else the next older one on disk; None where none is.

        One that was rolled back from since the last promote is not meant: a second rollback goes a step further back.
        """
        table = self._registry.tables.get(name)
        left = self.state.read().get(name, ModelState()).left_behind(LATEST)
        warm = [version for version in self._warm.get(name, []) if version not in left]
        if table is None or warm:
            return warm[-1] if warm else None
        older = (v for v in self.repository.models().get(name, []) if v < table.latest and v not in left)
        return max(older, default=None)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                on_disk = await asyncio.to_thread(self.repository.models)
                for name in sorted({*on_disk, *self._registry.tables}):
                    async with self._one_pass:
                        state = self.state.read().get(name, ModelState())
                        await self._bring_in_step(name, on_disk.get(name, []), state)
            except ServiceError as err:  # the disk can fail for a moment; what serves goes on
                _log.error("following the models failed: %s", err)
            except Exception:
                _log.exception("following the models failed")

    async def _bring_in_step(self, name: str, on_disk: Sequence[int], state: ModelState) -> None:
        table = self._registry.tables.get(name)
        if state.is_unloaded:
            self._replace(name, None)
            return
        loaded = dict(table.loaded) if table else {}
        latest = await self._load_latest(name, on_disk, state, loaded)
        if latest is None:
            return  # nothing of it can be served, and nothing was
        # The pointer moves as soon as its version is proved; the others may take their time.
        before = table.latest if table else None
        if latest != before:
            self._move_latest(name, before, latest, loaded, state)
        wanted = {*state.labels.values(), *state.loaded, *([state.shadow.version] if state.shadow else [])}
        for version in sorted(wanted & set(on_disk)):
            await self._load(name, version, loaded)
        self._registry.shadows.follow(name, state.shadow, loaded)
        keep = wanted | {latest, *self._warm.get(name, [])}
        self._replace(name, _table(name, latest, state, {v: model for v, model in loaded.items() if v in keep}))

    async def _load_latest(
        self, name: str, on_disk: Sequence[int], state: ModelState, loaded: dict[int, Model]
    ) -> int | None:
        """Return the version that `latest` shall point at, loaded: the first of the candidates that can be had."""
        table = self._registry.tables.get(name)
        for version in self._candidates(on_disk, state, table):
            if await self._load(name, version, loaded):
                return version
        return None

    def _candidates(self, on_disk: Sequence[int], state: ModelState, table: Versions | None) -> list[int]:
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
            self._refuse(name, version, err, files)
            return False
        finally:
            self.loading = None
        self.refusals.pop((name, version), None)
        return True

    def _refuse(self, name: str, version: int, error: ServiceError, files: Fingerprint) -> None:
        self.refusals[name, version] = Refusal(error, files)
        self._metrics.refused_versions.labels(name).inc()
        if self._is_started:
            self._log_refusal(name, version)

    def _log_refusal(self, name: str, version: int) -> None:
        reason = self.refusals[name, version].reason
        _log.error("version refused", extra={"model": name, "version": version, "reason": reason})

    def _move_latest(
        self, name: str, before: int | None, latest: int, loaded: dict[int, Model], state: ModelState
    ) -> None:
        if before is not None:
            warm = [version for version in self._warm.get(name, []) if version not in (before, latest)]
            keep = self._settings.keep_warm
            self._warm[name] = [*warm, before][-keep:] if keep else []
        self._replace(name, _table(name, latest, state, loaded))
        self._metrics.latest_version.labels(name).set(latest)
        _log.info("latest moved", extra={"model": name, "from": before, "to": latest})

    def _replace(self, name: str, table: Versions | None) -> None:
        """Change the table and drain, beside it, what is in none any more."""
        before = self._registry.tables.get(name)
        if table == before:
            return
        self._registry.replace(name, table)
        kept = table.loaded if table else {}
        for version, model in (before.loaded if before else {}).items():
            if kept.get(version) is not model:
                task = asyncio.create_task(self._loader.unload(model))
                self._unloading.add(task)
                task.add_done_callback(self._unloading.discard)

    def _fingerprint(self, name: str, version: int) -> Fingerprint:
        """Names, sizes and times of a version's files: a refused version is tried again when they change."""
        folder = self.repository.root / name / str(version)
        try:
            found = [(path.name, path.lstat()) for path in sorted(folder.iterdir())]
        except OSError:
            return ()
        return tuple((file, status.st_size, status.st_mtime_ns) for file, status in found)

    def _raise_refusal(self, name: str, versions: Sequence[int]) -> None:
        """End the start with the reason of the newest version that was refused."""
        for version in reversed(versions):
            refusal = self.refusals.get((name, version))
            if refusal is not None:
                raise refusal.error


def _table(name: str, latest: int, state: ModelState, loaded: dict[int, Model]) -> Versions:
    labels = {label: version for label, version in state.labels.items() if label != LATEST and version in loaded}
    return Versions(name, latest, labels, dict(loaded))
