"""Graphs as other exporters write them by default, made here node by node."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

INFO = helper.make_tensor_value_info


def zipmap(classes: list[str] | list[int], *, label_rows: int | None = None, opset: bool = True) -> onnx.ModelProto:
    """float `X` [?, 4] -> LinearClassifier, Normalizer, ZipMap -> `output_label`, `output_probability`: scikit-learn's.

    Args:
        classes: of the classifier.
        label_rows: what the label's first axis is declared as; LightGBM's exporter writes 1.
        opset: whether the model imports ONNX's own operators beside those for machine learning.
    """
    rng = np.random.default_rng(0)
    key = "classlabels_strings" if isinstance(classes[0], str) else "classlabels_int64s"
    kind, declared = (TensorProto.STRING, str) if isinstance(classes[0], str) else (TensorProto.INT64, int)
    names = {"classlabels_strings" if declared is str else "classlabels_ints": classes}
    nodes = [
        helper.make_node(
            "LinearClassifier", ["X"], ["output_label", "scores"], domain="ai.onnx.ml", post_transform="SOFTMAX",
            coefficients=rng.normal(size=4 * len(classes)).tolist(), intercepts=[0.0] * len(classes), **names,
        ),
        helper.make_node("Normalizer", ["scores"], ["probabilities"], domain="ai.onnx.ml", norm="L1"),
        helper.make_node("ZipMap", ["probabilities"], ["output_probability"], domain="ai.onnx.ml", **{key: classes}),
    ]  # fmt: skip
    values = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    maps = helper.make_value_info("output_probability", helper.make_sequence_type_proto(values))
    graph = helper.make_graph(
        nodes, "linear", [INFO("X", TensorProto.FLOAT, [None, 4])], [INFO("output_label", kind, [label_rows]), maps]
    )
    imports = [helper.make_opsetid("ai.onnx.ml", 1)] + ([helper.make_opsetid("", 15)] if opset else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def texts() -> onnx.ModelProto:
    """string `c` [?, 1] and float `x` [?, 2] -> one-hot of the text beside the numbers: a pipeline of columns."""
    nodes = [
        helper.make_node("OneHotEncoder", ["c"], ["hot"], domain="ai.onnx.ml", cats_strings=["a", "bé"], zeros=1),
        helper.make_node("Reshape", ["hot", "shape"], ["flat"]),
        helper.make_node("Concat", ["flat", "x"], ["row"], axis=1),
        helper.make_node("Identity", ["c"], ["same"]),
    ]
    graph = helper.make_graph(
        nodes,
        "texts",
        [INFO("c", TensorProto.STRING, [None, 1]), INFO("x", TensorProto.FLOAT, [None, 2])],
        [INFO("row", TensorProto.FLOAT, [None, 4]), INFO("same", TensorProto.STRING, [None, 1])],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 2])],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8
    )


def free_axes(batch: int | str | None = None, *, written: int | str | None = None) -> onnx.ModelProto:
    """float `x` [batch, 3, ?, ?] -> a convolution and the mean of each column, `y` [batch, 2, ?]: OCR-like.

    Args:
        batch: the first axis.
        written: how a free axis is written; paddle2onnx writes -1.
    """
    weight = np.random.default_rng(3).normal(size=(2, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["conv"], ["y"], axes=[2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "free",
        [INFO("x", TensorProto.FLOAT, [batch, 3, written, written])],
        [INFO("y", TensorProto.FLOAT, [batch, 2, written])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def save(root: Path, name: str, model: onnx.ModelProto, version: int = 1) -> Path:
    """Put a model where a folder of models has it, without a manifest."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder
