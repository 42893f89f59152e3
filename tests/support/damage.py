"""What can be wrong with a version folder: each a change to a sound one, with part of the sentence that refuses it.

Damage on the way (the manifest catches it) and models that were published as they are (only looking at them does):
for the latter the manifest is written anew, so that every digest is right.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support import artifacts


def republish(folder: Path, model: onnx.ModelProto | bytes) -> None:
    """Another model in the place of the first, under a manifest that knows it."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    artifacts.rewrite_manifest(folder, files={"model.onnx": artifacts.file_entry(folder / "model.onnx")})


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    """A damage that edits the graph."""

    def damage(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        change(model)
        republish(folder, model)

    return damage


def edited(change: Callable[[bytearray], bytes | bytearray]) -> Callable[[Path], None]:
    """A damage that edits the bytes on the way: the manifest does not know."""

    def damage(folder: Path) -> None:
        path = folder / "model.onnx"
        path.write_bytes(change(bytearray(path.read_bytes())))

    return damage


def flip(data: bytearray) -> bytearray:
    data[len(data) // 2] ^= 0x10
    return data


def weights(model: onnx.ModelProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(item for item in model.graph.initializer if item.name == "fc.bias")
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), "fc.bias"))


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"


def widen_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 27


def huge_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 2**62


def nine_labels(model: onnx.ModelProto) -> None:
    entry = next(item for item in model.metadata_props if item.key == "foldserve.labels")
    entry.value = json.dumps(artifacts.LABELS[:9])


def future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def custom_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    node = next(item for item in model.graph.node if item.op_type == "Sigmoid")
    node.domain, node.op_type = "com.example", "Mystery"


