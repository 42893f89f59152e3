"""Small real models in real version folders, for every test that needs something to serve.

Each `*_model` builds an ONNX graph, `publish` writes it with a manifest whose golden answers NumPy (or the plain
session) gave, in the shape that docs/architecture.md describes.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGE = {
    "input": "image", "height": 28, "width": 28, "channels": 1, "range": [0, 255],
    "polarity": "light-on-dark", "background": 0, "grey": "ITU-R 601",
}  # fmt: skip
DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64", "int32": "INT32", "float64": "FP64", "bool": "BOOL"}

Arrays = dict[str, np.ndarray]


def classifier_weights(seed: int = 0, channels: int = 6) -> Arrays:
    """Weights of a small convolutional classifier; the first convolution takes pixels 0 to 255."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape, scale: (rng.standard_normal(shape) * scale).astype(np.float32)  # noqa: E731
    weight = draw(10, channels * 14 * 14, scale=0.1)
    return {
        "conv.weight": draw(channels, 1, 5, 5, scale=1.5 / 255),
        "conv.bias": draw(channels, scale=0.1),
        "fc.weight": weight,
        "fc.bias": -weight.sum(axis=1) / 2,  # a sigmoid is 0.5 on average: no class wins everywhere
    }


def classifier_model(weights: Arrays | None = None, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """uint8 `image` [batch,1,28,28] -> conv, sigmoid, average pool, gemm -> `logits`, `probabilities`, `class_id`."""
    weights = classifier_weights() if weights is None else weights
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "conv.weight", "conv.bias"], ["conv"], pads=[2, 2, 2, 2]),
        helper.make_node("Sigmoid", ["conv"], ["sigmoid"]),
        helper.make_node("AveragePool", ["sigmoid"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool"], ["features"]),
        helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["class_id"], axis=1, keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 28, 28])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("class_id", TensorProto.INT64, ["batch", 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    stated = {"foldserve.format": "1", "foldserve.labels": json.dumps(LABELS), "foldserve.image": json.dumps(IMAGE)}
    return _model(graph, stated if metadata is None else metadata)


def echo_model(metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """int64 `identity` [batch,4] -> `echo`, the same numbers: a mixed-up answer shows at once."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["identity"], ["echo"])],
        "echo",
        [helper.make_tensor_value_info("identity", TensorProto.INT64, ["batch", 4])],
        [helper.make_tensor_value_info("echo", TensorProto.INT64, ["batch", 4])],
    )
    return _model(graph, {} if metadata is None else metadata)


def rows_model(outputs: Sequence[str], metadata: Mapping[str, str], width: int = 4) -> onnx.ModelProto:
    """float32 `row` [batch,width] -> each output the row itself, but `class_id` where its largest value is."""
    is_class = {name: name == "class_id" for name in outputs}
    return _model(
        helper.make_graph(
            [
                helper.make_node("ArgMax", ["row"], [name], axis=1, keepdims=1)
                if is_class[name]
                else helper.make_node("Identity", ["row"], [name])
                for name in outputs
            ],
            "rows",
            [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["batch", width])],
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", 1])
                if is_class[name]
                else helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
                for name in outputs
            ],
        ),
        metadata,
    )


def two_inputs_model() -> onnx.ModelProto:
    """float32 `left` and `right` [batch,3] -> `sum`: a foreign model, with none of our metadata."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["left", "right"], ["sum"])],
        "two_inputs",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("left", "right")],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 3])],
    )
    return _model(graph, {})


def _model(graph: onnx.GraphProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


def plain_session(path: Path) -> onnxruntime.InferenceSession:
    """The file as anybody would run it: the reference of the engine's tests."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def images(rows: int, seed: int = 1) -> np.ndarray:
    """Made-up images (rows, 1, 28, 28), uint8: grey squares of 7 x 7 pixels under noise."""
    rng = np.random.default_rng(seed)
    squares = np.kron(rng.integers(0, 200, (rows, 1, 4, 4)), np.ones((7, 7), np.int64))
    return (squares + rng.integers(0, 56, (rows, 1, 28, 28))).astype(np.uint8)


def classify(pixels: np.ndarray, weights: Arrays | None = None) -> Arrays:
    """The classifier in NumPy and float64, rounded once: the independent reference."""
    weights = classifier_weights() if weights is None else weights
    kernel, bias = weights["conv.weight"].astype(np.float64), weights["conv.bias"].astype(np.float64)
    padded = np.pad(pixels[:, 0].astype(np.float64), ((0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    conv = np.einsum("nhwij,cij->nchw", windows, kernel[:, 0]) + bias[None, :, None, None]
    sigmoid = 1 / (1 + np.exp(-conv))
    pool = sigmoid.reshape(*sigmoid.shape[:2], 14, 2, 14, 2).mean(axis=(3, 5))
    logits = pool.reshape(len(pixels), -1) @ weights["fc.weight"].astype(np.float64).T + weights["fc.bias"]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {
        "logits": logits.astype(np.float32),
        "probabilities": (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32),
        "class_id": logits.argmax(axis=1)[:, None].astype(np.int64),
    }


def encode(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Tensors as the manifest holds them."""
    return {
        name: {
            "datatype": DATATYPES[str(array.dtype)],
            "shape": list(array.shape),
            "data": base64.b64encode(np.ascontiguousarray(array)).decode(),
        }
        for name, array in arrays.items()
    }


def publish(
    root: Path,
    name: str,
    model: onnx.ModelProto,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    *,
    version: int = 1,
) -> Path:
    """Write the version folder and return it; `rewrite_manifest` changes it afterwards."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    manifest = {
        "format": 1,
        "name": name,
        "version": version,
        "created": "2026-01-01T00:00:00Z",
        "files": {"model.onnx": file_entry(folder / "model.onnx")},
        "golden": {"inputs": encode(inputs), "outputs": encode(outputs), "tolerance": {"cpu": 1e-5, "cuda": 1e-4}},
        "accuracy": {"test": 0.9},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def file_entry(path: Path) -> dict[str, Any]:
    """What the manifest says about a file."""
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Replace top-level keys of a manifest; None removes one."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def publish_classifier(root: Path, name: str = "fashion", *, version: int = 1, seed: int = 0, **options: Any) -> Path:
    """A labelled image classifier whose golden answers NumPy gave in float64."""
    weights = classifier_weights(seed)
    asked = images(16, seed=7)
    model = classifier_model(weights, **options)
    return publish(root, name, model, {"image": asked}, classify(asked, weights), version=version)


def publish_echo(root: Path, name: str = "echo", *, version: int = 1) -> Path:
    """A model whose answer is its question."""
    asked = np.arange(64, dtype=np.int64).reshape(16, 4)
    return publish(root, name, echo_model(), {"identity": asked}, {"echo": asked}, version=version)


def publish_two_inputs(root: Path, name: str = "sum", *, version: int = 1) -> Path:
    """A foreign model of two inputs."""
    left, right = np.random.default_rng(3).standard_normal((2, 16, 3)).astype(np.float32)
    return publish(
        root, name, two_inputs_model(), {"left": left, "right": right}, {"sum": left + right}, version=version
    )


def publish_rows(root: Path, name: str, outputs: Sequence[str], metadata: Mapping[str, str], width: int = 4) -> Path:
    """A model whose answers are its rows, of whatever task the metadata states."""
    asked = np.random.default_rng(5).random((16, width)).astype(np.float32)
    answers = {output: asked.argmax(axis=1)[:, None] if output == "class_id" else asked for output in outputs}
    return publish(root, name, rows_model(outputs, metadata, width), {"row": asked}, answers)
