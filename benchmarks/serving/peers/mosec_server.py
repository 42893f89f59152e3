"""mosec: a Rust front end, batches of up to 64 after at most 2 ms; `BENCH_FORM` chooses bytes or JSON."""

import os

import numpy as np
from mosec import Server, Worker

from benchmarks.serving.peers.session import classify, open_session


class Json(Worker):
    """JSON in, JSON out: mosec's own default."""

    def __init__(self):
        self.session = open_session()

    def forward(self, data):
        """Classify a batch."""
        images = np.array([item["instances"][0] for item in data], np.uint8).reshape(-1, 1, 28, 28)
        return [{"predictions": [row]} for row in classify(self.session, images)]


class Binary(Worker):
    """Bytes in, JSON out."""

    def __init__(self):
        self.session = open_session()

    def deserialize(self, data):
        """Take the bytes as they are."""
        return np.frombuffer(data, np.uint8)

    def forward(self, data):
        """Classify a batch."""
        images = np.stack(data).reshape(-1, 1, 28, 28)
        return [{"predictions": [row]} for row in classify(self.session, images)]


if __name__ == "__main__":
    server = Server()
    worker = Json if os.environ["BENCH_FORM"] == "json" else Binary
    server.append_worker(worker, num=int(os.environ["BENCH_WORKERS"]), max_batch_size=64, max_wait_time=2)
    server.run()
