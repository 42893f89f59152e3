"""From a version folder to an engine: a session on a device, the graph and the threads that pay, everything proved.

Between the version folder and `engine`. Says in which form a model runs; what is proved of it, the engine itself says.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnxruntime

from foldserve.format.golden import Golden

from ..artifacts.golden import decode_golden, with_tf32
from ..artifacts.repository import Artifact
from ..cores import available_cores
from ..errors import ArtifactInvalid, EngineError, ProviderUnavailable, ServiceError
from ..settings import DEFAULT_BUCKETS
from .autotune import REWRITES, Decide, autotune, decide_alone, may_pay, reuse_choice
from .buckets import SHORT_RUN_SECONDS
from .checks import check_golden_inputs, fitting_buckets, refuse_dependent_rows, refuse_failing, workable_inputs
from .engine import Engine
from .measured import Measured
from .providers import Device, cpu_session, does_not_run, fall_back, first_line, open_session
from .runners import GraphRunner, PlainRunner, Runner
from .signature import Signature, read_signature
from .structure import structure_of
from .threads import does_pay, thread_gain

_log = logging.getLogger(__name__)

# From this size of a file on loading takes long enough that it is opened for all threads at once, which large networks
# gain by; a small file is opened a second time without being noticed.
_LARGE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class _Form:
    """A session that is open, and what was read of its graph.

    Attributes:
        runner: of the session.
        device: where it is.
        signature: of the graph.
        buckets: batch sizes to try, rising.
        structure: of the graph; empty where it is not known yet.
    """

    runner: Runner
    device: Device
    signature: Signature
    buckets: Sequence[int]
    structure: str = ""

    def engine(self, rewrite: str | None = None) -> Engine:
        """Return an engine that has proved nothing."""
        return Engine(self.runner, self.device, self.signature, self.buckets, rewrite, self.structure)


@dataclass(frozen=True)
class _OnCpu:
    """What `load_engine` was told that matters on the CPU; `opened` is for how many threads the session is open."""

    threads: int
    cores: int
    opened: int
    decide: Decide
    known: Measured | None
    chosen: str | None
    is_autotuned: bool
    is_deferring: bool


def load_engine(
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
    references: Mapping[str, Measured] | None = None,
    known: Measured | None = None,
    chosen: str | None = None,
    structure: str = "",
    is_proved: bool = False,
    is_deferring: bool = False,
) -> Engine:
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
        references: of engines that serve, by structure; what was measured for one whose graph differs in nothing
            but weights holds here too, and only the answers are checked: a measurement beside requests would be
            wrong, and in their way.
        known: what was measured of this very model before.
        chosen: what `choose_graph` found; None has the fastest graph found now.
        structure: of its graph, where that was looked at before.
        is_proved: whether another process of this service has proved this very model, in the batch sizes that are
            known; each of them has to give the golden answers here too, but once, and not at every position.
        is_deferring: whether of a model whose runs are long only the smallest bucket is proved now; `prove_next`
            proves those that are `pending`, while this one answers.

    Raises:
        ProviderUnavailable: "cuda" is required and cannot be had.
        ArtifactInvalid: the model cannot be loaded, cannot be batched, or does not give its golden answers.
        BucketsInvalid: `buckets` is empty or not rising, or the model's fixed batch size is larger than all.
    """
    cores = 1 if threads else (cores or available_cores())
    opened = threads or (_threads_to_try(artifact, cores, known) if is_deferring else 1)
    session, device = open_session(artifact.source, provider, threads=opened, device_id=device_id, tf32=tf32)
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
            return _on_cuda(artifact, session, device, signature, fitting, device_id, tf32)
        except (ProviderUnavailable, ArtifactInvalid) as err:
            if provider == "cuda":
                raise
            session, device = fall_back(artifact.source, threads or 1, str(err))
    published = PlainRunner(session)
    if known is None:  # what ran before is proved without a run that is for nothing else
        refuse_failing(published, artifact, fitting[0])
    if not artifact.is_verified and signature.fixed_rows is None:
        refuse_dependent_rows(published, artifact)
    # Of a large file it is found later, by whoever defers: reading it once more would hold up the start.
    is_large = artifact.source.stat().st_size >= _LARGE_BYTES
    structure = structure or ("" if is_deferring and is_large else structure_of(artifact.source))
    like = (references or {}).get(structure) if structure and not is_proved else None
    form = _Form(published, device, signature, fitting, structure)
    how = _OnCpu(threads, cores, opened, decide, known, chosen, is_autotuned, is_deferring)
    return _on_cpu(artifact, form, how, like or known, is_brief=is_proved or like is not None)


def choose_graph(artifact: Artifact, buckets: Sequence[int]) -> str | None:
    """Return which graph of a small model is fastest on the CPU, an empty text for the published one.

    It is timed in the thread's own time, so that other work may go on in the process; nothing else of a model may
    be measured then.

    Args:
        artifact: a version folder.
        buckets: of the settings.

    Returns:
        None where that is not to be found beforehand, or the model cannot be loaded, as `load_engine` is going to say.
    """
    if not artifact.is_verified or artifact.source.stat().st_size >= _LARGE_BYTES:
        return None
    try:
        session = cpu_session(artifact.source, 1)
        signature = read_signature(session)
        if signature.fixed_rows is not None:
            return None
        artifact = replace(artifact, golden=decode_golden(artifact.golden, signature.image, artifact.name))
        check_golden_inputs(artifact, signature)
        fitting = fitting_buckets(buckets, None, artifact.max_batch_size)
        return autotune(artifact, PlainRunner(session), fitting, REWRITES).rewrite or ""
    except ServiceError:
        return None


