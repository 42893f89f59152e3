"""The models in memory, found by name and by version or label.

What answers to a name is one table that is replaced whole (`Versions`). Which versions are in it is for `reconciler` to
decide; how they get there is `loading`'s. Serves no HTTP.
"""

import logging
import os
import signal
from collections.abc import Callable, Mapping

from ..artifacts.repository import Repository
from ..engines.autotune import decide_alone
from ..errors import DeviceLost, InvalidInput, ModelNotFound, NotReady
from ..metrics import Metrics
from ..processes.workers import Workers
from ..settings import Settings
from .loading import Loader
from .model import Model
from .reconciler import Reconciler
from .shadow import Shadows
from .state import StateDir
from .versions import Versions

_log = logging.getLogger(__name__)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Registry:
    """The models of one application.

    Args:
        settings: where the models are, where they run, what they may hold.
        metrics: told of every load, batch and refusal.
        workers: shares with other processes what was measured; None when there are none.
        end_process: called when a device is lost, which only a new process can mend; asks this one to end.

    Attributes:
        ready: whether every model gave its golden answers and still can.
        reasons: why not, a sentence each.
        shadows: candidates that get a copy of live inputs.
        reconciler: loads, unloads and moves pointers.
        changed: called after any pointer has moved or any version has come or gone.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        workers: Workers | None = None,
        end_process: Callable[[], None] = _terminate,
    ) -> None:
        self.ready = False
        self.reasons: list[str] = ["the models are being loaded"]
        self.changed: list[Callable[[], None]] = []
        self._end_process = end_process
        self._metrics = metrics
        self._tables: dict[str, Versions] = {}
        repository = Repository(settings.models_dir, allow_unverified=settings.allow_unverified)
        decide = decide_alone if workers is None else workers.decide
        folder = None if workers is None else workers.folder
        loader = Loader(repository, settings, metrics, self._device_lost, decide, folder)
        self.shadows = Shadows(settings.state_dir)
        self.reconciler = Reconciler(repository, StateDir(settings.state_dir), loader, self, settings, metrics)
        self._doubts: dict[str, str] = {}
        self._is_closing = False

    async def load(self) -> None:
        """Load what is wanted of every model, and follow the changes from then on.

        Raises:
            StartError: there is no model, or one has no version that can be loaded and gives its golden answers.
        """
        try:
            await self.reconciler.start()
        except BaseException as err:
            self.reasons = [str(err)]
            await self.close()
            raise
        self.reasons = []
        self.ready = True
        self._metrics.ready.set(1)

    def get(self, name: str | None = None, version: int | None = None, label: str | None = None) -> Model:
        """Return what answers to a name; it may be left out when there is only one model.

        Args:
            name: of the model.
            version: one of those that are served; None leaves it to the label.
            label: one that points at a version; None means `latest`.

        Raises:
            NotReady: no model has been loaded yet.
            InvalidInput: no name was given and there are several models.
            ModelNotFound: there is no such model, version or label.
        """
        if not self._tables:
            raise NotReady("not ready: " + "; ".join(self.reasons))
        if name is None:
            if len(self._tables) != 1:
                raise InvalidInput(f"there are several models, {sorted(self._tables)}; name one with ?model=")
            name = next(iter(self._tables))
        table = self._tables.get(name)
        if table is None:
            raise ModelNotFound(f"model {name[:80]!r} is not served; there are {sorted(self._tables)}")
        return table.choose(version, label)

    def models(self) -> list[Model]:
        """The version of each model that answers where none is named, by name."""
        return [self._tables[name].choose() for name in sorted(self._tables)]

    def all_versions(self) -> list[Model]:
        """Every version that answers, by name and number."""
        return [table.loaded[version] for _, table in sorted(self._tables.items()) for version in sorted(table.loaded)]

    @property
    def tables(self) -> Mapping[str, Versions]:
        """Versions and labels of each model."""
        return self._tables

    def replace(self, name: str, versions: Versions | None) -> None:
        """Put another table in the place of a model's; None takes the model out."""
        tables = {other: table for other, table in self._tables.items() if other != name}
        if versions is not None:
            tables[name] = versions
        self._tables = tables
        if versions is None and self._doubts.get(name):
            self.doubt(name, None)
        for told in self.changed:
            told()

    def doubt(self, name: str, reason: str | None) -> None:
        """Turn ready false because of one model, or true again once no model is in doubt."""
        if self._is_closing:
            return
        if reason is None:
            self._doubts.pop(name, None)
        else:
            self._doubts[name] = reason
        self.reasons = list(self._doubts.values())
        self.ready = not self._doubts
        self._metrics.ready.set(int(self.ready))

    def end(self, reason: str) -> None:
        """End the process, since only a new one can help."""
        _log.critical("the process ends: %s", reason)
        self._end_process()

    def running_batches(self) -> dict[str, int]:
        """The number of the batch that each version runs in its thread now; those whose thread is idle are left out."""
        running = {f"{model.name}/{model.version}": model.batcher.running_batch for model in self.all_versions()}
        return {name: number for name, number in running.items() if number is not None}

    async def close(self) -> None:
        """Answer what waits, refuse what comes, and end every engine's thread."""
        if self.ready:
            self.reasons = ["the service is shutting down"]
        self._is_closing = True
        self.ready = False
        self._metrics.ready.set(0)
        await self.reconciler.stop(self.all_versions())

    def _device_lost(self, err: DeviceLost) -> None:
        """Turn ready false and end the process: whoever watches over it starts one with a fresh device."""
        _log.critical("device lost: %s", err)
        self.ready = False
        self.reasons = [str(err)]
        self._metrics.ready.set(0)
        self._end_process()
