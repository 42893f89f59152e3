"""A classifier of pictures with a recipe of its own, published with golden pictures, and the same in NumPy."""

import base64
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foldserve.format import metadata
from foldserve.format.golden_files import GoldenFile
from foldserve.format.image import ImageRecipe
from foldserve.pictures import decode
from tests.support import artifacts

LABELS = ("rose", "tulip", "daisy", "iris")


def weight(recipe: ImageRecipe) -> np.ndarray:
    if recipe.is_free:
        return (np.random.default_rng(0).standard_normal((recipe.channels, len(LABELS))) / 50).astype(np.float32)
    values = int(np.prod(recipe.shape))
    return (np.random.default_rng(0).standard_normal((values, len(LABELS))) / values / 10).astype(np.float32)


def model(recipe: ImageRecipe) -> onnx.ModelProto:
    """uint8 rows in the recipe's layout -> flatten, gemm -> `logits`, `probabilities`, `class_id`.

    Of pictures of any size the mean colour takes the place of the pixels.
    """
    axes = [2, 3] if recipe.layout == "CHW" else [1, 2]
    reduced = helper.make_node("ReduceMean", ["pixels"], ["features"], axes=axes, keepdims=0)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        reduced if recipe.is_free else helper.make_node("Flatten", ["pixels"], ["features"]),
        helper.make_node("MatMul", ["features", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["class_id"], axis=1, keepdims=1),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "pictures",
        [info("image", TensorProto.UINT8, ["batch", *(None if size < 0 else size for size in recipe.shape)])],
        [
            info("logits", TensorProto.FLOAT, ["batch", len(LABELS)]),
            info("probabilities", TensorProto.FLOAT, ["batch", len(LABELS)]),
            info("class_id", TensorProto.INT64, ["batch", 1]),
        ],
        [numpy_helper.from_array(weight(recipe), "weight")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, {"foldserve.labels": json.dumps(LABELS)} | metadata.describe_image(recipe))
    return made


def classify(pixels: np.ndarray, recipe: ImageRecipe) -> dict[str, np.ndarray]:
    """The same in float64, rounded once."""
    features = pixels.reshape(len(pixels), -1).astype(np.float64)
    if recipe.is_free:
        features = pixels.astype(np.float64).mean(axis=(2, 3) if recipe.layout == "CHW" else (1, 2))
    logits = features @ weight(recipe).astype(np.float64)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {
        "logits": logits.astype(np.float32),
        "probabilities": (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32),
        "class_id": logits.argmax(axis=1)[:, None],
    }


def publish(root: Path, name: str, recipe: ImageRecipe, files: tuple[GoldenFile, ...]) -> Path:
    """Write a version whose golden questions are pictures."""
    rows = np.stack([decode(file.content, recipe) for file in files])
    folder = artifacts.publish(root, name, model(recipe), {}, classify(rows, recipe))
    stated = json.loads((folder / "manifest.json").read_text())["golden"]
    artifacts.rewrite_manifest(folder, golden=stated | {"files": [file.as_dict() for file in files]})
    return folder


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}
