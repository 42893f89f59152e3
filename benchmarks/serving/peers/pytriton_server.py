"""PyTriton: Triton's own C++ front end before a Python callable; raw bytes, a batch window of at most 2 ms."""

import os

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.serving.peers.session import open_session

session = open_session()


@batch
def classify(image):
    """Classify a batch."""
    probabilities, class_id = session.run(["probabilities", "class_id"], {"image": image})
    return {"probabilities": probabilities, "class_id": class_id}


if __name__ == "__main__":
    port = int(os.environ["BENCH_PORT"])
    config = TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="lenet",
            infer_func=[classify] * int(os.environ["BENCH_WORKERS"]),
            inputs=[Tensor(name="image", dtype=np.uint8, shape=(1, 28, 28))],
            outputs=[
                Tensor(name="probabilities", dtype=np.float32, shape=(10,)),
                Tensor(name="class_id", dtype=np.int64, shape=(1,)),
            ],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=2_000)),
            strict=False,
        )
        triton.serve()
