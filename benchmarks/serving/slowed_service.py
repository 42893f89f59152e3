"""The service with an engine slowed to 2,000 images a second, so that a load generator beside it can keep up.

    python -m benchmarks.serving.slowed_service --port 8000 --models-dir models

Every run of n rows takes at least n / 2000 seconds; everything else is the service as it is.
"""

import sys
import time
from collections.abc import Mapping

from foldserve.service.command import main
from foldserve.service.engines.runners import PlainRunner
from foldserve.service.tensors import Array

ROWS_PER_SECOND = 2_000

run_at_full_speed = PlainRunner.run


def run_slowly(self: PlainRunner, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a batch, then wait for the rest of its time."""
    ends = time.perf_counter() + len(next(iter(inputs.values()))) / ROWS_PER_SECOND
    outputs = run_at_full_speed(self, inputs)
    time.sleep(max(0.0, ends - time.perf_counter()))
    return outputs


if __name__ == "__main__":
    PlainRunner.run = run_slowly  # type: ignore[method-assign]
    sys.exit(main())
