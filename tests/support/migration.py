"""What docs/migrate.md says is there: an archive of TorchServe, a repository of Triton, networks and pictures."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

CLASSES = ("tench", "goldfish", "shark", "ray")
NETWORKS = """
import torch
from torch import nn

def fish():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 7, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(16, 4))
"""


def archived(content: dict[str, bytes], **model: str) -> dict[str, bytes]:
    """Return the files of an archive as torch-model-archiver 0.12 writes them; `model` is the manifest's entry."""
    manifest = {"createdOn": "26/11/2026 13:46:20", "runtime": "python", "model": model, "archiverVersion": "0.12.0"}
    return {**content, "MAR-INF/MANIFEST.json": json.dumps(manifest).encode()}


def make_folder(folder: Path) -> None:
    """Fill an empty folder."""
    (folder / "mynets.py").write_text(NETWORKS)
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "val" / name).mkdir(parents=True)
        noise = Image.fromarray(generator.integers(0, 256, (9, 11, 3), dtype=np.uint8))
        noise.resize((290, 300)).save(folder / f"val/{name}/0.png")
    _write_archive(folder)
    _write_repository(folder / "model_repository/digits/1")
    rows = generator.normal(size=(6, 4)).astype(str)
    (folder / "rows.csv").write_text("\n".join(",".join(row) for row in rows))


def _write_archive(folder: Path) -> None:
    import torch

    namespace: dict[str, object] = {}
    exec(NETWORKS, namespace)
    out = io.BytesIO()
    torch.save(namespace["fish"]().state_dict(), out)
    names = {str(number): name for number, name in enumerate(CLASSES)}
    content = {"model.py": NETWORKS.encode(), "w.pth": out.getvalue(), "index_to_name.json": json.dumps(names).encode()}
    stated = {"modelName": "fish", "serializedFile": "w.pth", "handler": "image_classifier", "modelFile": "model.py"}
    with zipfile.ZipFile(folder / "fish.mar", "w") as file:
        for name, data in archived(content, **stated, modelVersion="1.0").items():
            file.writestr(name, data)


def _write_repository(version: Path) -> None:
    version.mkdir(parents=True)
    weight = numpy_helper.from_array(np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n]) for name, n in (("x", 4), ("y", 3))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, version / "model.onnx")
    (version.parent / "config.pbtxt").write_text('name: "digits"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 8\n')
