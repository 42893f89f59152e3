"""The same model for every peer: one plain onnxruntime session on one thread, found by environment variable."""

import os

import numpy as np
import onnxruntime


def open_session() -> onnxruntime.InferenceSession:
    """Open the model file that `BENCH_MODEL` names, as the peers' users would."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])


def classify(session: onnxruntime.InferenceSession, images: np.ndarray) -> list[dict]:
    """Run one batch, uint8 (n, 1, 28, 28), and return what each peer answers for each image."""
    probabilities, class_ids = session.run(["probabilities", "class_id"], {"image": images})
    return [
        {"class_id": int(class_id), "probabilities": row.tolist()}
        for class_id, row in zip(class_ids[:, 0], probabilities, strict=True)
    ]
