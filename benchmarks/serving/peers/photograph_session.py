"""What the peers that take photographs share: Pillow, torchvision's transforms, and the same graph in onnxruntime."""

import io
import os
import sys
from types import ModuleType

import numpy as np
import onnxruntime
import torch
from PIL import Image

_OPERATORS = "torchvision._meta_registrations"
# Transforms need none of the operators in C++, which a wheel for another torch does not register.
sys.modules.setdefault(_OPERATORS, ModuleType(_OPERATORS))

from torchvision import transforms  # noqa: E402 - after what keeps it from refusing

torch.set_num_threads(1)
SIDES = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])


def open_session() -> onnxruntime.InferenceSession:
    """Open the model file that `BENCH_MODEL` names, with as many threads as a worker has cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, (os.cpu_count() or 1) // int(os.environ["BENCH_WORKERS"]))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])


def pixels(file: bytes) -> np.ndarray:
    """Return a picture as the network takes it, uint8 (1, 3, 224, 224); normalisation stands in the graph."""
    return SIDES(Image.open(io.BytesIO(file)).convert("RGB")).numpy()[None]


def classify(session: onnxruntime.InferenceSession, images: np.ndarray) -> list[dict[str, object]]:
    """Run one batch and return what each peer answers for each picture."""
    (given,) = session.get_inputs()
    probabilities, class_ids = session.run(["probabilities", "class_id"], {given.name: images})
    return [
        {"class_id": int(class_id), "probability": float(row.max())}
        for class_id, row in zip(class_ids[:, 0], probabilities, strict=True)
    ]
