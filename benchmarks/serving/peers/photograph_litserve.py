"""Photographs by LitServe: uploads as forms, decoded in the workers, batches of up to `BENCH_BATCH`."""

import os

import litserve
import numpy as np

from benchmarks.serving.peers.photograph_session import classify, open_session, pixels


class Classifier(litserve.LitAPI):
    """The model behind LitServe's own hooks."""

    def setup(self, device):
        """Open the model in the worker."""
        self.session = open_session()

    def decode_request(self, request):
        """Decode the uploaded file."""
        return pixels(request["file"].file.read())

    def batch(self, inputs):
        """Join pictures."""
        return np.concatenate(inputs)

    def predict(self, batch):
        """Classify a batch; without batching one picture comes alone."""
        return classify(self.session, batch)

    def unbatch(self, output):
        """Give each request its own."""
        return [[one] for one in output]

    def encode_response(self, output):
        """Answer as the others do."""
        return {"predictions": output}


if __name__ == "__main__":
    batch = int(os.environ.get("BENCH_BATCH", "1"))
    api = Classifier(max_batch_size=batch, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(os.environ["BENCH_WORKERS"]))
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="error")
