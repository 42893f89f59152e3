"""One model on one device, proven before it answers: loaded, warmed in every bucket, compared with its golden answers.

Between the version folder and the batcher. Takes whole batches of at most the largest bucket, pads each to a bucket
and slices the answer; does not queue, and does not know who asked.
"""

import logging
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnxruntime

from foldserve.format.golden import Golden
from foldserve.format.image import ImageSpec

from ..artifacts.golden import check_golden
from ..artifacts.repository import Artifact
from ..artifacts.unverified import check_rows, made_inputs
from ..errors import ArtifactInvalid, BucketsInvalid, DeviceLost, EngineError
from ..settings import DEFAULT_BUCKETS, check_buckets
from ..tensors import Array, TensorSpec
from .autotune import REWRITES, Choice, Decide, autotune, decide_alone, reuse_choice
from .buckets import (
    LONGEST_RUN_SECONDS,
    Profile,
    answer_alike,
    median_seconds,
    profile_buckets,
)
from .providers import Device, Source, cpu_session, open_session
from .runners import GraphRunner, PlainRunner, Runner, ThreadedRunner
from .signature import Signature, read_signature
from .structure import structure_of

_log = logging.getLogger(__name__)

# More threads are worth their wake-ups in runs of this length that they shorten by this factor.
WIDE_SECONDS = 0.001
WIDE_GAIN = 1.3


class Engine:
    """A proven session; make one with `Engine.load`.

    Attributes:
        device: what was asked for, what runs, and why they differ.
        deviations: largest relative difference from the golden answers, for each float output.
        rewrite: how the graph that runs differs from the published one; None when it does not.
        structure: equal for two graphs that differ in nothing but weights; empty where that is not known.
        golden: what it was asked at load; of a model without a manifest, made inputs and no answers.
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
        decide: Decide = decide_alone,
        like: "Engine | None" = None,
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
            decide: has the graph chosen once for all processes that have to give the same bytes.
            like: one that serves; if its graph differs in nothing but weights, what was measured for it holds here
                too, and only the answers are looked at: a measurement beside requests would be wrong, and in their way.

        Raises:
            ProviderUnavailable: "cuda" was asked for and cannot be had.
            ArtifactInvalid: the model cannot be loaded, cannot be batched, or does not give its golden answers.
            BucketsInvalid: `buckets` is empty or not rising, or does not hold the model's fixed batch size.
        """
        session, device = open_session(
            artifact.model_path, provider, threads=threads or 1, device_id=device_id, tf32=tf32
        )
        signature = read_signature(session)
        if artifact.is_verified:
            _check_golden_inputs(artifact, signature)
        else:
            artifact = replace(artifact, golden=Golden(made_inputs(signature.inputs), {}, {}))
        fitting = _fitting(buckets, signature.fixed_rows)
        cores = 1 if threads else (cores or len(os.sched_getaffinity(0)))
        if device.provider == "cuda":
            on_device = GraphRunner(session, signature.inputs, signature.outputs, device_id=device_id)
            return cls(on_device, device, signature, fitting)._proven(artifact)
        _refuse_failing(PlainRunner(session, signature.outputs), artifact, fitting[0])
        structure = structure_of(artifact.model_path)
        kin = like if like is not None and structure and like.structure == structure else None
        choice = Choice(artifact.model_path)
        if is_autotuned and signature.fixed_rows is None and artifact.is_verified:
            choice = (
                autotune(artifact, session, fitting, REWRITES, decide)
                if kin is None
                else reuse_choice(artifact, kin.rewrite, REWRITES, decide)
            )
        if choice.rewrite is not None:
            rewritten = cpu_session(choice.source, threads or 1)
            runner, seconds = _cpu_runner(artifact, choice.source, rewritten, signature, fitting, cores, kin)
            engine = cls(runner, device, signature, fitting, choice.rewrite, structure)._proven(artifact, kin, seconds)
            if engine.batch_invariant and engine.buckets == engine._profile.tried:
                return engine
            _log.warning("model %s: %r left out: answers depend on the batch", artifact.name, choice.rewrite)
        runner, seconds = _cpu_runner(artifact, artifact.model_path, session, signature, fitting, cores, kin)
        return cls(runner, device, signature, fitting, structure=structure)._proven(artifact, kin, seconds)

    def _proven(
        self, artifact: Artifact, kin: "Engine | None" = None, seconds: Mapping[int, float] | None = None
    ) -> "Engine":
        """Measure every bucket, unless it is known how long it takes, and compare each with the golden answers."""
        self.golden = golden = artifact.golden
        run = self._run_exactly if artifact.is_verified else self._run_row_for_row
        known = kin.bucket_seconds if kin is not None and kin.rewrite == self.rewrite else seconds
        self._profile = profile_buckets(run, golden.inputs, self.buckets, known)
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
        return self

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs, in the graph's order."""
        return self._signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs, in the graph's order."""
        return self._signature.outputs

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names, index = class id; None for a model that states none."""
        return self._signature.labels

    @property
    def image(self) -> ImageSpec | None:
        """How a picture becomes a row; None for a model that takes no images."""
        return self._signature.image

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
        """Whether the same row got the same bytes in every served bucket, position and company."""
        return self._profile.batch_invariant

    @property
    def largest_deviation(self) -> float:
        """Largest relative difference between any two buckets that were tried, served or not."""
        return self._profile.largest_deviation

    @property
    def threaded_from(self) -> int | None:
        """The smallest bucket that runs on all threads; None where all run on one."""
        return self._runner.threaded_from if isinstance(self._runner, ThreadedRunner) else None

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
            Each output by its name, as many rows as came in; never a view of `inputs`.

        Raises:
            EngineError: there are no or too many rows, or the run failed.
        """
        rows = len(next(iter(inputs.values())))
        bucket = self._bucket_for(rows)
        if bucket == rows:
            return self._run_exactly(inputs)
        padded = {name: _pad(array, bucket) for name, array in inputs.items()}
        return {name: array[:rows] for name, array in self._run_exactly(padded).items()}

    def _bucket_for(self, rows: int) -> int:
        buckets = self.buckets
        if not 0 < rows <= buckets[-1]:
            raise EngineError(f"a batch of {rows} rows came, expected 1 to {buckets[-1]}")
        return buckets[bisect_left(buckets, rows)]

    def _run_exactly(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch that is exactly as large as a bucket."""
        try:
            return self._runner.run(inputs)
        except Exception as err:  # onnxruntime's classes share no base below Exception
            reason = str(err).strip()[:300]
            if self.device.provider == "cuda" and not self._still_answers():
                raise DeviceLost(f"the device does not answer any more: {reason}") from err
            raise EngineError(f"the run failed: {reason}") from err

    def _run_row_for_row(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch of a model that nobody vouches for."""
        answers = self._run_exactly(inputs)
        check_rows(answers, len(next(iter(inputs.values()))))
        return answers

    def _still_answers(self) -> bool:
        """Whether a batch of zeros still runs: a CUDA error stays until the process ends, a bad batch does not."""
        rows = self.buckets[0]
        try:
            self._runner.run({spec.name: np.zeros((rows, *spec.row_shape), spec.dtype) for spec in self.inputs})
        except Exception:
            return False
        return True


def _pad(array: Array, rows: int) -> Array:
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def _fitting(buckets: Sequence[int], fixed_rows: int | None) -> tuple[int, ...]:
    """The buckets that the graph can run; the only one of a graph whose batch size is fixed."""
    try:
        candidates = check_buckets(buckets)
    except ValueError as err:
        raise BucketsInvalid(f"buckets: got {list(buckets)}, {err}") from err
    if fixed_rows is None:
        return candidates
    if fixed_rows not in candidates:
        raise BucketsInvalid(
            f"the graph takes batches of exactly {fixed_rows} rows; put {fixed_rows} among the buckets"
        )
    return (fixed_rows,)


def _check_golden_inputs(artifact: Artifact, signature: Signature) -> None:
    """Compare names, types and row shapes of the golden inputs with the graph's."""
    expected = {spec.name: (str(spec.dtype), spec.shape[1:]) for spec in signature.inputs}
    stated = {name: (str(array.dtype), array.shape[1:]) for name, array in artifact.golden.inputs.items()}
    if stated != expected:
        raise ArtifactInvalid(f"golden inputs in {artifact.path} are {stated}, the graph takes {expected}")
    if set(artifact.golden.outputs) != {spec.name for spec in signature.outputs}:
        raise ArtifactInvalid(
            f"golden outputs in {artifact.path} are {sorted(artifact.golden.outputs)}, "
            f"the graph gives {sorted(spec.name for spec in signature.outputs)}"
        )


def _refuse_failing(runner: Runner, artifact: Artifact, rows: int) -> None:
    """Raise when the graph cannot even run on what it is going to be asked."""
    inputs = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in artifact.golden.inputs.items()}
    try:
        runner.run(inputs)
    except Exception as err:  # onnxruntime's classes share no base below Exception
        asked = "its golden inputs" if artifact.is_verified else "inputs made for it (floats 0 to 1, integers 0 or 1)"
        reason = str(err).strip().split("\n")[0][:300]
        raise ArtifactInvalid(f"{artifact.model_path} fails on {asked}: {reason}") from err


