"""One version of a model, from its folder to something that answers, and back.

A version is loaded beside those that serve, in a thread of its own, and its golden inputs take the way that requests
take. Which versions are wanted is decided by `reconciler`.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import onnxruntime

from foldserve.format.task import CLASSIFY

from ..artifacts.golden import check_golden
from ..artifacts.repository import Artifact, Repository
from ..batching.batcher import Batcher
from ..batching.request import GOLDEN
from ..cores import available_cores
from ..engines.engine import Engine
from ..engines.measured import Measured
from ..engines.structure import structure_of
from ..engines.throttle import throttled
from ..errors import ArtifactInvalid, DeviceLost, ServiceError
from ..memory_limit import queue_rows
from ..metrics import Metrics, PredictionMetrics
from ..processes.abandoned import abandon
from ..processes.workers import Workers
from ..settings import Settings
from .memory import give_back
from .model import UNVERIFIED, Model
from .opening import Opener, Read, version_lost
from .predictions import Predictions, is_countable
from .served import ServedVersions
from .statistics import Statistics
from .turns import Turns

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 2.0  # that a load waits for another one
_PROGRESS_SECONDS = 5.0  # between two lines about a load
_LARGE_BYTES = 1024 * 1024  # of a model file: what reading it leaves in memory is worth giving back
_SHARE_OF_MEMORY = 8  # a file that is a smaller part of what is free has room in memory for sure
_PROOF_SECONDS = 0.02  # in which golden answers go the way of requests; all of them were proved before


class _Begun:
    """A load that goes on in a thread of its own, one piece of work after the other.

    Args:
        name: of the model.

    Attributes:
        executor: the thread, in which the engine runs later.
        options: of the runs in it, by which they can be ended.
        work: the piece that was submitted last.
    """

    def __init__(self, name: str) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{name}")
        self.options = onnxruntime.RunOptions()
        self.work: Future[Any] = Future()

    def submit(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Do a piece of work in the thread."""
        self.work = self.executor.submit(work, *arguments)

    def give_up(self) -> None:
        """End what runs, as far as that can be ended, and wait for nothing."""
        self.options.terminate, self.options.log_severity_level = True, 4  # onnxruntime would report it as an error
        abandon(self.work)
        self.executor.shutdown(wait=False, cancel_futures=True)


