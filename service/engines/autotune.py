"""Time rewrites of a graph on this machine and choose the fastest: the published graph, or one of them.

The file in the repository stays as it is. A rewrite is used only if it gives the golden answers within the same
tolerance as the published graph and was measured to be faster for lone rows and for batches. CPU only: the rewrites
suit vector units.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ..artifacts.golden import check_golden
from ..artifacts.repository import Artifact
from ..errors import ArtifactInvalid
from ..tensors import Array
from .buckets import golden_batch, median
from .graph import LARGEST_FILE_BYTES
from .providers import Source, cpu_session
from .rewrites import Rewrite, fill_blocks, split_pooling
from .runners import PlainRunner, Runner

_log = logging.getLogger(__name__)

REWRITES: Mapping[str, Rewrite] = {
    "pools split": split_pooling,
    "blocks of 16 filled, cut after the pool": partial(fill_blocks, channels=16, is_cut=True),
    "blocks of 8 filled": partial(fill_blocks, channels=8, is_cut=False),
}
_BATCH = 32  # from here on a gain does not change any more
_LONE_ROUNDS, _BATCH_ROUNDS = 15, 5
_LEAST_GAIN = 1.05  # less is noise, and one more thing that could differ
_MOST_LOSS = 0.97
_LONGEST_RUN_SECONDS = 0.05  # of the golden rows; where one run takes longer, comparing would hold up the start

Decide = Callable[[str, Callable[[], str]], str]


def decide_alone(key: str, measure: Callable[[], str]) -> str:
    """Return what `measure` returns, where no other process has to come to the same decision under `key`."""
    return measure()


@dataclass(frozen=True)
class Choice:
    """The graph to run, a path or a model's bytes, and the name of the rewrite; None for the published graph.

    `runner` runs it, where it was opened already.
    """

    source: Source
    rewrite: str | None = None
    runner: Runner | None = None


def autotune(
    artifact: Artifact,
    published: Runner,
    buckets: Sequence[int],
    rewrites: Mapping[str, Rewrite],
    decide: Decide = decide_alone,
) -> Choice:
    """Return the fastest graph among the published one and its rewrites.

    Args:
        artifact: a verified version folder.
        published: runs the published graph on one thread.
        buckets: batch sizes that will be served, rising.
        rewrites: by the name that goes into the log.
        decide: returns the name of the fastest, measured now or decided before.

    Raises:
        ArtifactInvalid: the published graph does not give its golden answers.
    """
    candidates = _candidates(artifact, rewrites)
    if not candidates:
        return Choice(artifact.model_path)
    name = decide(f"graph-{artifact.sha256}", lambda: _fastest(artifact, published, buckets, candidates))
    return Choice(candidates[name], name) if name in candidates else Choice(artifact.model_path)


def may_pay(artifact: Artifact, lone_seconds: float, rewrites: Mapping[str, Rewrite]) -> bool:
    """Return whether `autotune` would compare anything, for a model whose lone rows take so long."""
    return lone_seconds * artifact.golden.rows <= _LONGEST_RUN_SECONDS and bool(_candidates(artifact, rewrites))


def reuse_choice(
    artifact: Artifact, name: str | None, rewrites: Mapping[str, Rewrite], decide: Decide, threads: int = 1
) -> Choice:
    """Return the graph that another model of the same structure runs, if it is right for this one too.

    Args:
        artifact: a verified version folder.
        name: of the rewrite that the other one runs; None for the published graph.
        rewrites: by name.
        decide: makes all workers run the same.
        threads: of one run.
    """
    chosen = decide(f"graph-{artifact.sha256}", lambda: name or "")
    candidates = _candidates(artifact, {chosen: rewrites[chosen]}) if chosen in rewrites else {}
    if chosen in candidates:
        runner = PlainRunner(cpu_session(candidates[chosen], threads))
        if _is_right(artifact, chosen, runner):
            return Choice(candidates[chosen], chosen, runner)
    return Choice(artifact.model_path)


def _fastest(artifact: Artifact, published: Runner, buckets: Sequence[int], candidates: Mapping[str, bytes]) -> str:
    """The name of the candidate that is right and fastest; empty for the published graph."""
    golden = artifact.golden
    lone = min(_seconds(published, golden_batch(golden.inputs, buckets[0])) for _ in range(2)) / buckets[0]
    if lone * golden.rows > _LONGEST_RUN_SECONDS:
        return ""
    check_golden(golden, published.run(golden.inputs), "cpu")  # where that one is wrong, nothing is served
    runners = {name: PlainRunner(cpu_session(source, 1)) for name, source in candidates.items()}
    right = {name: runner for name, runner in runners.items() if _is_right(artifact, name, runner)}
    sizes = (buckets[0], max(bucket for bucket in buckets if bucket <= max(_BATCH, buckets[0])))
    gains = _gains(published, right, golden.inputs, sizes)
    worthy = {name: gain for name, gain in gains.items() if gain[0] >= _MOST_LOSS and gain[1] >= _LEAST_GAIN}
    _log.info("model %s: gains of rewritten graphs (lone row, batch)", artifact.name, extra={"gains": gains})
    return max(worthy, key=lambda name: math.prod(worthy[name]), default="")


def _candidates(artifact: Artifact, rewrites: Mapping[str, Rewrite]) -> dict[str, bytes]:
    """The rewrites that change anything; a file that our reader cannot read is served as it is."""
    if artifact.source.stat().st_size > LARGEST_FILE_BYTES:
        return {}
    data, candidates = artifact.source.read_bytes(), {}
    for name, rewrite in rewrites.items():
        try:
            changed = rewrite(data)
        except (ValueError, IndexError) as err:
            _log.warning("model %s: %r left out: %s", artifact.name, name, err)
            continue
        if changed is not None:
            candidates[name] = changed
    return candidates


def _is_right(artifact: Artifact, name: str, runner: Runner) -> bool:
    try:
        check_golden(artifact.golden, runner.run(artifact.golden.inputs), "cpu")
    except ArtifactInvalid as err:
        _log.warning("model %s: %r left out: %s", artifact.name, name, err)
        return False
    return True


def _gains(
    published: Runner, rewritten: Mapping[str, Runner], inputs: Mapping[str, Array], sizes: tuple[int, int]
) -> dict[str, tuple[float, float]]:
    """How many times as fast each rewrite is with a lone row and with a batch; rounds interleaved, medians."""
    runners = {"": published, **rewritten}
    gains = []
    for size, rounds in zip(sizes, (_LONE_ROUNDS, _BATCH_ROUNDS), strict=True):
        batch = golden_batch(inputs, size)
        times = [[_seconds(runner, batch) for runner in runners.values()] for _ in range(rounds + 1)]
        medians = list(map(median, zip(*times[1:], strict=True)))  # the first run warms up
        gains.append({name: medians[0] / each for name, each in zip(runners, medians, strict=True)})
    return {name: (gains[0][name], gains[1][name]) for name in rewritten}


def _seconds(runner: Runner, batch: Mapping[str, Array]) -> float:
    """Seconds of this thread's own time, which a neighbour on the same core does not lengthen."""
    started = time.thread_time()
    runner.run(batch)
    return time.thread_time() - started
