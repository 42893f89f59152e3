"""Brings the models in memory in step with the disk: what is in the models folder, and what operators decided.

Every worker follows these two sources by itself. Labels move at once as far as their versions are loaded, whatever else
is going on; what is missing is loaded beside what serves, and what is no longer wanted is drained. A version that
cannot be loaded is refused with its reason, and the old one goes on.
"""

import asyncio
import contextlib
import functools
import gc
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ..artifacts.repository import Repository
from ..artifacts.triton_config import VersionPolicy
from ..errors import ArtifactInvalid, NotReady, ServiceError, VersionLost
from ..metrics import Metrics
from ..processes.abandoned import abandon
from ..processes.workers import Workers
from ..settings import Settings
from .choice import Choice, left_out
from .declared import Declared
from .disk_scan import DiskScan
from .folder_changes import Fingerprint, FolderChanges, fingerprint
from .loading import Loader
from .memory import available_bytes
from .model import Model
from .registry import Registry
from .served import ServedVersions
from .state import LATEST, ModelState
from .state_dir import StateDir
from .versions import VersionTable

_log = logging.getLogger(__name__)

Key = tuple[str, int]  # name and version


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
        workers: shares with other processes what was measured and proved; None when there are none.
        place: of this process among `settings.workers`, from 0.

    Attributes:
        repository: the models on disk, as they are read in a thread.
        state: what operators decided.
        declared: what is declared, and wins over that.
        refusals: why a version is not served, by name and version.
        loading: the loads that are going on, by name and version.
        held_back: why a version does not become `latest` by itself, by name and version, at the last look.
        policies: which versions are served, of the models whose Triton configuration says so, at the last look.
    """

    def __init__(
        self, registry: Registry, settings: Settings, metrics: Metrics, workers: Workers | None = None, place: int = 0
    ) -> None:
        self.repository = Repository(
            settings.models_dir,
            allow_unverified=settings.allow_unverified,
            model_name=settings.model_name,
            room=available_bytes,
        )
        spare = None if workers is None else workers.folder
        self.state = StateDir(settings.state_dir, metrics, settings.state_lock_seconds, spare)
        self.declared = Declared(settings.pin, settings.label, settings.deployment_file, metrics)
        self.refusals: dict[tuple[str, int], Refusal] = {}
        self.loading: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.held_back: Mapping[tuple[str, int], str] = {}
        self.policies: Mapping[str, VersionPolicy] = {}
        self._registry = registry
        registry.why_not_served = self._why_not_served
        self._served = ServedVersions(None if workers is None else workers.folder / "served")
        self._loader = Loader(
            self.repository, settings, metrics, self._served, lambda err: registry.end(str(err)), workers
        )
        self._settings = settings
        self._metrics = metrics
        self._folders = FolderChanges(self.repository, metrics)
        self._place = place
        self._warm: dict[str, list[int]] = {}  # versions that were latest before, newest last
        self._is_started = False
        self._prepared: Future[None] | None = None
        self._begun: dict[Key, Fingerprint] = {}  # of versions whose load was begun, as they were then
        self._disk = DiskScan(self._look)
        self._on_disk: Mapping[str, Sequence[int]] = {}  # at the last look
        self._files: dict[tuple[str, int], Fingerprint] = {}  # of refused versions, at the last look
        self._passes: dict[str, asyncio.Task[None]] = {}  # of the poll, by model
        self._polling: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._failure = ""  # of the last poll, which is logged once

    def begin(self) -> None:
        """Begin, in threads, what `start` is going to do; the rest of the service can be imported meanwhile."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="begin")
        self._prepared = executor.submit(self._prepare, is_beginning=True)
        executor.shutdown(wait=False)

    def give_up(self) -> None:
        """Wait no longer for what was begun, if the start never came to it: the process is to end."""
        if self._prepared is not None and not self._prepared.done():
            abandon(self._prepared)
        self._loader.forget_begun()

    def _prepare(self, *, is_beginning: bool = False) -> None:
        """Read what is declared and make the state folder; begin to load the first models, as many as there are cores.

        Raises:
            ServiceError: the start cannot be.
        """
        self.declared.start()
        self.state.make()
        if not is_beginning:
            return
        self._on_disk, _, self.held_back, self.policies = self._look()
        for name in list(self._on_disk)[: self._loader.side_by_side]:
            for version in self._missing(name)[:1]:
                self._begun[name, version] = self._fingerprint(name, version)
                self._loader.begin(name, version)

    async def start(self) -> None:
        """Load what is wanted of every model, and poll for changes from then on.

        A model without a version that can be loaded and gives its golden answers does not take the others down.

        Raises:
            StartError: no model can be served, or one cannot and the start is strict.
        """
        try:
            await (asyncio.to_thread(self._prepare) if self._prepared is None else asyncio.wrap_future(self._prepared))
            await self._load_all()
        except BaseException as err:
            self._registry.close(str(err))
            await self.stop()
            raise
        self._is_started = True
        for name, version in self.refusals:  # where the start fails, its error holds the reason
            self._log_refusal(name, version)
        gc.collect()  # a hundred models are a million objects: gone through once now, and not while requests wait
        self._registry.open()
        self._loader.prove_rest(self._registry.tell_change)
        self._polling = asyncio.create_task(self._poll())

    def state_of(self, name: str) -> ModelState:
        """Return what holds for a model: what was decided about it, and what is declared in its place."""
        return self.declared.applied(name, self.state.of(name))

    def change_of(self, name: str, version: int) -> str | None:
        """Return what became of the folder of a version in memory; None: it is as it was."""
        return self._folders.reasons.get((name, version))

    def poll_now(self) -> None:
        """Look at the disk and at what was decided soon, whenever the next poll would be."""
        self._wake.set()

    async def stop(self) -> None:
        """Stop polling, answer the requests that wait, refuse new ones, and end every engine's thread."""
        self._registry.close()
        going_on = [*self._passes.values(), *self.loading.values(), *([self._polling] if self._polling else [])]
        for task in going_on:
            task.cancel()
        await asyncio.gather(*going_on, return_exceptions=True)
        await self._loader.unload_all()

    async def reconcile(self, name: str, version: int | None = None, *, again: bool = False) -> None:
        """Bring one model in step; returns when what is wanted now has been loaded or refused.

        Args:
            name: the model, known or not.
            version: wait for no other; None waits for all that are wanted.
            again: also try versions that were refused before and whose files are unchanged.
        """
        if again:
            self.refusals = {key: refusal for key, refusal in self.refusals.items() if key[0] != name}
        self.follow(name)  # what is loaded need not wait for a disk
        await self.look()
        await self._load_missing(name, version)

    async def look(self) -> Mapping[str, Sequence[int]]:
        """Return the versions of each model that are on disk now; the event loop goes on meanwhile.

        Raises:
            ArtifactInvalid: the models folder is not one that can be read, at the start.
            NotReady: the same, later.
        """
        try:
            on_disk, files, self.held_back, self.policies = await self._disk.look()
        except ArtifactInvalid as err:
            if not self._is_started:
                raise
            reason = getattr(err.__cause__, "strerror", None) or err
            raise NotReady(
                f"models folder {self.repository.root} cannot be read: {reason}; what serves goes on"
            ) from err
        self._on_disk = on_disk
        self._files.update(files)
        return on_disk

    def follow(self, name: str, fresh: Model | None = None) -> None:
        """Move the pointers of one model to what is decided, as far as that is loaded, and unload what nothing wants.

        Never waits, so that no load of this model or another one holds it up.

        Args:
            name: the model.
            fresh: a version that has just been loaded.
        """
        choice, table = self._choice(name), self._registry.tables.get(name)
        loaded = dict(table.loaded) if table else {}
        if fresh is not None:
            loaded[fresh.version] = fresh
        state, lost = choice.state, self._lost(name)
        latest = choice.latest(loaded, lost)
        if state.is_unloaded or latest is None:
            self._registry.shadows.follow(name, None, {})
            self._replace(name, None)
            if state.is_unloaded:
                self._served.set_latest(name, None)
        else:
            if table is None or latest != table.latest:
                self._note_move(name, latest, loaded.get(latest))
            self._registry.shadows.follow(name, state.shadow, loaded)
            labels = choice.labels(table, loaded, lost)
            keep = choice.wanted() | {latest, *labels.values(), *self._warm.get(name, [])}
            kept = {version: model for version, model in loaded.items() if version in keep}
            self._replace(name, VersionTable(name, latest, labels, kept, lost))
        table = self._registry.tables.get(name)
        if fresh is not None and (table is None or table.loaded.get(fresh.version) is not fresh):
            self._loader.unload(fresh)

    def previous(self, name: str) -> int | None:
        """Return the version that `latest` pointed at before, else the next older one at the last look; None without.

        Versions rolled back since the last promote are passed over: a second rollback goes a step further back.
        """
        table = self._registry.tables.get(name)
        left = self.state_of(name).left_behind(LATEST)
        warm = [version for version in self._warm.get(name, []) if version not in left]
        if table is None or warm:
            return warm[-1] if warm else None
        passed_over = left | {v for other, v in self.held_back if other == name}
        older = (v for v in self._on_disk.get(name, ()) if v < table.latest and v not in passed_over)
        return max(older, default=None)

    async def _load_all(self) -> None:
        await self.look()
        if not self._on_disk:
            raise ArtifactInvalid(
                f"{self.repository.root} holds no <model>/<version>/model.onnx, nor a model.onnx; export a model "
                "there, or set --models-dir"
            )
        names = list(dict.fromkeys([*self._served.models(), *self._in_turn(list(self._on_disk))]))
        left = iter(names)

        async def load_some() -> None:
            for name in left:
                await self._load_missing(name)

        loads = [asyncio.create_task(load_some()) for _ in range(self._loader.side_by_side)]
        try:
            await asyncio.gather(*loads)
        finally:
            for load in loads:
                load.cancel()
        self._loader.forget_begun()
        broken = [error for name in names if (error := self._why_not_served(name)) is not None]
        if broken and (self._settings.strict_start or not self._registry.tables):
            raise broken[0]

    def _in_turn(self, names: list[str]) -> list[str]:
        """Return names so that each worker begins elsewhere: what one has proved, the others prove in less time."""
        first = len(names) * self._place // max(1, self._settings.workers)
        return [*names[first:], *names[:first]]

    def _why_not_served(self, name: str) -> ServiceError | None:
        """Return what keeps a model on disk from answering in any version; None for any other name."""
        if name in self._registry.tables or self.state_of(name).is_unloaded:
            return None
        versions = self._on_disk.get(name, ())
        refused = [version for version in versions if (name, version) in self.refusals]
        if refused:
            return self.refusals[name, refused[-1]].error
        pin = self.declared.of(name).get(LATEST)
        if pin is not None and pin not in versions:
            return ArtifactInvalid(f"version {pin}, which is declared, is not there; there are {list(versions)}")
        held = [version for version in versions if (name, version) in self.held_back]
        if not held:
            return None
        reason = self.held_back[name, held[-1]]
        return ArtifactInvalid(f"{self.repository.folder(name, held[-1])} is not promoted: {reason}")

    async def _poll(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.poll_seconds or None)
            self._wake.clear()
            try:
                await asyncio.to_thread(self.declared.look)
                for name in list(self._registry.tables):
                    self.follow(name)
                await self.look()
                for model, change in (await asyncio.to_thread(self._folders.look)).items():
                    self._folders.note(model, change)
                for name in sorted({*self._on_disk, *self._registry.tables}):
                    if name not in self._passes and self._missing(name):
                        self._passes[name] = task = asyncio.create_task(self._load_missing(name))
                        task.add_done_callback(functools.partial(self._end_pass, name))
                self._failure = ""
            except ServiceError as err:  # the disk can fail for a moment; what serves goes on
                if str(err) != self._failure:
                    self._failure = str(err)
                    _log.error("following the models failed: %s", err)
            except Exception:
                _log.exception("following the models failed")

    def _end_pass(self, name: str, task: asyncio.Task[None]) -> None:
        del self._passes[name]
        if not task.cancelled() and task.exception() is not None:
            _log.error("following the models failed: %s", task.exception(), exc_info=task.exception())

    def _look(self) -> tuple[dict[str, list[int]], dict[Key, Fingerprint], dict[Key, str], dict[str, VersionPolicy]]:
        """Look at the disk, in a thread: versions of each model, files of those refused, those held back, policies."""
        places = self.repository.places()
        models = {name: sorted(versions) for name, versions in places.items()}
        files = {
            (name, version): fingerprint(places[name][version])
            if version in places.get(name, ())
            else self._fingerprint(name, version)
            for name, version in list(self.refusals)
        }
        policies = self.repository.version_policies(places)
        return models, files, left_out(models, policies) | self.repository.held_back(places), policies

    async def _load_missing(self, name: str, version: int | None = None) -> None:
        """Load what is wanted of one model and not there, each once, and move its pointers after each.

        What is missing changes with a version that is loaded, not with one that is refused: of a thousand of these
        each costs the time of its own refusal.
        """
        tried: set[int] = set()
        self.follow(name)
        while missing := [other for other in self._missing(name, version) if other not in tried]:
            for other in missing:
                tried.add(other)
                await self._load(name, other)
                if (name, other) not in self.refusals:
                    break

    def _missing(self, name: str, only: int | None = None) -> list[int]:
        """Return the versions that are to be loaded, best first."""
        table = self._registry.tables.get(name)
        versions = self._choice(name).missing(table.loaded if table else {}, self._lost(name))
        return [v for v in versions if (only is None or v == only) and not self._is_refused(name, v)]

    def _choice(self, name: str) -> Choice:
        """Return what is known of a model for its versions to be chosen."""
        table = self._registry.tables.get(name)
        return Choice(
            self.state_of(name),
            self._on_disk.get(name, ()),
            {version for other, version in self.held_back if other == name},
            self.policies.get(name),
            table.latest if table else self._served.latest(name),  # in this worker or, while it has none, in the others
            is_declared=LATEST in self.declared.of(name),
            promotes_new=self._settings.promote_new,
        )

    def _lost(self, name: str) -> dict[int, str]:
        """Return why versions that this service serves cannot be loaded by this process."""
        refused = {version: refusal.error for (other, version), refusal in self.refusals.items() if other == name}
        return {version: str(error) for version, error in refused.items() if isinstance(error, VersionLost)}

    def _is_refused(self, name: str, version: int) -> bool:
        """Whether a version was refused, and its files are as they were then."""
        refusal = self.refusals.get((name, version))
        return refusal is not None and self._files.get((name, version), refusal.files) == refusal.files

    async def _load(self, name: str, version: int) -> None:
        """Load a version and move the pointers, or refuse it; waits for a load of it that is going on already.

        It goes on when the caller has gone.
        """
        key = (name, version)
        if key not in self.loading:
            self.loading[key] = asyncio.create_task(self._load_now(name, version))
            self.loading[key].add_done_callback(lambda _: self.loading.pop(key))
        await asyncio.shield(self.loading[key])

    async def _load_now(self, name: str, version: int) -> None:
        files = await asyncio.to_thread(self._fingerprint, name, version)
        if self._begun.pop((name, version), files) != files:
            self._loader.forget_begun(name, version)
        try:
            table = self._registry.tables.get(name)
            like = table.loaded.get(table.latest) if table is not None else None
            model = await self._loader.load(name, version, is_beside=self._is_started, like=like)
        except ServiceError as err:
            self._files[name, version] = files
            self._refuse(name, version, Refusal(type(err)(str(err)), files))  # without its frames: they hold a session
            if isinstance(err, VersionLost):  # which answers that it is, wherever a pointer leads to it
                self.follow(name)
            return
        self.refusals.pop((name, version), None)
        self._folders.keep(model, files)
        self.follow(name, model)

    def _refuse(self, name: str, version: int, refusal: Refusal) -> None:
        self.refusals[name, version] = refusal
        self._metrics.refused_versions.labels(name).inc()
        if self._is_started:
            self._log_refusal(name, version)

    def _log_refusal(self, name: str, version: int) -> None:
        reason = str(self.refusals[name, version].error)
        _log.error("version refused", extra={"model": name, "version": version, "reason": reason})

    def _note_move(self, name: str, latest: int, model: Model | None) -> None:
        """Keep the version that `latest` points at before it moves, for a rollback, and say that it does."""
        table = self._registry.tables.get(name)
        before = table.latest if table else None
        if before is not None:
            warm = [version for version in self._warm.get(name, []) if version not in (before, latest)]
            keep = self._settings.keep_warm
            self._warm[name] = [*warm, before][-keep:] if keep else []
        self._served.set_latest(name, latest)
        self._metrics.latest_version.labels(name).set(latest)
        accuracy = None if model is None else model.artifact.accuracy
        known = {} if accuracy is None else {"accuracy": accuracy}
        _log.info("latest moved", extra={"model": name, "from": before, "to": latest, **known})

    def _replace(self, name: str, table: VersionTable | None) -> None:
        """Change the table, and unload what is no longer in it."""
        before = self._registry.tables.get(name)
        if table == before:
            return
        self._registry.replace(name, table)
        kept = table.loaded if table else {}
        for version, model in (before.loaded if before else {}).items():
            if kept.get(version) is not model:
                self._folders.forget(model)
                self._loader.unload(model)

    def _fingerprint(self, name: str, version: int) -> Fingerprint:
        return fingerprint(self.repository.folder(name, version))
