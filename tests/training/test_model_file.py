"""The model file: it states its own interface, keeps every parameter bit, and does not know where it was made."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from foldserve.format.image import first_format_recipe
from foldserve.format.metadata import describe
from foldserve.training.config import Recipe
from foldserve.training.errors import ExportError
from foldserve.training.model import build
from foldserve.training.model_file import export, to_bytes, weights_digest
from foldserve.training.pipeline import fold_network

ROOT = Path(__file__).parents[2]

METADATA = describe(
    labels=tuple("abcdefghij"),
    image=first_format_recipe(28, 28, 1),
    recipe={"preset": "book", "epochs": 10},
    seed=7,
    data={"train": "0" * 64},
    statistics="population",
    revision="unknown",
)


def lenet_without_norms() -> nn.Sequential:
    """Return the book's network as a fold leaves it: no norms, a bias everywhere."""
    torch.manual_seed(0)
    pool = nn.AvgPool2d(2, 2)
    body = [nn.Conv2d(1, 6, 5), nn.Identity(), nn.Sigmoid(), pool, nn.Conv2d(6, 16, 5), nn.Sigmoid(), pool]
    head = [nn.Flatten(), nn.Linear(256, 120), nn.Identity(), nn.Sigmoid(), nn.Linear(120, 84), nn.Linear(84, 10)]
    return nn.Sequential(*body, *head).eval()


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return lenet_without_norms()


@pytest.fixture(scope="module")
def model(network: nn.Sequential) -> onnx.ModelProto:
    return export(network, metadata=METADATA)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])


def test_the_interface_is_read_back_by_the_runtime_as_documented(model: onnx.ModelProto) -> None:
    """onnxruntime, which shares no code with the exporter, sees names, types and a symbolic batch axis."""
    served = session(model)
    assert [(i.name, i.type, i.shape) for i in served.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", 1, 28, 28])
    ]
    assert [(o.name, o.type, o.shape) for o in served.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", 10]),
        ("probabilities", "tensor(float)", ["batch", 10]),
        ("class_id", "tensor(int64)", ["batch", 1]),
    ]


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_outputs_equal_the_network_for_any_batch_size(
    model: onnx.ModelProto, network: nn.Sequential, rows: int
) -> None:
    """What the graph answers is what PyTorch answers, with the softmax and the argmax that NumPy computes."""
    image = np.random.default_rng(rows).integers(0, 256, (rows, 1, 28, 28), dtype=np.uint8)
    logits, probabilities, class_id = session(model).run(None, {"image": image})
    with torch.no_grad():
        expected = network(torch.from_numpy(image).float()).numpy()
    powers = np.exp(expected.astype(np.float64) - expected.max(axis=1, keepdims=True))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(class_id, expected.argmax(axis=1)[:, None])


