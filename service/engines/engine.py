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

from foldserve.format.golden import Golden
from foldserve.format.image import ImageRecipe
from foldserve.format.task import Task

from ..artifacts.golden import check_golden
from ..artifacts.repository import Artifact
from ..artifacts.unverified import check_rows
from ..errors import DeviceLost, EngineError, InvalidInput, ServiceError
from ..tensors import Array, TensorSpec
from .buckets import (
    Profile,
    Run,
    answers_agree,
    first_profile,
    golden_batch,
    profile_buckets,
    with_bucket,
)
from .measured import Measured
from .providers import Device, Source, cpu_session
from .runners import PlainRunner, Runner, ThreadedRunner
from .signature import Signature
from .threads import first_threaded_bucket

_log = logging.getLogger(__name__)

# How onnxruntime begins where a node of the graph failed.
_NODE_FAILED = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?=Non-zero status code returned while running )")
# Its classes and codes do not tell whose mistake it was: an index beyond a table can be any of three of them, and one
# is that of memory that did not suffice, too.
_NOT_THE_INPUTS = re.compile(r"alloc|out of memory|cuda|cudnn|cublas", re.IGNORECASE)


class Engine:
    """A proven session; make one with `load_engine`.

    Attributes:
        device: the provider requested, the one that runs, and why they differ.
        deviations: largest relative difference from the golden answers, for each float output.
        rewrite: how the graph that runs differs from the published one; None when it does not.
        structure: equal for two graphs that differ in nothing but weights; empty where that is not known, or not yet.
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
        self._known_seconds: Mapping[int, float] = {}  # of buckets that are pending
        self._run_to_prove: Run = self._run_exactly

    def prove_smallest(self, artifact: Artifact, known: Measured | None = None) -> None:
        """Prove the smallest bucket alone; `prove_next` proves those that are `pending` then.

        Args:
            artifact: a version folder.
            known: what was measured of this very model before.

        Raises:
            ArtifactInvalid: it does not give the golden answers.
            EngineError: the run failed.
        """
        self.golden = artifact.golden
        self._run_to_prove = self._run_of(artifact)
        self._profile = first_profile(self._run_to_prove, artifact.golden.inputs, self.buckets)
        if known is not None:
            self.plan(known.seconds)
        self._check_answers(artifact)

    def plan(self, seconds: Mapping[int, float]) -> None:
        """Leave those buckets pending of which it is known that they are worth having.

        Args:
            seconds: of one run of each, beside the first, whose own time here says how fast this machine is now.
        """
        first = self.buckets[0]
        slowness = self.bucket_seconds[first] / seconds.get(first, self.bucket_seconds[first])
        pending = tuple(bucket for bucket in self._profile.pending if bucket in seconds)
        self._profile = replace(self._profile, pending=pending)
        self._known_seconds = {bucket: seconds[bucket] * slowness for bucket in pending}

    def prove_next(self) -> None:
        """Try the first bucket that is pending; it is served from now on if it gives the bytes that are served now.

        Requests may be answered meanwhile, in another thread.

        Raises:
            ArtifactInvalid: it does not give the golden answers.
            EngineError: the run failed.
        """
        profile = self._profile
        try:
            seconds = self._known_seconds.get(profile.pending[0])
            tried = with_bucket(profile, self._run_to_prove, self.golden.inputs, seconds)
            for bucket in set(tried.buckets) - set(profile.buckets):
                check_golden(self.golden, tried.answers[bucket], self.device.provider)
        except ServiceError:
            self._profile = replace(profile, pending=())
            raise
        self._profile = tried

    @property
    def is_planned(self) -> bool:
        """Whether it is known of all pending buckets that they are worth having."""
        return all(bucket in self._known_seconds for bucket in self.pending)

    @property
    def pending(self) -> tuple[int, ...]:
        """Batch sizes that may be served once they are proved, rising."""
        return self._profile.pending

    @property
    def measured(self) -> Measured:
        """What was measured, for others that need not measure it again."""
        return Measured(self.rewrite, self.threaded_from, self.bucket_seconds)

    def prove(
        self,
        artifact: Artifact,
        source: Source | None = None,
        cores: int = 1,
        sibling: Measured | None = None,
        *,
        is_brief: bool = False,
    ) -> None:
        """Measure every bucket, unless it is known how long it takes, and compare each with the golden answers.

        Args:
            artifact: a version folder.
            source: of the graph that runs on the CPU, which more threads may run too.
            cores: how many there may be.
            sibling: what was measured of the same model, or of one whose graph differs in nothing but weights.
            is_brief: whether that one was proved in this service, so that its buckets give the same bytes wherever a
                row stands: that is a matter of the graph.
        """
        self.golden = golden = artifact.golden
        before = self._runner, self._profile
        is_same = sibling is not None and sibling.rewrite == self.rewrite
        is_brief = is_brief and is_same
        seconds = self._use_threads(source, cores, sibling, is_brief=is_brief)
        if sibling is not None and is_same:
            seconds = sibling.seconds
        worth = [bucket for bucket in self.buckets if not seconds or bucket in seconds]
        self._profile = profile_buckets(self._run_of(artifact), golden.inputs, worth, seconds, is_brief=is_brief)
        if is_brief and self.buckets != tuple(seconds):  # it does not agree with what was found there
            (self._runner, self._profile), self.threaded_from = before, None
            self.prove(artifact, source, cores, sibling)
            return
        self._check_answers(artifact)

    def _run_of(self, artifact: Artifact) -> Run:
        return self._run_exactly if artifact.is_verified else self._run_row_for_row

    def _check_answers(self, artifact: Artifact) -> None:
        """Compare the answers of each bucket with the golden ones, and say how near they are."""
        golden = artifact.golden
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

    def _use_threads(
        self, source: Source | None, cores: int, sibling: Measured | None, *, is_brief: bool
    ) -> Mapping[int, float]:
        """Run large buckets on all cores if that pays and changes no byte; returns the seconds that were measured.

        A brief proof compares all buckets with one another, so that the bytes need no look here.
        """
        if source is None or cores <= 1 or (sibling is not None and sibling.threaded_from is None):
            return {}
        single, threaded, inputs = self._runner, PlainRunner(cpu_session(source, cores)), self.golden.inputs
        if sibling is None:
            first, seconds = first_threaded_bucket(single.run, threaded.run, inputs, self.buckets)
        else:
            first, seconds = sibling.threaded_from, {}
            large = [bucket for bucket in sibling.seconds if first is not None and bucket >= first]
            runs_all = first == self.buckets[0]  # then there is no other form to agree with
            unsure = [] if runs_all or is_brief else large
            if not all(answers_agree(single.run, threaded.run, inputs, bucket) for bucket in unsure):
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
    def serves_all(self) -> bool:
        """Whether every bucket that was tried is served."""
        return self.buckets == self._profile.tried

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


def _pad(array: Array, rows: int) -> Array:
    """Return an array of more rows, the last one repeated: zeros might be what a graph cannot take."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _refusal(text: str) -> str | None:
    """Return what onnxruntime says of a run that inputs may have failed, without its code; None of any other run."""
    code = _NODE_FAILED.match(text)
    return None if code is None or _NOT_THE_INPUTS.search(text) else text[code.end() :].strip()[:600]