def norm_in_training_mode(model: onnx.ModelProto) -> None:
    """A norm between convolution and sigmoid that would compute the statistics of each batch."""
    channels = 6
    for name, value in (("scale", 1), ("shift", 0), ("mean", 0), ("var", 1)):
        array = np.full(channels, value, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    node = helper.make_node(
        "BatchNormalization", ["conv", "scale", "shift", "mean", "var"], ["normed", "", ""], training_mode=1
    )
    sigmoid = next(item for item in model.graph.node if item.op_type == "Sigmoid")
    sigmoid.input[0] = "normed"
    model.graph.node.insert(2, node)


def external(location: str) -> Callable[[onnx.ModelProto], None]:
    def damage(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return damage


def link_to_another_file(folder: Path) -> None:
    elsewhere = folder.parent.parent.parent / "elsewhere.onnx"
    (folder / "model.onnx").rename(elsewhere)
    (folder / "model.onnx").symlink_to(elsewhere)


def link_to_a_folder(folder: Path) -> None:
    """Everything is where it should be, except that it is elsewhere."""
    elsewhere = folder.parent.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (folder / "manifest.json").rename(elsewhere / "manifest.json")
    (folder / "manifest.json").symlink_to(elsewhere / "manifest.json")


def pipe_for_a_file(name: str) -> Callable[[Path], None]:
    """Opening it would block for ever."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def folder_for_a_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


def rename_output(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "probabilities" else name for name in node.output]
    model.graph.output[1].name = "scores"


def float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def fixed_batch(model: onnx.ModelProto) -> None:
    """Batches of 300, more than any run has."""
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 300


def norm_of_an_old_opset_in_training_mode(model: onnx.ModelProto) -> None:
    """Before opset 14 a norm says so by giving its batch's statistics out."""
    norm_in_training_mode(model)
    node = next(item for item in model.graph.node if item.op_type == "BatchNormalization")
    del node.attribute[:]
    node.output[1:] = ["running_mean", "running_var", "saved_mean", "saved_var"]
    model.opset_import[0].version = 13


def lie_about_a_digest(folder: Path) -> None:
    entry = artifacts.file_entry(folder / "model.onnx") | {"sha256": "0" * 64}
    artifacts.rewrite_manifest(folder, files={"model.onnx": entry})


def lie_about_a_shape(folder: Path) -> None:
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    golden["outputs"]["probabilities"]["shape"] = [16, 5]
    artifacts.rewrite_manifest(folder, golden=golden)


def ask_for_everything_to_pass(folder: Path) -> None:
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    artifacts.rewrite_manifest(folder, golden=golden | {"tolerance": {"cpu": 1e9, "cuda": 1e9}})


def another_graph(folder: Path) -> None:
    """A model that does what it says and is not the one whose answers the manifest holds."""
    republish(folder, artifacts.classifier_model(artifacts.classifier_weights(9)))


def lie_about_answers(folder: Path) -> None:
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    golden["outputs"]["class_id"] = artifacts.encode({"x": np.zeros((16, 1), np.int64)})["x"]
    artifacts.rewrite_manifest(folder, golden=golden)


BAD_VERSIONS = {
    "half of it": (edited(lambda data: data[: len(data) // 2]), "bytes, its manifest says"),
    "one byte less": (edited(lambda data: data[:-1]), "bytes, its manifest says"),
    "empty": (edited(lambda data: b""), "has 0 bytes"),
    "an HTML page": (edited(lambda data: b"<!DOCTYPE html><html>404"), "has 24 bytes"),
    "an HTML page of the right digest": (lambda folder: republish(folder, b"<!DOCTYPE html>"), "is not an ONNX model"),
    "a flipped weight bit": (edited(flip), "has SHA-256"),
    "a flipped bit of the graph": (edited(lambda data: data[:9] + bytes([data[9] ^ 2]) + data[10:]), "has SHA-256"),
    "NaN weights": (changed(lambda m: weights(m, lambda w: w * np.nan)), "holds NaN or infinity"),
    "weights a little off": (changed(lambda m: weights(m, lambda w: w + 0.01)), "is off by"),
    "another model": (another_graph, "is off by"),
    "a wrong input name": (changed(rename_input), "golden inputs|states input"),
    "a wrong output name": (changed(rename_output), "golden outputs"),
    "a wrong datatype": (changed(float_input), "golden inputs|cannot be loaded|states input"),
    "a batch of fixed size": (changed(fixed_batch), "batches of exactly 300 rows|cannot be loaded"),
    "a wrong shape": (changed(widen_input), "cannot be loaded|states input"),
    "a huge dimension": (changed(huge_input), "cannot be loaded|states input"),
    "nine labels for ten classes": (changed(nine_labels), "names 9 classes"),
    "a future opset": (changed(future_opset), "cannot be loaded"),
    "an unknown operator": (changed(custom_operator), "com.example"),
    "a norm in training mode": (changed(norm_in_training_mode), "training"),
    "a norm in training mode before opset 14": (changed(norm_of_an_old_opset_in_training_mode), "training"),
    "weights in a file that is missing": (changed(external("weights.bin")), "keeps weights in another file"),
    "weights outside the folder": (changed(external("../../../../etc/passwd")), "keeps weights in another file"),
    "weights at an absolute path": (changed(external("/etc/passwd")), "keeps weights in another file"),
    "a link": (link_to_another_file, "not a regular file"),
    "a manifest behind a link": (link_to_a_folder, "not a regular file"),
    "a pipe": (pipe_for_a_file("model.onnx"), "not a regular file"),
    "a pipe for a manifest": (pipe_for_a_file("manifest.json"), "not a regular file"),
    "a folder for a file": (folder_for_a_file, "not a regular file"),
    "a file too few": (lambda folder: (folder / "model.onnx").unlink(), "its manifest lists"),
    "a file too many": (lambda folder: (folder / "x.bin").write_bytes(b"x"), "its manifest lists"),
    "a manifest of another version": (lambda folder: artifacts.rewrite_manifest(folder, version=7), "version is 7"),
    "a manifest that lies about answers": (lie_about_answers, "expected 0 (16 of 16"),
    "a manifest that lies about a digest": (lie_about_a_digest, "its manifest says 0000"),
    "a manifest that lies about a shape": (lie_about_a_shape, "cannot be decoded"),
    "a manifest that lets everything pass": (ask_for_everything_to_pass, "golden tolerance"),
    "a manifest cut off": (lambda folder: os.truncate(folder / "manifest.json", 99), "cannot be read as JSON"),
    "a manifest without answers": (lambda folder: artifacts.rewrite_manifest(folder, golden=None), "no golden section"),
    "no manifest": (lambda folder: os.unlink(folder / "manifest.json"), "manifest.json"),
}  # fmt: skip