def test_initializers_are_the_parameters_bit_for_bit(model: onnx.ModelProto, network: nn.Sequential) -> None:
    """Names and bits of every parameter survive the export, and nothing but a shape constant is added."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    expected = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    assert {name: found[name].tobytes() for name in expected} == {n: a.tobytes() for n, a in expected.items()}
    rest = [found[name] for name in found if name not in expected]
    assert [(array.dtype.name, array.tolist()) for array in rest] == [("int64", [-1, 256])]


def test_the_graph_holds_nothing_but_the_network(model: onnx.ModelProto) -> None:
    """Layer by layer the published network, between one cast and softmax and argmax; no shape arithmetic."""
    body = ["Conv", "Sigmoid", "AveragePool"] * 2 + ["Reshape", "Gemm", "Sigmoid", "Gemm", "Gemm"]
    assert [node.op_type for node in model.graph.node] == ["Cast", *body, "Softmax", "ArgMax"]


def test_no_path_of_the_exporting_machine_is_left(model: onnx.ModelProto) -> None:
    """Neither a source path nor a stack trace stands anywhere in the file."""
    content = to_bytes(model)
    for trace in (str(ROOT), str(Path.home()), "stack_trace", "site-packages", ".py", "pkg.torch"):
        assert trace.encode() not in content


def test_the_same_weights_give_the_same_bytes_elsewhere(model: onnx.ModelProto, tmp_path: Path) -> None:
    """Another process, working folder, source folder and hash seed produce the identical file."""
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    (copy / "their_test_model_file.py").write_text(Path(__file__).read_text())
    program = (
        "import hashlib, warnings; warnings.simplefilter('ignore'); import their_test_model_file as t;"
        "print(hashlib.sha256(t.to_bytes(t.export(t.lenet_without_norms(), metadata=t.METADATA))).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{copy}", "PYTHONHASHSEED": "123"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=copy, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(to_bytes(model)).hexdigest()


def test_the_committed_version_is_exported_again_as_it_is() -> None:
    """From the weights in models/lenet-bn/1 comes the graph that is in the repository, metadata included."""
    committed = onnx.load(ROOT / "models/lenet-bn/1/model.onnx")
    metadata = {entry.key: entry.value for entry in committed.metadata_props}
    network = build(Recipe(**json.loads(metadata["foldserve.recipe"]))).eval()
    folded, _ = fold_network(network, np.random.default_rng(0).integers(0, 256, (8, 1, 28, 28), dtype=np.uint8))
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in committed.graph.initializer}
    folded.load_state_dict({name: weights[name] for name in folded.state_dict()})
    assert export(folded, metadata=metadata) == committed


def test_the_model_describes_itself(model: onnx.ModelProto) -> None:
    """Labels, recipe, seed, data and the digest of the weights can be read from the file alone."""
    properties = session(model).get_modelmeta().custom_metadata_map
    assert json.loads(properties["foldserve.labels"]) == list("abcdefghij")
    assert json.loads(properties["foldserve.recipe"]) == {"epochs": 10, "preset": "book"}
    assert json.loads(properties["foldserve.image"])["height"] == 28
    assert (properties["foldserve.format"], properties["foldserve.seed"]) == ("1", "7")
    assert (properties["foldserve.statistics"], properties["foldserve.revision"]) == ("population", "unknown")
    assert properties["foldserve.weights"] == weights_digest(model)


def test_the_digest_of_the_weights_is_the_documented_one(model: onnx.ModelProto) -> None:
    """Computed anew from the contract's words, and changed by a change in one bit."""
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        dtype = {onnx.TensorProto.FLOAT: b"float32", onnx.TensorProto.INT64: b"int64"}[tensor.data_type]
        shape = ",".join(map(str, tensor.dims)).encode()
        digest.update(tensor.name.encode() + b"\0" + dtype + b"\0" + shape + b"\0" + tensor.raw_data)
    assert weights_digest(model) == digest.hexdigest()
    changed = onnx.ModelProto.FromString(to_bytes(model))
    raw = bytearray(changed.graph.initializer[0].raw_data)
    raw[0] ^= 1
    changed.graph.initializer[0].raw_data = bytes(raw)
    assert weights_digest(changed) != digest.hexdigest()


def test_another_image_shape_and_class_count_are_taken_as_they_are() -> None:
    """Nothing in the export is bound to 28 by 28 grey images or to ten classes."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 14, 3)).eval()
    exported = export(network, metadata={}, image_shape=(3, 32, 16))
    (logits, _, class_id) = session(exported).run(None, {"image": np.zeros((5, 3, 32, 16), np.uint8)})
    assert (logits.shape, class_id.shape) == ((5, 3), (5, 1))


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_two_parameters_of_equal_value_are_no_error(bias: float) -> None:
    """The exporter stores equal tensors once and drops a bias of zeros; that changes no answer and is accepted."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    nn.init.constant_(network[1].bias, bias)
    nn.init.constant_(network[3].bias, bias)
    assert export(network, metadata={}, image_shape=(1, 2, 2)).graph.initializer


def test_a_network_in_training_mode_is_refused() -> None:
    """Training mode would export what was never meant to be served."""
    with pytest.raises(ExportError, match="training mode"):
        export(lenet_without_norms().train(), metadata=METADATA)


def test_a_norm_that_was_left_is_refused() -> None:
    """A norm that the exporter would fold by its own float32 rules is noticed by the changed parameters."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 36, 10)).eval()
    network[1].running_mean.fill_(0.3)
    with pytest.raises(ExportError, match=r"0\.weight|BatchNormalization"):
        export(network, metadata=METADATA, image_shape=(1, 8, 8))


def test_labels_that_do_not_match_the_outputs_are_refused(network: nn.Sequential) -> None:
    """One label too few would name the classes wrongly for ever."""
    with pytest.raises(ExportError, match="9 labels for 10 outputs"):
        export(network, metadata={**METADATA, "foldserve.labels": json.dumps(list("abcdefghi"))})


def test_a_network_that_does_not_fit_the_images_is_refused_in_one_sentence(network: nn.Sequential) -> None:
    """The message names the shape of the images and stays on one line."""
    with pytest.raises(ExportError, match=r"\(2, 1, 4, 4\)") as caught:
        export(network, metadata=METADATA, image_shape=(1, 4, 4))
    assert "\n" not in str(caught.value)
