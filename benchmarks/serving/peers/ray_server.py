"""Ray Serve: JSON, batches of up to 64 after at most 2 ms; its own limit of five requests a replica is lifted."""

import os
import signal

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.peers.session import classify, open_session

WORKERS = int(os.environ["BENCH_WORKERS"])


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Classifier:
    """The model as a deployment."""

    def __init__(self):
        self.session = open_session()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def predict(self, images: list) -> list:
        """Classify a batch."""
        return classify(self.session, np.array(images, np.uint8).reshape(-1, 1, 28, 28))

    async def __call__(self, request: Request) -> dict:
        """Answer one request."""
        body = await request.json()
        return {"predictions": [await self.predict(body["instances"][0])]}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    serve.run(Classifier.bind(), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
