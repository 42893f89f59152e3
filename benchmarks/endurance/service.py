"""The service with one thing about it changed on purpose, in every worker, so that a check has something to find.

    BENCH_CHANGE=slowed,leaking python -m benchmarks.endurance.service --port 8000 --models-dir models

slowed: 2,000 rows a second and worker (`slowed_service.py`). leaking: a hundred bytes stay behind for every row.
lying: one batch in five hundred is answered for other pixels. noting: it writes how many requests it has run though
their client had gone while they waited, to the file in BENCH_NOTES. Workers read this file again when they start, and
so are changed too.
"""

import itertools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.serving.slowed_service import run_slowly
from foldserve.service.batching.batch import Batch, BatchEngine, BufferPool
from foldserve.service.command import main
from foldserve.service.engines.runners import PlainRunner
from foldserve.service.tensors import Array

LEAKED_BYTES = 100  # a row; with its header that is some 140 MiB for 10^6
LIES_EACH = 500  # batches

kept: list[bytes] = []
number = itertools.count(1)
notes = {"run": 0, "run_though_gone": 0}

plain_run, plain_batch = PlainRunner.run, Batch.run


def run_leaking(self: PlainRunner, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a batch and keep something of each of its rows."""
    kept.extend(bytes(LEAKED_BYTES) for _ in next(iter(inputs.values())))
    return plain_run(self, inputs)


def run_lying(self: PlainRunner, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a batch, and now and then answer for other pixels."""
    if next(number) % LIES_EACH == 0:
        inputs = {name: 255 - array for name, array in inputs.items()}
    return plain_run(self, inputs)


def run_noting(self: Batch, engine: BatchEngine, buffers: BufferPool) -> None:
    """Count the members that nobody waited for any more when their run began."""
    notes["run"] += len(self.requests)
    notes["run_though_gone"] += sum(request.is_over for request in self.requests)
    Path(os.environ["BENCH_NOTES"]).write_text(json.dumps(notes))
    plain_batch(self, engine, buffers)


changes = os.environ.get("BENCH_CHANGE", "").split(",")
if "leaking" in changes:
    PlainRunner.run = run_leaking  # type: ignore[method-assign]
if "lying" in changes:
    PlainRunner.run = run_lying  # type: ignore[method-assign]
if "noting" in changes:
    Batch.run = run_noting  # type: ignore[method-assign]
if "slowed" in changes:
    import benchmarks.serving.slowed_service as slowed

    slowed.run_at_full_speed = PlainRunner.run
    PlainRunner.run = run_slowly  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
