"""The models of a folder in memory, without HTTP: loaded, kept in step by hand, and drained at the end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foldserve.service.live.control import ModelControl
from foldserve.service.live.reconciler import Reconciler
from foldserve.service.live.registry import Registry
from foldserve.service.live.shadow import Shadows
from foldserve.service.metrics import Metrics
from foldserve.service.settings import Settings


@dataclass
class LiveModels:
    """What one process holds; `ended` notes each time that it was told to end."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    ended: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        shadows = Shadows(self.settings.state_dir)
        self.registry = Registry(self.metrics, shadows, end_process=lambda: self.ended.append(True))
        self.reconciler = Reconciler(self.registry, self.settings, self.metrics)
        self.control = ModelControl(self.registry, self.reconciler, promotes_new=self.settings.promote_new)

    def value(self, metric: str, **labels: str) -> float | None:
        """Return a metric's value."""
        return self.metrics.registry.get_sample_value(f"foldserve_{metric}", labels)


@asynccontextmanager
async def loaded(root: Path, **settings: Any) -> AsyncIterator[LiveModels]:
    """Load the models under `root`; the disk is looked at when a test says so."""
    models = LiveModels(Settings(models_dir=root, **{"provider": "cpu", "poll_seconds": 0, **settings}))
    await models.reconciler.start()
    try:
        yield models
    finally:
        await models.reconciler.stop()
