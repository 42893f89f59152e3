"""What holds the models of one process: made before the application, which it knows nothing of."""

from dataclasses import dataclass

from ..metrics import Metrics
from ..processes.workers import Workers
from ..settings import Settings
from .reconciler import Reconciler
from .registry import Registry
from .shadow import Shadows


@dataclass(frozen=True, slots=True)
class LiveModels:
    """The models in memory, what keeps them in step, and what counts.

    Attributes:
        metrics: of this process.
        registry: not ready until the reconciler has started.
        reconciler: not started.
        place: of this process among the workers, from 0.
    """

    metrics: Metrics
    registry: Registry
    reconciler: Reconciler
    place: int

    @classmethod
    def of(cls, settings: Settings, workers: Workers | None = None) -> "LiveModels":
        """Return those that the settings describe.

        Args:
            settings: every knob.
            workers: what this process shares with others that serve the same port; None when it is alone.
        """
        place = workers.join(settings.drain_seconds) if workers is not None else 0
        metrics = Metrics(workers.totals() if workers is not None else None)
        registry = Registry(metrics, Shadows(settings.state_dir))
        return cls(metrics, registry, Reconciler(registry, settings, metrics, workers, place), place)