class Loader:
    """Loads and unloads versions.

    Args:
        repository: where they are.
        settings: where they run and what they may hold.
        metrics: of every load, batch and refusal.
        served: what was served as each version before; nothing else may be.
        lost: called once when a device no longer answers.
        workers: share what was measured and counted; None when there is only one.

    Attributes:
        side_by_side: how many versions are loaded at a time; of these, one is measured.
    """

    def __init__(
        self,
        repository: Repository,
        settings: Settings,
        metrics: Metrics,
        served: ServedVersions,
        lost: Callable[[DeviceLost], None],
        workers: Workers | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._served = served
        self._lost = lost
        self._folder = None if workers is None else workers.folder / "statistics"
        self.side_by_side = max(1, available_cores() // settings.workers)
        self._turns = Turns(self.side_by_side)
        self._opener = Opener(repository, settings, served, self._references, workers)
        self._begun: dict[tuple[str, int], _Begun] = {}
        self._rest: asyncio.Task[None] | None = None
        self._is_ending = False
        self._names: set[str] = set()  # of all models that were ever loaded
        self._loaded: dict[Model, asyncio.Task[None] | None] = {}  # with the task that unloads it
        metrics.before_reading += [self._count_waiting, self._count_statistics]

    async def load(self, name: str, version: int, *, is_beside: bool = False, like: Model | None = None) -> Model:
        """Return a version that has given its golden answers through its batcher.

        Args:
            name: of the model.
            version: of it.
            is_beside: whether requests are answered meanwhile, to which the load gives way.
            like: the version that serves, from whose measurements this one may take over what holds for both.

        Raises:
            ServiceError: it is not what its manifest says, cannot be loaded or answers wrongly; nothing of it is kept.
        """
        async with self._turns.load():
            started = time.perf_counter()
            progress = asyncio.create_task(_report_progress(name, version, started))
            try:
                model = await self._load_within_limit(name, version, is_beside, like)
            except ServiceError as err:
                raise type(err)(f"model {name!r}: {err}") from err
            finally:
                progress.cancel()
        self._names.add(name)
        self._report(model, time.perf_counter() - started)
        return model

    def begin(self, name: str, version: int) -> None:
        """Begin to load a version that is going to be asked for, without a running loop.

        It is read now, and opened and proved where it was measured before; of the first of all others the fastest graph
        is chosen. What else there is to measure would be wrong beside whatever else goes on.
        """
        is_first = not self._begun
        self._begun[name, version] = begun = _Begun(name)
        begun.submit(self._opener.read, name, version, begun.options, is_first)

    def forget_begun(self, name: str | None = None, version: int = 0) -> None:
        """Give up what was begun and is not going to be asked for: one version, or all of them."""
        for key in [(name, version)] if name is not None else list(self._begun):
            begun = self._begun.pop(key, None)
            if begun is not None:
                begun.give_up()

    async def _load_within_limit(self, name: str, version: int, is_beside: bool, like: Model | None) -> Model:
        """Load a version in a thread that is given up when it takes too long; what fails leaves nothing behind."""
        begun = self._begun.pop((name, version), None)
        if begun is None:
            begun = _Begun(name)
            begun.submit(self._opener.read, name, version)
        limit = self._settings.load_seconds
        try:
            async with asyncio.timeout(limit):
                read: Read = await asyncio.wrap_future(begun.work)
                if read.engine is not None:
                    return await self._proved(read.artifact, read.engine, begun.executor)
            async with self._turn_of(read, is_beside=is_beside), asyncio.timeout(limit):
                begun.submit(self._opener.open_engine, read, is_beside, like, begun.options)
                artifact, engine = await asyncio.wrap_future(begun.work)
                return await self._proved(artifact, engine, begun.executor)
        except ServiceError:
            begun.executor.shutdown(wait=False)
            raise
        except BaseException as err:
            begun.give_up()
            if not isinstance(err, TimeoutError):
                raise
            self._metrics.abandoned_loads.labels(name).inc()
            raise ArtifactInvalid(
                f"version {version} was not loaded and proved within {limit:g} s and is given up; "
                "--load-seconds allows more"
            ) from None

    def _turn_of(self, read: Read, *, is_beside: bool) -> contextlib.AbstractAsyncContextManager[None]:
        """Wait until a version may be opened and proved: alone where it is measured, else beside others like it."""
        is_measured = read.known is not None or read.proved is not None or read.structure in self._references()
        return self._turns.prove() if is_measured and not is_beside else self._turns.measure()

    def _references(self, like: Model | None = None) -> dict[str, Measured]:
        """Return what was measured of the models in memory, by structure."""
        serving = [*self._loaded, *([like] if like is not None else [])]  # the last of its structure counts
        return {model.engine.structure: model.engine.measured for model in serving if model.engine.structure}

    async def _proved(self, artifact: Artifact, engine: Engine, executor: ThreadPoolExecutor) -> Model:
        """Return a version whose golden answers have come by the way that requests take."""
        name = artifact.name
        folder = self._folder and self._folder / name / str(artifact.version)
        metrics = self._metrics.for_version(name, artifact.version)
        predictions = self._predictions(name, artifact.version, engine)
        most_rows = max(engine.buckets[-1], self._settings.buckets[-1])  # it may answer in larger batches soon
        statistics = Statistics(most_rows, metrics, folder, predictions)
        try:
            model = Model(artifact, engine, self._batcher(engine, executor, statistics), executor, statistics)
            await _prove(model)
            served = self._served.claim(name, artifact.version, artifact.sha256)
            if served != artifact.sha256:
                raise version_lost(artifact, served)
        except BaseException:
            statistics.close()
            raise
        self._loaded[model] = None  # before another load measures, which may be of the same structure
        return model

    def unload(self, model: Model) -> asyncio.Task[None]:
        """Begin to unload a version: it answers the requests that chose it, and frees what it holds."""
        task = self._loaded.get(model) or asyncio.create_task(self._unload(model))
        self._loaded[model] = task
        return task

    def prove_rest(self, changed: Callable[[], None]) -> None:
        """Begin to prove the batch sizes that loads have left pending, one model after the other.

        Args:
            changed: called when a model answers in larger batches than before.
        """
        self._rest = asyncio.create_task(self._prove_rest(changed))

    async def _prove_rest(self, changed: Callable[[], None]) -> None:
        for model in list(self._loaded):
            try:
                if not model.engine.structure:
                    path = model.artifact.model_path
                    model.engine.structure = await asyncio.to_thread(structure_of, path)
                await self._prove_buckets(model, changed)
            except ServiceError as err:
                fields = {"model": model.name, "version": model.version, "buckets": model.engine.buckets}
                _log.warning("no larger batches are proved: %s", err, extra=fields)
            except Exception:
                _log.exception("proving larger batches failed", extra={"model": model.name})

    async def _prove_buckets(self, model: Model, changed: Callable[[], None]) -> None:
        """Have a process of its own find the sizes that are worth having, then prove each of them here."""
        engine, artifact = model.engine, model.artifact
        is_known = not engine.pending
        if not (is_known or engine.is_planned):
            measured = await asyncio.to_thread(self._opener.measured, artifact)
            if measured is None:
                return
            engine.plan(measured.seconds)
        while engine.pending and self._loaded.get(model, model) is None:
            before = engine.buckets
            async with self._turns.measure():
                await asyncio.to_thread(_prove_next, engine)
            if engine.buckets != before:
                model.batcher.take_buckets()
                self._report_buckets(model)
                changed()
        if not engine.pending:
            if not is_known:
                await asyncio.to_thread(self._opener.remember, artifact, engine)
            _log.info("all batch sizes proved", extra={"model": model.name, "buckets": engine.buckets})

    async def unload_all(self) -> None:
        """Unload everything that was loaded, and wait until all of it is gone; the process ends then."""
        self._is_ending = True
        if self._rest is not None:
            self._rest.cancel()
        self.forget_begun()
        self._opener.stop()
        await asyncio.gather(*map(self.unload, list(self._loaded)))

    async def _unload(self, model: Model) -> None:
        """Drain and free a version, no later than the settings allow: a run that hangs must not keep the process."""
        try:
            await asyncio.wait_for(_drain(model), self._settings.drain_seconds)
        except TimeoutError:
            seconds = self._settings.drain_seconds
            _log.error("model %r version %d still ran after %g s and was left", model.name, model.version, seconds)
            model.executor.shutdown(wait=False, cancel_futures=True)
        else:
            await asyncio.to_thread(model.executor.shutdown)
        del self._loaded[model]
        model.statistics.close()
        self._metrics.forget_model(*_identity(model))
        _log.info("unloaded", extra={"model": model.name, "version": model.version})
        del model  # the last reference, or its memory could not be given back
        if not self._is_ending:
            await asyncio.to_thread(give_back)

    def _predictions(self, name: str, version: int, engine: Engine) -> Predictions | None:
        """What counts the classes and confidences of a version that classifies; None where it does not."""
        outputs = {spec.name: spec for spec in engine.outputs}
        if engine.task.name != CLASSIFY or not is_countable(outputs):
            return None
        classes = outputs["probabilities"].shape[1]
        return Predictions(PredictionMetrics(self._metrics, name, version), engine.class_names, classes or 0)

    def _batcher(self, engine: Engine, executor: ThreadPoolExecutor, statistics: Statistics) -> Batcher:
        """A batcher that stays in the engine's own thread where the device demands it."""
        is_bound_to_thread = engine.device.provider == "cuda"
        return Batcher(
            engine,
            max_queue_rows=queue_rows(self._settings, sum(spec.row_bytes for spec in engine.inputs)),
            inline_seconds=0.0 if is_bound_to_thread or engine.is_free else self._settings.inline_below_ms / 1000,
            executor=executor,
            observer=statistics,
            lost=self._lost,
            is_free=engine.is_free,
        )

    def _count_waiting(self) -> None:
        for name in self._names:
            rows = sum(model.batcher.queued_rows for model in self._loaded if model.name == name)
            self._metrics.queued_rows.labels(name).set(rows)

    def _count_statistics(self) -> None:
        for model in self._loaded:
            model.statistics.count()

    def _report(self, model: Model, seconds: float) -> None:
        name, engine, metrics = model.name, model.engine, self._metrics
        metrics.model_info.labels(*_identity(model)).set(1)
        metrics.device_fallback.labels(name).set(int(engine.device.fallback_reason is not None))
        metrics.batch_invariant.labels(name).set(int(engine.batch_invariant))
        metrics.batch_deviation_ratio.labels(name).set(engine.largest_deviation)
        deviation = max(engine.deviations.values(), default=0.0) if model.is_verified else math.nan
        metrics.golden_deviation_ratio.labels(name).set(deviation)
        metrics.load_seconds.labels(name).set(seconds)
        self._report_buckets(model)
        fields = {"model": name, "version": model.version, "seconds": round(seconds, 3)}
        _log.info("loaded", extra={**fields, "verified": model.is_verified})
        if not model.is_verified:
            _log.warning("model %r version %d is served unverified: %s", name, model.version, UNVERIFIED)

    def _report_buckets(self, model: Model) -> None:
        for bucket, expected in model.engine.bucket_seconds.items():
            self._metrics.bucket_seconds.labels(model.name, str(bucket)).set(expected)


def _prove_next(engine: Engine) -> None:
    """Try the next batch size, pausing between its runs."""
    with throttled():
        engine.prove_next()


async def _report_progress(name: str, version: int, started: float) -> None:
    """Say from time to time that a load goes on."""
    while True:
        await asyncio.sleep(_PROGRESS_SECONDS)
        seconds = round(time.perf_counter() - started)
        _log.info("still loading", extra={"model": name, "version": version, "seconds": seconds})


async def _prove(model: Model) -> None:
    """Check the golden answers, by the way that requests take; of a model whose runs are long, the first ones."""
    golden, engine = model.engine.golden, model.engine
    row_seconds = engine.bucket_seconds[engine.buckets[0]] / engine.buckets[0]
    rows = max(1, min(golden.rows, int(_PROOF_SECONDS / row_seconds)))
    answer = await model.batcher.infer({name: array[:rows] for name, array in golden.inputs.items()}, source=GOLDEN)
    expected = replace(golden, outputs={name: array[:rows] for name, array in golden.outputs.items()})
    check_golden(expected, answer.outputs, engine.device.provider)


async def _drain(model: Model) -> None:
    """Wait until no request uses a version and its batcher has answered what waits."""
    while model.users.count:
        model.users.gone.clear()
        await model.users.gone.wait()
    await model.batcher.close()


def _identity(model: Model) -> tuple[str, ...]:
    """The labels of `model_info`."""
    artifact, provider = model.artifact, model.engine.device.provider
    return model.name, str(model.version), artifact.sha256, provider, str(model.is_verified).lower()