def _cpu_runner(
    artifact: Artifact,
    source: Source,
    session: onnxruntime.InferenceSession,
    signature: Signature,
    buckets: Sequence[int],
    cores: int,
    kin: Engine | None = None,
) -> tuple[Runner, Mapping[int, float]]:
    """One thread, and all cores for the large buckets if they shorten those runs enough and change no byte.

    Measured on two cores for a small convolutional network: 36 against 68 microseconds for one row, 5.6 against
    2.9 milliseconds for 256.

    Returns:
        How buckets run, and the median seconds of those that were timed to find that out.
    """
    asked = artifact.golden.inputs
    narrow = PlainRunner(session, signature.outputs)
    if cores < 2 or (kin is not None and kin.threaded_from is None):
        return narrow, {}
    wide = PlainRunner(cpu_session(source, cores), signature.outputs)
    if kin is not None and kin.threaded_from is not None:
        large = [bucket for bucket in kin.buckets if bucket >= kin.threaded_from]
        is_exact = all(answer_alike(narrow.run, wide.run, asked, bucket) for bucket in large)
        return (ThreadedRunner(narrow, wide, kin.threaded_from) if is_exact else narrow), {}
    slow: dict[int, float] = {}
    fast: dict[int, float] = {}
    for bucket in buckets:
        if not fast:  # once it pays it pays for larger batches too
            slow[bucket] = median_seconds(narrow.run, asked, bucket)
            if slow[bucket] < WIDE_SECONDS:
                continue
        taken = median_seconds(wide.run, asked, bucket)
        does_pay = bool(fast) or slow[bucket] >= WIDE_GAIN * taken
        if does_pay and answer_alike(narrow.run, wide.run, asked, bucket):
            fast[bucket] = taken
        else:
            fast.clear()
        if max(taken, slow.get(bucket, 0.0)) > LONGEST_RUN_SECONDS:
            break
    return (ThreadedRunner(narrow, wide, min(fast)), slow | fast) if fast else (narrow, slow)
