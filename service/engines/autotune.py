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

import numpy as np
import onnxruntime

from ..artifacts.golden import check_golden
from ..artifacts.repository import Artifact
from ..errors import ArtifactInvalid
from ..tensors import Array
from .providers import Source, cpu_session
from .rewrites import Rewrite, fill_blocks, split_pooling

_log = logging.getLogger(__name__)

REWRITES: Mapping[str, Rewrite] = {
    "pools split": split_pooling,
    "blocks of 16 filled, narrowed behind the pool": fill_blocks(16, narrow=True),
    "blocks of 8 filled": fill_blocks(8, narrow=False),
}
_BATCH = 32  # from here on a gain does not change any more
_LONE_ROUNDS, _BATCH_ROUNDS = 15, 5
_LEAST_GAIN = 1.05  # less is noise, and one more thing that could differ
_MOST_LOSS = 0.97
_LONGEST_RUN_SECONDS = 0.05  # of the golden rows; where one run takes longer, comparing would hold up the start
_MOST_BYTES = 64 * 1024 * 1024  # a large network has wide layers, and reading it twice takes long

Run = Callable[[Mapping[str, Array]], object]
Decide = Callable[[str, Callable[[], str]], str]


def decide_alone(question: str, answer: Callable[[], str]) -> str:
    """Answer a question here and now, where no other process has to come to the same answer."""
    return answer()


@dataclass(frozen=True)
class Choice:
    """The graph to run, and how it came to be.

    `source` is a path or a model's bytes; `rewrite` is None for the published graph.
    """

    source: Source
    rewrite: str | None = None


def autotune(
    artifact: Artifact,
    session: onnxruntime.InferenceSession,
    buckets: Sequence[int],
    rewrites: Mapping[str, Rewrite],
    decide: Decide = decide_alone,
) -> Choice:
    """Return the fastest graph among the published one and its rewrites.

    Args:
        artifact: a verified version folder.
        session: of the published graph, one thread.
        buckets: batch sizes that will be served, rising.
        rewrites: by the name that goes into the log.
        decide: is asked for the name of the fastest, and measures it or knows it.

    Raises:
        ArtifactInvalid: the published graph does not give its golden answers.
    """
    candidates = _candidates(artifact, rewrites)
    if not candidates:
        return Choice(artifact.model_path)
    name = decide(f"graph-{artifact.sha256}", lambda: _fastest(artifact, session, buckets, candidates))
    return Choice(candidates[name], name) if name in candidates else Choice(artifact.model_path)


def reuse_choice(artifact: Artifact, name: str | None, rewrites: Mapping[str, Rewrite], decide: Decide) -> Choice:
    """Return the graph that another model of the same structure runs, if it is right for this one too.

    Args:
        artifact: a verified version folder.
        name: of the rewrite that the other one runs; None for the published graph.
        rewrites: by name.
        decide: makes all workers run the same.
    """
    name = decide(f"graph-{artifact.sha256}", lambda: name or "")
    found = _candidates(artifact, {name: rewrites[name]}) if name in rewrites else {}
    if name not in found or not _is_right(artifact, name, cpu_session(found[name], 1)):
        return Choice(artifact.model_path)
    return Choice(found[name], name)


def _fastest(
    artifact: Artifact,
    session: onnxruntime.InferenceSession,
    buckets: Sequence[int],
    candidates: Mapping[str, bytes],
) -> str:
    """The name of the candidate that is right and fastest; empty for the published graph."""
    _check(artifact, session)  # where that one is wrong, nothing is served
    sizes = (buckets[0], max(bucket for bucket in buckets if bucket <= max(_BATCH, buckets[0])))
    if _seconds(_runs(session), artifact.golden.inputs) > _LONGEST_RUN_SECONDS:
        return ""
    sessions = {name: cpu_session(source, 1) for name, source in candidates.items()}
    right = {name: found for name, found in sessions.items() if _is_right(artifact, name, found)}
    gains = _gains(session, right, artifact.golden.inputs, sizes)
    worthy = {name: gain for name, gain in gains.items() if gain[0] >= _MOST_LOSS and gain[1] >= _LEAST_GAIN}
    _log.info("model %s: gains of rewritten graphs (lone row, batch)", artifact.name, extra={"gains": gains})
    return max(worthy, key=lambda name: math.prod(worthy[name]), default="")


def _candidates(artifact: Artifact, rewrites: Mapping[str, Rewrite]) -> dict[str, bytes]:
    """The rewrites that change anything; a file that cannot be read is nobody's fault but the reader's."""
    if artifact.model_path.stat().st_size > _MOST_BYTES:
        return {}
    data, found = artifact.model_path.read_bytes(), {}
    for name, rewrite in rewrites.items():
        try:
            changed = rewrite(data)
        except (ValueError, IndexError) as err:
            _log.warning("model %s: %r left out: %s", artifact.name, name, err)
            continue
        if changed is not None:
            found[name] = changed
    return found


def _check(artifact: Artifact, session: onnxruntime.InferenceSession) -> None:
    outputs = [output.name for output in session.get_outputs()]
    answers = session.run(outputs, dict(artifact.golden.inputs))
    check_golden(artifact.golden, dict(zip(outputs, answers, strict=True)), "cpu")


def _is_right(artifact: Artifact, name: str, session: onnxruntime.InferenceSession) -> bool:
    try:
        _check(artifact, session)
    except ArtifactInvalid as err:
        _log.warning("model %s: %r left out: %s", artifact.name, name, err)
        return False
    return True


def _gains(
    plain: onnxruntime.InferenceSession,
    others: Mapping[str, onnxruntime.InferenceSession],
    asked: Mapping[str, Array],
    sizes: tuple[int, int],
) -> dict[str, tuple[float, float]]:
    """How many times as fast each session is with a lone row and with a batch; rounds interleaved, medians."""
    runs = {name: _runs(session) for name, session in {"": plain, **others}.items()}
    gains = []
    for size, rounds in zip(sizes, (_LONE_ROUNDS, _BATCH_ROUNDS), strict=True):
        batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in asked.items()}
        times = {name: [_seconds(run, batch)] for name, run in runs.items()}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(_seconds(run, batch))
        medians = {name: float(np.median(taken[1:])) for name, taken in times.items()}  # the first run warms up
        gains.append({name: medians[""] / medians[name] for name in others})
    return {name: (gains[0][name], gains[1][name]) for name in others}


def _runs(session: onnxruntime.InferenceSession) -> Run:
    outputs = [output.name for output in session.get_outputs()]
    return lambda inputs: session.run(outputs, inputs)


def _seconds(run: Run, batch: Mapping[str, Array]) -> float:
    """Seconds of this thread's own time, which a neighbour on the same core does not lengthen."""
    started = time.thread_time()
    run(batch)
    return time.thread_time() - started
