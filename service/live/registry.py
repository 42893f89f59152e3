"""The models in memory, found by name and by version or label, and whether they are ready.

What answers to a name is one table, which is replaced whole (`VersionTable`). Which versions are in it is decided by
`reconciler`. Serves no HTTP.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping

from ..errors import InvalidInput, ModelNotFound, NotReady, ServiceError
from ..metrics import Metrics
from .model import Model
from .shadow import Shadows
from .versions import VersionTable

_log = logging.getLogger(__name__)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Registry:
    """The models of one application; not ready until `open`.

    Args:
        metrics: show whether it is ready.
        shadows: candidates that get a copy of live inputs.
        end_process: ends this process, where only a new one can help.

    Attributes:
        ready: whether every model gave its golden answers and still can, so that requests are answered.
        is_leaving: whether the service is about to end: it still answers requests, and shall be sent no more.
        reasons: why not, a sentence each.
        shadows: as given.
        changed: called after any label has moved, any version was added or removed, or answers in larger batches.
        why_not_served: gives the reason why a model on disk answers in no version; None for any other name.
    """

    def __init__(self, metrics: Metrics, shadows: Shadows, end_process: Callable[[], None] = _terminate) -> None:
        self.ready = False
        self.is_leaving = False
        self.reasons: list[str] = ["the models are being loaded"]
        self.shadows = shadows
        self.changed: list[Callable[[], None]] = []
        self.why_not_served: Callable[[str], ServiceError | None] = lambda _: None
        self._metrics = metrics
        self._end_process = end_process
        self._tables: dict[str, VersionTable] = {}
        self._doubts: dict[str, str] = {}
        self._is_closed = False

    @property
    def wants_requests(self) -> bool:
        """Whether requests shall be sent here: what ready says, at every door."""
        return self.ready and not self.is_leaving

    def check_wanted(self) -> None:
        """Let the question pass whether this service, or a model of it, is ready.

        Raises:
            NotReady: with the reasons.
        """
        self._check_ready()
        if self.is_leaving:
            raise NotReady("not ready: the service is ending, and answers only what is sent to it nevertheless")

    def _check_ready(self) -> None:
        """Let a request pass that needs a model."""
        if not self.ready:
            raise NotReady(f"not ready: {'; '.join(self.reasons)}")

    def get(self, name: str | None = None, version: int | None = None, label: str | None = None) -> Model:
        """Return what answers to a name; it may be left out when there is only one model.

        Args:
            name: of the model.
            version: one of those that are served; None leaves it to the label.
            label: one that points at a version; None means `latest`.

        Raises:
            NotReady: the models are not proved yet, or cannot answer any more, or there is none, or this one
                answers in no version.
            InvalidInput: no name was given and there are several models.
            ModelNotFound: there is no such model, version or label.
        """
        self._check_ready()
        if not self._tables:
            raise NotReady("not ready: no model is loaded")
        if name is None:
            if len(self._tables) != 1:
                raise InvalidInput(f"there are several models, {sorted(self._tables)}; name one with ?model=")
            name = next(iter(self._tables))
        table = self._tables.get(name)
        if table is None and (reason := self.why_not_served(name)) is not None:
            raise NotReady(f"model {name!r} is not served: {reason}")
        if table is None:
            raise ModelNotFound(f"model {name[:80]!r} is not served; there are {sorted(self._tables)}")
        return table.choose(version, label)

    def models(self) -> list[Model]:
        """The version of each model that answers where none is named, by name; without models whose version is lost."""
        tables = [table for _, table in sorted(self._tables.items())]
        return [table.loaded[table.latest] for table in tables if table.latest in table.loaded]

    def all_versions(self) -> list[Model]:
        """Every version that answers, by name and number."""
        return [table.loaded[version] for _, table in sorted(self._tables.items()) for version in sorted(table.loaded)]

    async def others_have_counted(self) -> None:
        """Wait until other workers, if there are any, have counted what they have answered so far."""
        await self._metrics.others_have_counted()

    @property
    def tables(self) -> Mapping[str, VersionTable]:
        """The versions and labels of each model."""
        return self._tables

    def replace(self, name: str, table: VersionTable | None) -> None:
        """Put another table in the place of a model's; None takes the model out."""
        tables = {other: kept for other, kept in self._tables.items() if other != name}
        if table is not None:
            tables[name] = table
        self._tables = tables
        if table is None and self._doubts.get(name):
            self.doubt(name, None)
        self.tell_change()

    def tell_change(self) -> None:
        """Have whoever remembers something of the models look at them again."""
        for notify in self.changed:
            notify()

    def open(self) -> None:
        """Turn ready true: every model is loaded and gave its golden answers."""
        self._set_reasons(())

    def doubt(self, name: str, reason: str | None) -> None:
        """Turn ready false because of one model, or true again once no model is in doubt."""
        if self._is_closed:
            return
        if reason is None:
            self._doubts.pop(name, None)
        else:
            self._doubts[name] = reason
        self._set_reasons(self._doubts.values())

    def leave(self) -> bool:
        """Turn ready false for those who ask for it, and go on answering; returns whether there is anything to answer.

        Where a process ends because it cannot answer any more, it has nothing to wait for.
        """
        if self._is_closed:
            return False
        self.is_leaving = True
        self._metrics.ready.set(0)
        return True

    def close(self, reason: str = "the service is shutting down") -> None:
        """Turn ready false for good; only the first reason counts."""
        if not self._is_closed:
            self._is_closed = True
            self._set_reasons([reason])

    def end(self, reason: str) -> None:
        """Turn ready false for good and end the process, since only a new one can help."""
        _log.critical("the process ends: %s", reason)
        self.close(reason)
        self._end_process()

    def _set_reasons(self, reasons: Iterable[str]) -> None:
        self.reasons = list(reasons)
        self.ready = not self.reasons
        self._metrics.ready.set(int(self.wants_requests))

    def running_batches(self) -> dict[str, int]:
        """The number of the batch that each version runs in its thread now; those whose thread is idle are left out."""
        running = {f"{model.name}/{model.version}": model.batcher.running_batch for model in self.all_versions()}
        return {name: number for name, number in running.items() if number is not None}
