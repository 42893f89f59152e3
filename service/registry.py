"""The models in memory: each version folder's engine and batcher, found by name.

Loads the newest version of every model in the repository and puts it through its golden answers by the same way that
requests take. A model that fails ends the start. Serves no HTTP.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from service.batcher import Batcher
from service.engine import Engine
from service.errors import ArtifactInvalid, DeviceLost, InvalidInput, ModelNotFound, NotReady, ServiceError
from service.metrics import Metrics
from service.repository import Artifact, Repository
from service.settings import Settings
from service.signature import ImageSpec

_log = logging.getLogger(__name__)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class Model:
    """A model that answers."""

    artifact: Artifact
    engine: Engine
    batcher: Batcher
    executor: ThreadPoolExecutor

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.artifact.name

    @property
    def version(self) -> int:
        """The version that answers."""
        return self.artifact.version

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names, index = class id."""
        return self.engine.labels

    @property
    def image(self) -> ImageSpec | None:
        """How a picture becomes a row."""
        return self.engine.image


class Registry:
    """The models of one application.

    Args:
        settings: where the models are, where they run, what they may hold.
        metrics: told of every load, batch and refusal.
        end_process: called when a device is lost, which only a new process can mend; asks this one to end.

    Attributes:
        ready: whether every model gave its golden answers and still can.
        reasons: why not, a sentence each.
    """

    def __init__(self, settings: Settings, metrics: Metrics, end_process: Callable[[], None] = _terminate) -> None:
        self.ready = False
        self.reasons: list[str] = ["the models are being loaded"]
        self._settings = settings
        self._end_process = end_process
        self._metrics = metrics
        self._models: dict[str, Model] = {}

    async def load(self) -> None:
        """Load the newest version of every model.

        Raises:
            StartError: there is no model, or one cannot be loaded or does not give its golden answers.
        """
        repository = Repository(self._settings.models_dir)
        names = repository.models()
        if not names:
            raise ArtifactInvalid(
                f"{repository.root} holds no <model>/<version>/model.onnx; export a model there, or set --models-dir"
            )
        try:
            for name in names:
                self._models[name] = await self._load(repository, name)
        except BaseException as err:
            self.reasons = [str(err)]
            await self.close()
            raise
        self.reasons = []
        self.ready = True
        self._metrics.ready.set(1)

    def get(self, name: str | None = None, version: int | None = None) -> Model:
        """Return a model; the name may be left out when there is only one.

        Raises:
            NotReady: no model has been loaded yet.
            InvalidInput: no name was given and there are several models.
            ModelNotFound: there is no such model, or another version of it is served.
        """
        if not self._models:
            raise NotReady("not ready: " + "; ".join(self.reasons))
        if name is None:
            if len(self._models) != 1:
                raise InvalidInput(f"there are several models, {sorted(self._models)}; name one with ?model=")
            name = next(iter(self._models))
        model = self._models.get(name)
        if model is None:
            raise ModelNotFound(f"model {name[:80]!r} is not served; there are {sorted(self._models)}")
        if version is not None and version != model.version:
            raise ModelNotFound(f"model {name!r} is served in version {model.version}, not {version}")
        return model

    def models(self) -> list[Model]:
        """The models that are served, by name."""
        return [self._models[name] for name in sorted(self._models)]

    async def close(self) -> None:
        """Answer what waits, refuse what comes, and end every engine's thread."""
        if self.ready:
            self.reasons = ["the service is shutting down"]
        self.ready = False
        self._metrics.ready.set(0)
        await asyncio.gather(*(self._drain(model) for model in self._models.values()))

    async def _drain(self, model: Model) -> None:
        """Answer what waits for a model, but no longer than the settings allow: a run that hangs must not keep us."""
        try:
            await asyncio.wait_for(model.batcher.close(), self._settings.drain_seconds)
        except TimeoutError:
            _log.error("model %r still ran after %g s and was left", model.name, self._settings.drain_seconds)
            model.executor.shutdown(wait=False, cancel_futures=True)
        else:
            model.executor.shutdown()

    async def _load(self, repository: Repository, name: str) -> Model:
        """Load one model in the thread that will own it, and ask it its golden questions through its batcher."""
        started = time.perf_counter()
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{name}")
        try:
            loop = asyncio.get_running_loop()
            artifact = await loop.run_in_executor(executor, repository.open, name)
            engine = await loop.run_in_executor(executor, self._load_engine, artifact)
            model = Model(artifact, engine, self._batcher(name, engine, executor), executor)
            answer = await model.batcher.infer(artifact.golden.inputs)
            artifact.golden.check(answer.outputs, engine.device.provider)
        except ServiceError as err:
            executor.shutdown()
            raise type(err)(f"model {name!r}: {err}") from err
        except BaseException:
            executor.shutdown()
            raise
        self._report(model, time.perf_counter() - started)
        return model

    def _load_engine(self, artifact: Artifact) -> Engine:
        settings = self._settings
        return Engine.load(
            artifact,
            provider=settings.provider,
            threads=settings.threads,
            cores=max(1, len(os.sched_getaffinity(0)) // settings.workers),
            buckets=settings.buckets,
            device_id=settings.cuda_device,
            tf32=settings.tf32,
        )

    def _batcher(self, name: str, engine: Engine, executor: ThreadPoolExecutor) -> Batcher:
        """A batcher that stays in the engine's own thread where the device demands it."""
        is_bound_to_thread = engine.device.provider == "cuda"
        batcher = Batcher(
            engine,
            max_queue_rows=self._settings.max_queue_rows,
            inline_seconds=0.0 if is_bound_to_thread else self._settings.inline_below_ms / 1000,
            executor=executor,
            observer=self._metrics.for_model(name),
            lost=self._device_lost,
        )
        self._metrics.queued_rows.labels(name).set_function(lambda: batcher.queued_rows)
        return batcher

    def _device_lost(self, err: DeviceLost) -> None:
        """Turn ready false and end the process: whoever watches over it starts one with a fresh device."""
        _log.critical("device lost: %s", err)
        self.ready = False
        self.reasons = [str(err)]
        self._metrics.ready.set(0)
        self._end_process()

    def _report(self, model: Model, seconds: float) -> None:
        name, engine, metrics = model.name, model.engine, self._metrics
        metrics.model_info.labels(name, str(model.version), model.artifact.sha256, engine.device.provider).set(1)
        metrics.device_fallback.labels(name).set(int(engine.device.fallback_reason is not None))
        metrics.batch_invariant.labels(name).set(int(engine.batch_invariant))
        metrics.batch_deviation.labels(name).set(engine.largest_deviation)
        metrics.golden_deviation.labels(name).set(max(engine.deviations.values(), default=0.0))
        metrics.load_seconds.labels(name).set(seconds)
        for bucket, expected in engine.bucket_seconds.items():
            metrics.bucket_seconds.labels(name, str(bucket)).set(expected)
