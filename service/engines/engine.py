"""One model on one device, proven before it answers: loaded, warmed in every bucket, compared with its golden answers.

Between the version folder and the batcher. Takes whole batches of at most the largest bucket, pads each to a bucket
and slices the answer; does not queue, and knows no requests.
"""

import logging
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnxruntime

from foldserve.format.golden import Golden
from foldserve.format.image import ImageRecipe
from foldserve.format.task import Task

from ..artifacts.golden import check_golden, decode_golden, with_tf32
from ..artifacts.repository import Artifact
from ..artifacts.unverified import check_rows
from ..cores import available_cores
from ..errors import ArtifactInvalid, DeviceLost, EngineError, InvalidInput, ProviderUnavailable
from ..settings import DEFAULT_BUCKETS
from ..tensors import Array, TensorSpec
from .autotune import REWRITES, Decide, autotune, decide_alone, reuse_choice
from .buckets import Profile, answers_agree, golden_batch, profile_buckets
from .checks import check_golden_inputs, fitting_buckets, refuse_failing, workable_inputs
from .providers import Device, Source, cpu_session, does_not_run, fall_back, first_line, open_session
from .runners import GraphRunner, PlainRunner, Runner, ThreadedRunner
from .signature import Signature, read_signature
from .structure import structure_of
from .threads import first_threaded_bucket

_log = logging.getLogger(__name__)

# How onnxruntime begins where a node of the graph failed.
_NODE_FAILED = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?=Non-zero status code returned while running )")
# Its classes and codes do not tell whose mistake it was: an index beyond a table can be any of three of them, and one
# is that of memory that did not suffice, too.
_NOT_THE_INPUTS = re.compile(r"alloc|out of memory|cuda|cudnn|cublas", re.IGNORECASE)


