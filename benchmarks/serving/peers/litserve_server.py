"""LitServe: JSON, batches of up to 64 after at most 2 ms."""

import os

import litserve
import numpy as np

from benchmarks.serving.peers.session import classify, open_session


class Classifier(litserve.LitAPI):
    """The model behind LitServe's own hooks."""

    def setup(self, device):
        """Open the model in the worker."""
        self.session = open_session()

    def decode_request(self, request):
        """Take the pixels of the one image."""
        return np.array(request["instances"][0], np.uint8)

    def batch(self, inputs):
        """Stack images."""
        return np.stack(inputs).reshape(-1, 1, 28, 28)

    def predict(self, batch):
        """Classify a batch; without batching one image comes alone."""
        return classify(self.session, batch.reshape(-1, 1, 28, 28))

    def unbatch(self, output):
        """Give each request its own."""
        return output

    def encode_response(self, output):
        """Answer as the others do."""
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Classifier(max_batch_size=64, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(os.environ["BENCH_WORKERS"]))
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="error")
