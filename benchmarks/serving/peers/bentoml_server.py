"""BentoML: JSON, its adaptive batching up to 64 with a target of 100 ms."""

import os

import bentoml
import numpy as np

from benchmarks.serving.peers.session import classify, open_session


@bentoml.service(workers=int(os.environ.get("BENCH_WORKERS", "1")), metrics={"enabled": False})
class Classifier:
    """The model behind one batchable method."""

    def __init__(self):
        self.session = open_session()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=100)
    def predict(self, instances: list[list[int]]) -> list[dict]:
        """Classify a batch."""
        return classify(self.session, np.array(instances, np.uint8).reshape(-1, 1, 28, 28))