class Engine:
    """A proven session; make one with `Engine.load`.

    Attributes:
        device: the provider requested, the one that runs, and why they differ.
        deviations: largest relative difference from the golden answers, for each float output.
        rewrite: how the graph that runs differs from the published one; None when it does not.
        structure: equal for two graphs that differ in nothing but weights; empty where that is not known.
        golden: what it was proven with; of a model without a manifest, made inputs and no answers.
        threaded_from: the smallest bucket that runs on all threads; None where all run on one.
    """

    def __init__(
        self,
        runner: Runner,
        device: Device,
        signature: Signature,
        buckets: Sequence[int],
        rewrite: str | None = None,
        structure: str = "",
    ) -> None:
        self.device = device
        self.structure = structure
        self.rewrite = rewrite
        self.golden = Golden({}, {}, {})
        self.deviations: dict[str, float] = {}
        self.threaded_from: int | None = None
        self._runner = runner
        self._signature = signature
        self._profile: Profile = Profile(tuple(buckets), False, 0.0, {}, {})

    @classmethod
    def load(
        cls,
        artifact: Artifact,
        *,
        provider: str = "auto",
        threads: int = 0,
        cores: int | None = None,
        buckets: Sequence[int] = DEFAULT_BUCKETS,
        device_id: int = 0,
        tf32: bool = False,
        is_autotuned: bool = True,
        max_free_axis: int = 1,
        decide: Decide = decide_alone,
        references: "Mapping[str, Engine] | None" = None,
    ) -> "Engine":
        """Load, warm and prove a model; nothing is served that did not give its golden answers, where it has any.

        Args:
            artifact: a version folder; one without a manifest is measured on made inputs, and the answers to those
                are only known to be answers.
            provider: "auto", "cuda" or "cpu".
            threads: of one run on the CPU; 0 takes one, and `cores` where a bucket is measured to gain by them.
            cores: how many threads there may be; None takes all cores of the process.
            buckets: batch sizes to try, rising.
            device_id: which GPU.
            tf32: let CUDA round products to TF32.
            is_autotuned: on the CPU, run a rewritten graph where that is exact and measured to pay.
            max_free_axis: how large an axis behind the batch may be where the graph leaves it free.
            decide: has the graph chosen once for all processes that have to give the same bytes.
            references: engines that serve, by structure; what was measured for one whose graph differs in nothing but
                weights holds here too, and only the answers are checked: a measurement beside requests would be
                wrong, and in their way.

        Raises:
            ProviderUnavailable: "cuda" is required and cannot be had.
            ArtifactInvalid: the model cannot be loaded, cannot be batched, or does not give its golden answers.
            BucketsInvalid: `buckets` is empty or not rising, or does not hold the model's fixed batch size.
        """
        session, device = open_session(artifact.source, provider, threads=threads or 1, device_id=device_id, tf32=tf32)
        signature = read_signature(session, max_free_axis)
        if device.provider == "cuda" and signature.is_free:
            session, device = _off_cuda(artifact, provider, threads or 1)
        if artifact.is_verified:
            artifact = replace(artifact, golden=decode_golden(artifact.golden, signature.image, artifact.name))
            check_golden_inputs(artifact, signature)
        else:
            artifact = replace(artifact, golden=Golden(workable_inputs(PlainRunner(session), signature), {}, {}))
        fitting = fitting_buckets(buckets, signature.fixed_rows, artifact.max_batch_size)
        if device.provider == "cuda":
            try:
                return cls._on_cuda(artifact, session, device, signature, fitting, device_id, tf32)
            except (ProviderUnavailable, ArtifactInvalid) as err:
                if provider == "cuda":
                    raise
                session, device = fall_back(artifact.source, threads or 1, str(err))
        published = PlainRunner(session)
        refuse_failing(published, artifact, fitting[0])
        cores = 1 if threads else (cores or available_cores())
        structure = structure_of(artifact.source)
        sibling = (references or {}).get(structure) if structure else None
        engine = cls(published, device, signature, fitting, structure=structure)
        if is_autotuned and signature.fixed_rows is None and artifact.is_verified:
            rewritten = engine._rewritten(artifact, threads, cores, decide, sibling)
            if rewritten is not None:
                return rewritten
        engine._prove(artifact, artifact.source, cores, sibling)
        return engine

    @classmethod
    def _on_cuda(
        cls,
        artifact: Artifact,
        session: onnxruntime.InferenceSession,
        device: Device,
        signature: Signature,
        buckets: Sequence[int],
        device_id: int,
        tf32: bool,
    ) -> "Engine":
        """A proven engine of a session on CUDA; that it opened says little, its first run may fail."""
        runner = GraphRunner(session, signature.inputs, signature.outputs, device_id=device_id)
        engine = cls(runner, device, signature, buckets)
        try:
            engine._prove(replace(artifact, golden=with_tf32(artifact.golden)) if tf32 else artifact)
        except EngineError as err:
            reason = first_line(err.__cause__) if isinstance(err.__cause__, Exception) else str(err)
            raise does_not_run(artifact.name, device_id, reason) from err
        return engine

    def _rewritten(
        self, artifact: Artifact, threads: int, cores: int, decide: Decide, sibling: "Engine | None"
    ) -> "Engine | None":
        """A proven engine of a rewritten graph, if one is right, faster, and the same in every batch."""
        if sibling is None:
            choice = autotune(artifact, self._runner, self.buckets, REWRITES, decide)
        else:
            choice = reuse_choice(artifact, sibling.rewrite, REWRITES, decide)
        if choice.rewrite is None:
            return None
        runner = PlainRunner(cpu_session(choice.source, threads or 1))
        engine = Engine(runner, self.device, self._signature, self.buckets, choice.rewrite, self.structure)
        engine._prove(artifact, choice.source, cores, sibling)
        if engine.batch_invariant and engine.buckets == engine._profile.tried:
            return engine
        _log.warning("model %s: %r left out: answers depend on the batch", artifact.name, choice.rewrite)
        return None

    def _prove(
        self, artifact: Artifact, source: Source | None = None, cores: int = 1, sibling: "Engine | None" = None
    ) -> None:
        """Measure every bucket, unless it is known how long it takes, and compare each with the golden answers."""
        self.golden = golden = artifact.golden
        seconds = self._use_threads(source, cores, sibling) if source is not None and cores > 1 else {}
        if sibling is not None and sibling.rewrite == self.rewrite:
            seconds = sibling.bucket_seconds
        run = self._run_exactly if artifact.is_verified else self._run_row_for_row
        worth = [bucket for bucket in self.buckets if not seconds or bucket <= max(seconds)]
        self._profile = profile_buckets(run, golden.inputs, worth, seconds)
        for answers in self._profile.answers.values():
            deviations = check_golden(golden, answers, self.device.provider)
            self.deviations = {name: max(new, self.deviations.get(name, 0.0)) for name, new in deviations.items()}
        proof = f"off its golden answers by at most {max(self.deviations.values(), default=0.0):.1e}"
        _log.info(
            "model %s version %d on %s: buckets %s, batch invariant: %s, %s",
            *(artifact.name, artifact.version, self.device.provider, list(self.buckets), self.batch_invariant),
            proof if artifact.is_verified else "unverified",
            extra={"rewrite": self.rewrite},
        )

    def _use_threads(self, source: Source, cores: int, sibling: "Engine | None") -> Mapping[int, float]:
        """Run large buckets on all cores if that pays and changes no byte; returns the seconds that were measured."""
        if sibling is not None and sibling.threaded_from is None:
            return {}
        single, threaded, inputs = self._runner, PlainRunner(cpu_session(source, cores)), self.golden.inputs
        if sibling is None:
            first, seconds = first_threaded_bucket(single.run, threaded.run, inputs, self.buckets)
        else:
            first, seconds = sibling.threaded_from, {}
            large = [bucket for bucket in sibling.buckets if first is not None and bucket >= first]
            if not all(answers_agree(single.run, threaded.run, inputs, bucket) for bucket in large):
                first = None
        if first is not None:  # where all runs take all threads, the session for one thread gives its memory back
            self._runner = threaded if first == self.buckets[0] else ThreadedRunner(single, threaded, first)
            self.threaded_from = first
        return seconds

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs, in the graph's order."""
        return self._signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs, in the graph's order."""
        return self._signature.outputs

    @property
    def is_free(self) -> bool:
        """Whether rows of different requests may differ in their shape."""
        return self._signature.is_free

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Class names, index = class id; None for a model that states none."""
        return self._signature.class_names

    @property
    def image(self) -> ImageRecipe | None:
        """How a picture becomes a row; None for a model that takes no images."""
        return self._signature.image

    @property
    def task(self) -> Task:
        """What the outputs mean."""
        return self._signature.task

    @property
    def metadata(self) -> Mapping[str, str]:
        """The graph's own metadata, as it stands in the file."""
        return self._signature.metadata

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes that are served, rising."""
        return self._profile.buckets

    @property
    def batch_invariant(self) -> bool:
        """Whether the same row got the same bytes in every served bucket, position and batch."""
        return self._profile.batch_invariant

    @property
    def largest_deviation(self) -> float:
        """Largest relative difference between any two buckets that were tried, served or not."""
        return self._profile.largest_deviation

    @property
    def bucket_seconds(self) -> Mapping[int, float]:
        """Median seconds of one run of each served bucket, measured at load."""
        return self._profile.seconds

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one batch.

        Args:
            inputs: each input by its name, of the stated type and shape, with the same number of rows, which is at
                most the largest bucket.

        Returns:
            Each output by its name, with the same number of rows; never a view of `inputs`.

        Raises:
            InvalidInput: the run failed, and the golden inputs still run: the graph cannot take these inputs.
            EngineError: there are no or too many rows, the golden inputs do not run either, or there was no memory.
        """
        rows = len(next(iter(inputs.values())))
        bucket = self._bucket_for(rows)
        if bucket > rows:
            inputs = {name: _pad(array, bucket) for name, array in inputs.items()}
        try:
            outputs = self._run_exactly(inputs)
        except EngineError as err:
            reason = _refusal(str(err.__cause__))
            if reason is None or isinstance(err, DeviceLost) or not self._still_answers():
                raise
            raise InvalidInput(f"the model cannot run on these inputs: {reason}") from err
        return outputs if bucket == rows else {name: array[:rows] for name, array in outputs.items()}

    def _bucket_for(self, rows: int) -> int:
        buckets = self.buckets
        if not 0 < rows <= buckets[-1]:
            raise EngineError(f"batch: got {rows} rows, expected 1 to {buckets[-1]}")
        return buckets[bisect_left(buckets, rows)]

    def _run_exactly(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch that is exactly as large as a bucket."""
        try:
            return self._runner.run(inputs)
        except InvalidInput:  # a text that is none
            raise
        except Exception as err:  # onnxruntime's classes share no base below Exception
            reason = str(err).strip()[:300]
            if self.device.provider == "cuda" and not self._still_answers():
                raise DeviceLost(f"the device does not answer any more: {reason}") from err
            raise EngineError(f"the run failed: {reason}") from err

    def _run_row_for_row(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch of an unverified model, whose outputs may not even have the batch as their first axis."""
        answers = self._run_exactly(inputs)
        check_rows(answers, len(next(iter(inputs.values()))))
        return answers

    def _still_answers(self) -> bool:
        """Whether golden inputs still run: a CUDA error stays until the process ends, a bad batch does not."""
        try:
            self._runner.run(golden_batch(self.golden.inputs, self.buckets[0]))
        except Exception:
            return False
        return True


def _off_cuda(artifact: Artifact, provider: str, threads: int) -> tuple[onnxruntime.InferenceSession, Device]:
    """Return a session on the CPU for a graph with free axes: a CUDA graph is recorded for one shape.

    Raises:
        ProviderUnavailable: "cuda" is required.
    """
    reason = f"{artifact.name} leaves axes behind the batch free, which recorded CUDA graphs cannot"
    if provider == "cuda":
        raise ProviderUnavailable(f"{reason}; serve it with FOLDSERVE_PROVIDER=cpu, or export it with fixed sizes")
    return fall_back(artifact.source, threads, reason)


def _pad(array: Array, rows: int) -> Array:
    """Return an array of more rows, the last one repeated: zeros might be what a graph cannot take."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _refusal(text: str) -> str | None:
    """Return what onnxruntime says of a run that inputs may have failed, without its code; None of any other run."""
    code = _NODE_FAILED.match(text)
    return None if code is None or _NOT_THE_INPUTS.search(text) else text[code.end() :].strip()[:600]
