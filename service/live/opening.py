"""A version from its files to an engine: read, checked, and run for the first time; work for threads.

Used by `loading`, which says when, and lets the golden answers take the way of requests.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnxruntime

from ..artifacts.repository import Artifact, Repository
from ..cores import available_cores
from ..engines.autotune import decide_alone
from ..engines.engine import Engine
from ..engines.load import choose_graph, load_engine
from ..engines.measured import Measured
from ..engines.measured_cache import MeasuredCache
from ..engines.providers import has_cuda
from ..engines.proving import Proving
from ..engines.runners import stoppable
from ..engines.structure import structure_of
from ..engines.throttle import changing_hands_quickly, throttled
from ..errors import ServiceError, VersionLost
from ..processes.workers import Workers
from ..settings import Settings
from .memory import available_bytes, give_back
from .model import Model
from .served import ServedVersions

_LARGE_BYTES = 1024 * 1024  # of a model file: what reading it leaves in memory is worth giving back
_SHARE_OF_MEMORY = 8  # a file that is a smaller part of what is free has room in memory for sure


@dataclass(frozen=True, slots=True)
class Read:
    """A version as it was read.

    Attributes:
        artifact: with its sealed file, unless there is an engine.
        content: digest of what decides how it answers.
        proved: what was measured where another worker has proved it.
        known: what was measured of it before.
        chosen: its fastest graph, where that is known already.
        engine: of it, where it need not be measured.
        structure: of its graph; empty where that was not looked at.
    """

    artifact: Artifact
    content: str
    proved: Measured | None
    known: Measured | None
    chosen: str | None = None
    engine: Engine | None = None
    structure: str = ""


class Opener:
    """Reads versions and makes their engines.

    Args:
        repository: where they are.
        settings: where they run and what they may hold.
        served: what was served as each version before; nothing else may be.
        references: returns what was measured of the models in memory, and of one more, by structure.
        workers: share what was measured; None when there is only one.
    """

    def __init__(
        self,
        repository: Repository,
        settings: Settings,
        served: ServedVersions,
        references: Callable[[Model | None], Mapping[str, Measured]],
        workers: Workers | None = None,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._served = served
        self._references = references
        self._decide = decide_alone if workers is None else workers.decide
        self._proving = Proving()
        options = {**self._options(), "provider": settings.provider, "specialise": settings.specialise}
        self._measured = MeasuredCache(settings.state_dir, options)
        self._proofs = MeasuredCache(None if workers is None else workers.folder, options)

    def stop(self) -> None:
        """End the processes that prove."""
        self._proving.stop()

    def remember(self, artifact: Artifact, engine: Engine) -> None:
        """Keep what was measured of a version for the next start."""
        self._measured.put(artifact.sha256, engine.measured)

    def measured(self, artifact: Artifact) -> Measured | None:
        """Return what a process of its own measures of a version in every batch size, for all workers once."""
        return Measured.from_json(self._decide(f"buckets-{artifact.sha256}", lambda: self._measure(artifact)))

    def open(self, name: str, version: int) -> Artifact:
        """Return a version after checking its files.

        Raises:
            VersionLost: they are not those that were served as this version.
        """
        served = self._served.digest(name, version)
        try:
            artifact = self._repository.open(name, version)
        except ServiceError as err:
            if served is None:
                raise
            raise VersionLost(f"what was served as version {version} (SHA-256 {served[:12]}) is lost: {err}") from err
        if served is not None and served != artifact.sha256:
            raise version_lost(artifact, served)
        return artifact

    def read(
        self, name: str, version: int, options: onnxruntime.RunOptions | None = None, is_first: bool = False
    ) -> Read:
        """Read and check a version's files.

        Args:
            name: of the model.
            version: of it.
            options: of the runs of its engine, which is made at once where it was measured before; None: it is not.
            is_first: whether its graph is chosen otherwise; the next ones may be of the same structure.
        """
        with contextlib.nullcontext() if options is None else changing_hands_quickly():
            return self._read_quickly(name, version, options, is_first=is_first)

    def _read_quickly(self, name: str, version: int, options: onnxruntime.RunOptions | None, *, is_first: bool) -> Read:
        artifact = self.open(name, version)
        content = _content_digest(artifact)
        proved = self._proofs.get(content, self._settings.buckets)
        known = self._measured.get(artifact.sha256, self._settings.buckets)
        read = Read(artifact, content, proved, known)
        if options is None:
            is_large = artifact.source.stat().st_size >= _LARGE_BYTES
            return read if is_large else replace(read, structure=structure_of(artifact.source))
        if known is None:
            return replace(read, chosen=self._choose_graph(artifact, options)) if is_first else read
        artifact, engine = self.open_engine(read, False, None, options)
        return replace(read, artifact=artifact, engine=engine)

    def _choose_graph(self, artifact: Artifact, options: onnxruntime.RunOptions) -> str | None:
        """Return the fastest graph of a version; None where it is run elsewhere first, on a GPU, or as it is."""
        settings = self._settings
        if not settings.specialise or settings.prove_above_bytes is not None or self._is_on_cuda():
            return None
        with stoppable(options):
            return choose_graph(artifact, settings.buckets)

    def _is_on_cuda(self) -> bool:
        return self._settings.provider != "cpu" and has_cuda()

    def open_engine(
        self, read: Read, is_beside: bool, like: Model | None, options: onnxruntime.RunOptions
    ) -> tuple[Artifact, Engine]:
        """Make the engine of a version that was read.

        Args:
            read: the version.
            is_beside: whether requests are answered meanwhile.
            like: the version that serves, from whose measurements this one may take over what holds for both.
            options: its runs end when they say so.
        """
        artifact, proved, known = read.artifact, read.proved, read.known
        assert artifact.sealed is not None
        size = artifact.source.stat().st_size
        try:
            measured = known or self._prove_elsewhere(artifact, is_beside, is_known=proved is not None)
            with throttled(is_needed=is_beside), stoppable(options):
                engine = self._engine_of(artifact, like, proved or measured, read, is_beside=is_beside)
        except ServiceError as err:  # which shall name the file, not the copy of it
            raise type(err)(str(err).replace(str(artifact.source), str(artifact.model_path))) from err
        finally:
            artifact.sealed.close()
        if size >= _LARGE_BYTES:
            give_back()
        if not engine.pending and engine.device.provider == "cpu":
            if known is None:
                self._measured.put(artifact.sha256, engine.measured)
            if proved is None and engine.batch_invariant:
                self._proofs.put(read.content, engine.measured)
        return replace(artifact, sealed=None), engine

    def _prove_elsewhere(self, artifact: Artifact, is_beside: bool, *, is_known: bool) -> Measured | None:
        """Have a process of its own run a version first that may need much memory; returns what it measured, if it did.

        Args:
            artifact: with its sealed file.
            is_beside: whether requests are answered meanwhile.
            is_known: whether another worker has measured it.

        Raises:
            ArtifactInvalid: it needs too much.
        """
        settings = self._settings
        if self._is_on_cuda():
            return None
        above = settings.prove_above_bytes
        has_room = artifact.source.stat().st_size < (available_bytes() // _SHARE_OF_MEMORY if above is None else above)
        if has_room and (not is_beside or is_known or structure_of(artifact.source) in self._references(None)):
            return None
        return self._prove_in_a_process(artifact, is_beside=is_beside)

    def _prove_in_a_process(self, artifact: Artifact, *, is_beside: bool) -> Measured | None:
        settings = self._settings
        options = {**self._options(), "is_autotuned": settings.specialise}
        links, seconds = self._repository.links, settings.load_seconds
        return self._proving.prove(artifact, links, options, seconds, is_beside=is_beside)

    def _measure(self, artifact: Artifact) -> str:
        """Return what a process of its own measures of a version in every batch size; empty where there is none."""
        artifact = self.open(artifact.name, artifact.version)
        assert artifact.sealed is not None
        try:
            measured = self._prove_in_a_process(artifact, is_beside=True)
        finally:
            artifact.sealed.close()
        return "" if measured is None else measured.to_json()

    def _options(self) -> dict[str, Any]:
        """How much of the processor a version may use, and in which batches."""
        settings = self._settings
        return {
            "threads": settings.threads,
            "cores": max(1, available_cores() // settings.workers),
            "buckets": settings.buckets,
            "max_free_axis": settings.max_free_axis,
        }

    def _engine_of(
        self,
        artifact: Artifact,
        like: Model | None,
        known: Measured | None,
        read: Read,
        *,
        is_beside: bool,
    ) -> Engine:
        """Return an engine; beside requests all of its batch sizes are proved before it takes over from another one."""
        settings = self._settings
        return load_engine(
            artifact,
            provider=settings.provider,
            **self._options(),
            device_id=settings.cuda_device,
            tf32=settings.tf32,
            is_autotuned=settings.specialise,
            decide=self._decide,
            references=self._references(like),
            known=known,
            chosen=read.chosen,
            structure=read.structure,
            is_proved=read.proved is not None,
            is_deferring=not is_beside,
        )


def _content_digest(artifact: Artifact) -> str:
    """Return the SHA-256 of what decides how a version answers: the very graph that runs, and its golden answers."""
    assert artifact.sealed is not None
    golden = json.dumps(artifact.manifest.get("golden"), sort_keys=True)
    return hashlib.sha256(f"{artifact.sealed.sha256} {golden}".encode()).hexdigest()


def version_lost(artifact: Artifact, served: str) -> VersionLost:
    """Return the error about files that are not those of digest `served`."""
    return VersionLost(
        f"{artifact.path} holds another content (SHA-256 {artifact.sha256[:12]}) than was served as version "
        f"{artifact.version} ({served[:12]}); put that back, or publish this one under a new number"
    )
