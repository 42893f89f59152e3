"""Runs the golden inputs through every idle model again: ready is a statement about now, not about the start.

They go through the batcher like any request. Wrong or missing answers turn ready false with the reason; after several
in a row the process ends, since only a new one can help.
"""

import asyncio
import logging

from ..artifacts.golden import check_golden
from ..batching.request import CANARY
from ..errors import NotReady, Overloaded, ServiceError
from .model import Model
from .registry import Registry

_log = logging.getLogger(__name__)

_FAILURES = 3
_SHARE = 1000  # a canary may take one part in so many of a core's time


class Canary:
    """The checks, and how often each model failed them.

    Args:
        registry: holds the models, and is told which of them fail.
        seconds: between two checks, longer where one costs more than a thousandth of that; 0 disables them.
    """

    def __init__(self, registry: Registry, seconds: float) -> None:
        self._registry = registry
        self._seconds = seconds
        self._failures: dict[str, int] = {}
        self._batches: dict[str, int] = {}

    async def run(self) -> None:
        """Check until cancelled."""
        pause = self._seconds
        while pause > 0:
            await asyncio.sleep(pause)
            spent = sum([await self.check(model) for model in self._registry.models()])
            pause = max(self._seconds, _SHARE * spent)

    async def check(self, model: Model) -> float:
        """Check one model, unless it has answered requests since its last check; returns the seconds that it ran.

        Runs that failed are no answers: under a load of them a model is checked all the same.
        """
        answered = model.batcher.answered_batches
        if self._batches.get(model.name) != answered and not self._failures.get(model.name):
            self._batches[model.name] = answered
            return 0.0
        try:
            answer = await model.batcher.infer(model.engine.golden.inputs, source=CANARY)
            check_golden(model.engine.golden, answer.outputs, model.engine.device.provider)
        except (NotReady, Overloaded):  # it is being unloaded, or not idle after all
            return 0.0
        except ServiceError as err:
            self._failed(model, err)
            return 0.0
        else:
            if self._failures.pop(model.name, 0):
                _log.warning("model %r gives its golden answers again", model.name)
            self._registry.doubt(model.name, None)
        self._batches[model.name] = model.batcher.answered_batches
        return answer.infer_seconds

    def _failed(self, model: Model, err: ServiceError) -> None:
        failures = self._failures[model.name] = self._failures.get(model.name, 0) + 1
        reason = f"model {model.name!r} no longer gives its golden answers: {err}"
        _log.error("%s", reason, extra={"failures": failures})
        self._registry.doubt(model.name, reason)
        if failures == _FAILURES:
            self._registry.end(reason)