def _threads_to_try(artifact: Artifact, cores: int, known: Measured | None) -> int:
    """Return the threads for which a session is opened first."""
    if known is not None:
        return cores if known.threaded_from is not None else 1
    return cores if artifact.source.stat().st_size >= _LARGE_BYTES else 1


def _off_cuda(artifact: Artifact, provider: str, threads: int) -> tuple[onnxruntime.InferenceSession, Device]:
    """Return a session on the CPU for a graph with free axes: a CUDA graph is recorded for one shape.

    Raises:
        ProviderUnavailable: "cuda" is required.
    """
    reason = f"{artifact.name} leaves axes behind the batch free, which recorded CUDA graphs cannot"
    if provider == "cuda":
        raise ProviderUnavailable(f"{reason}; serve it with FOLDSERVE_PROVIDER=cpu, or export it with fixed sizes")
    return fall_back(artifact.source, threads, reason)


def _on_cuda(
    artifact: Artifact,
    session: onnxruntime.InferenceSession,
    device: Device,
    signature: Signature,
    buckets: Sequence[int],
    device_id: int,
    tf32: bool,
) -> Engine:
    """Return a proven engine of a session on CUDA; that it opened says little, its first run may fail."""
    runner = GraphRunner(session, signature.inputs, signature.outputs, device_id=device_id)
    engine = _Form(runner, device, signature, buckets).engine()
    try:
        engine.prove(replace(artifact, golden=with_tf32(artifact.golden)) if tf32 else artifact)
    except EngineError as err:
        reason = first_line(err.__cause__) if isinstance(err.__cause__, Exception) else str(err)
        raise does_not_run(artifact.name, device_id, reason) from err
    return engine


def _on_cpu(artifact: Artifact, form: _Form, how: _OnCpu, sibling: Measured | None, *, is_brief: bool) -> Engine:
    """Return a proven engine of a session on the CPU.

    Args:
        artifact: a version folder.
        form: as it was opened.
        how: it is to run.
        sibling: what was measured of the same model, or of one whose graph differs in nothing but weights.
        is_brief: whether that one was proved in this service.
    """
    engine = _deferred(artifact, form, how) if how.is_deferring else None
    if engine is not None:
        return engine
    if how.opened > 1 and not how.threads:
        form = replace(form, runner=PlainRunner(cpu_session(artifact.source, 1)))
    if how.is_autotuned and form.signature.fixed_rows is None and artifact.is_verified:
        engine = _rewritten(artifact, form, how, sibling, is_brief=is_brief)
        if engine is not None:
            return engine
    engine = form.engine()
    engine.prove(artifact, artifact.source, how.cores, sibling, is_brief=is_brief)
    return engine


def _deferred(artifact: Artifact, form: _Form, how: _OnCpu) -> Engine | None:
    """Return an engine whose smallest bucket alone is proved, if trying all of them would take long."""
    inputs, first, known = artifact.golden.inputs, form.buckets[0], how.known
    gain, seconds = 0.0, 0.0 if known is None else known.seconds.get(first, 0.0)
    if not seconds:
        gain, seconds = thread_gain(form.runner.run, inputs, first)
    if seconds / first * form.buckets[-1] <= SHORT_RUN_SECONDS:
        return None
    is_tuned = how.is_autotuned and artifact.is_verified and (known is None or known.rewrite is not None)
    if is_tuned and may_pay(artifact, seconds / first, REWRITES):
        return None
    does_gain = does_pay(gain) if known is None else known.threaded_from is not None
    is_open = how.opened > 1
    takes_all = is_open and how.decide(f"threads-{artifact.sha256}", lambda: "all" if does_gain else "one") == "all"
    if is_open and not takes_all:
        form = replace(form, runner=PlainRunner(cpu_session(artifact.source, 1)))
    engine = form.engine()
    engine.threaded_from = first if takes_all else None
    engine.prove_smallest(artifact, known)
    return engine


def _rewritten(
    artifact: Artifact, form: _Form, how: _OnCpu, sibling: Measured | None, *, is_brief: bool
) -> Engine | None:
    """Return a proven engine of a rewritten graph, if one is right, faster, and the same in every batch."""
    if sibling is None and how.chosen is None:
        choice = autotune(artifact, form.runner, form.buckets, REWRITES, how.decide)
    else:
        name = how.chosen if sibling is None else sibling.rewrite
        choice = reuse_choice(artifact, name, REWRITES, how.decide, how.threads or 1)
    if choice.rewrite is None:
        return None
    runner = choice.runner or PlainRunner(cpu_session(choice.source, how.threads or 1))
    engine = replace(form, runner=runner).engine(choice.rewrite)
    engine.prove(artifact, choice.source, how.cores, sibling, is_brief=is_brief)
    if engine.batch_invariant and engine.serves_all:
        return engine
    _log.warning("model %s: %r left out: answers depend on the batch", artifact.name, choice.rewrite)
    return None
