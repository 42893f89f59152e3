"""Networks of one's own, published and asked over HTTP, each compared with the original in its own framework."""

import copy
import io
import json
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from foldserve import publish
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from foldserve.training.command import main
from foldserve.training.errors import ArtifactError, ConfigError, ExportError, GateError, VerifyError
from foldserve.training.model_file import weights_digest
from foldserve.training.reverify import reverify, version_folder
from foldserve.training.user_model.source import as_source
from tests.support.live import serve
from tests.support.vision import library

CLASSES = ["daisy", "rose", "tulip"]
LIMIT = 2e-5  # of a probability: float32 on both sides


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network as a training leaves it: every norm with statistics and an affine of its own."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator)

    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.copy_(drawn(part.running_mean) - 0.5)
            part.running_var.copy_(drawn(part.running_var) + 0.5)
            part.weight.data.copy_(drawn(part.weight) + 0.5)
            part.bias.data.copy_(drawn(part.bias) - 0.5)
    return network.eval()


def small_cnn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2)]
    return trained(nn.Sequential(*body, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, 3)))


def resnet() -> nn.Module:
    torch.manual_seed(2)
    return trained(library("torchvision.models").resnet18(weights=None, num_classes=3))


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return trained(nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)))


class Pair(NamedTuple):
    total: torch.Tensor
    ratio: torch.Tensor


class TwoHeads(nn.Module):
    """Two inputs, a named tuple of two outputs."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> Pair:
        return Pair(left + right, left.sum(1) / (1 + right.abs().sum(1)))


def two_inputs() -> onnx.ModelProto:
    """Return an ONNX model that no exporter of ours made."""
    weight = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["a", "w"], ["x"]), helper.make_node("Add", ["x", "b"], ["y"])]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("a", 3), ("b", 2), ("y", 2))]
    graph = helper.make_graph(nodes, "two", values[:2], values[2:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def line_reader() -> onnx.ModelProto:
    """Return float `x` [-1, 3, 48, -1] -> `softmax` [-1, -1, 5]: a step for every four columns, as PaddleOCR has it."""
    rng = np.random.default_rng(7)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.normal(size=shape) / 4).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[4, 4], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["columns"], axes=[2], keepdims=0),
        helper.make_node("Transpose", ["columns"], ["steps"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["steps", "head"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["softmax"], axis=2),
    ]
    constants = [weights("w", 8, 3, 4, 4), *(weights(name, 8) for name in "sbm"), weights("head", 8, 5)]
    constants.append(numpy_helper.from_array(np.full(8, 0.7, np.float32), "v"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 3, 48, -1])
    y = helper.make_tensor_value_info("softmax", TensorProto.FLOAT, [-1, -1, 5])
    graph = helper.make_graph(nodes, "line", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


LINE_RECIPE = "height=48,width=-1,channels=3,mean=half,std=half,colour=BGR"


def line(width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (48, width, 3), dtype=np.uint8))


LINEAR = np.random.default_rng(5).normal(size=(5, 3)).astype(np.float32)


def linear() -> onnx.ModelProto:
    """Return rows of five numbers times LINEAR."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 5), ("y", 3))
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "linear", values[:1], values[1:], [numpy_helper.from_array(LINEAR, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def forest() -> onnx.ModelProto:
    """Return two trees of one split each, written as scikit-learn is, with a ZipMap."""
    options: dict[str, Any] = {
        "nodes_treeids": [0, 0, 0, 1, 1, 1], "nodes_nodeids": [0, 1, 2, 0, 1, 2],
        "nodes_featureids": [0, 0, 0, 1, 0, 0],
        "nodes_values": [0.5, 0.0, 0.0, -0.25, 0.0, 0.0], "nodes_hitrates": [1.0] * 6,
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"] * 2, "nodes_truenodeids": [1, 0, 0] * 2,
        "nodes_falsenodeids": [2, 0, 0] * 2, "nodes_missing_value_tracks_true": [0] * 6,
        "class_treeids": [0, 0, 0, 0, 1, 1, 1, 1], "class_nodeids": [1, 1, 2, 2] * 2, "class_ids": [0, 1] * 4,
        "class_weights": [0.4, 0.1, 0.05, 0.45, 0.3, 0.2, 0.15, 0.35], "classlabels_strings": ["no", "yes"],
        "post_transform": "NONE",
    }  # fmt: skip
    ml = "ai.onnx.ml"
    nodes = [
        helper.make_node("TreeEnsembleClassifier", ["X"], ["label", "p"], domain=ml, **options),
        helper.make_node("ZipMap", ["p"], ["output_probability"], domain=ml, classlabels_strings=["no", "yes"]),
    ]
    maps = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, [None]),
        helper.make_value_info("output_probability", helper.make_sequence_type_proto(maps)),
    ]
    graph = helper.make_graph(nodes, "f", [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 2])], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ml, 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def forest_by_hand(rows: np.ndarray) -> np.ndarray:
    """Return what the two trees say, (N, 2)."""
    first = np.where(rows[:, :1] <= 0.5, [[0.4, 0.1]], [[0.05, 0.45]])
    return first + np.where(rows[:, 1:] <= -0.25, [[0.3, 0.2]], [[0.15, 0.35]])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each class, smooth pictures of odd sizes as PNG and JPEG."""
    root = tmp_path_factory.mktemp("val")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for number in range(4):
            noise = Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8))
            ending = "png" if number % 2 else "jpg"
            noise.resize((50 + 7 * number, 61), Image.Resampling.BICUBIC).save(root / name / f"{number}.{ending}")
    return root


@pytest.fixture(scope="module")
def transforms() -> Any:
    t = library("torchvision.transforms")
    normalize = t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return t.Compose([t.Resize(40), t.CenterCrop(32), t.ToTensor(), normalize])


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(24, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, pictures: Path, transforms: Any, rows: np.ndarray) -> Path:
    """Everything that the tests ask, published."""
    root = tmp_path_factory.mktemp("models")
    to = {"models_dir": root}
    publish(small_cnn(), name="flowers", image=transforms, examples=pictures, **to)
    publish(resnet(), name="resnet", labels=CLASSES, image=transforms, examples=pictures, **to)
    publish(mlp(), name="mlp", labels=["low", "high"], examples=rows, **to)
    for task in ("multilabel", "regress", "embed"):
        publish(linear(), name=task, task=task, examples=rows, **to)
    publish(TwoHeads().eval(), name="heads", inputs=["2,3", "2,3"], **to)
    publish(two_inputs(), name="two", **to)
    publish(forest(), name="forest", examples=np.random.default_rng(3).normal(size=(9, 2)).astype(np.float32), **to)
    publish(line_reader(), name="line", image=LINE_RECIPE, examples=[line(96)] * 3, **to)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(mlp(), (torch.randn(2, 5),), dynamic_shapes=({0: batch},))
    torch.export.save(program, root.parent / "mlp.pt2")
    publish(str(root.parent / "mlp.pt2"), name="program", examples=rows, **to)
    return root


@pytest.fixture(scope="module")
def http(models: Path) -> Iterator[httpx.Client]:
    settings = Settings(models_dir=models, provider="cpu", buckets=(1, 8), canary_seconds=0, default_deadline_ms=60_000)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def asked(http: httpx.Client, model: str, instances: Any) -> list[dict[str, Any]]:
    answer = http.post(f"/predict?model={model}", json={"instances": instances})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


@pytest.mark.parametrize("name", ["flowers", "resnet"])
def test_a_picture_gets_the_answer_of_the_original_through_its_own_transforms(
    name: str, http: httpx.Client, pictures: Path, transforms: Any
) -> None:
    """From the bytes of a JPEG or PNG to the probability: torchvision and PyTorch say the same, picture by picture."""
    network = small_cnn() if name == "flowers" else resnet()
    for path in sorted(pictures.glob("*/*")):
        answer = http.post(f"/predict?model={name}", files={"file": path.read_bytes()}).json()["predictions"][0]
        with torch.no_grad():
            expected = network(transforms(Image.open(path).convert("RGB"))[None]).softmax(1)[0].numpy()
        np.testing.assert_allclose(answer["probabilities"], expected, atol=LIMIT)
        assert answer["label"] == CLASSES[int(expected.argmax())]


@pytest.mark.parametrize("name", ["mlp", "program"])
def test_rows_get_the_answer_of_the_original(name: str, http: httpx.Client, rows: np.ndarray) -> None:
    """A tabular network with BatchNorm1d, as a module and as an exported program."""
    with torch.no_grad():
        expected = mlp()(torch.from_numpy(rows))
    found = asked(http, name, rows.tolist())
    if name == "mlp":
        probabilities = [row["probabilities"] for row in found]
        np.testing.assert_allclose(probabilities, expected.softmax(1).numpy(), atol=LIMIT)
        assert {row["label"] for row in found} <= {"low", "high"}
    else:
        np.testing.assert_allclose([row["outputs"]["output"] for row in found], expected.numpy(), atol=1e-5)


def test_each_task_has_its_form(http: httpx.Client, rows: np.ndarray) -> None:
    """One graph under three tasks: values, an embedding, sigmoid with a threshold, each against NumPy."""
    expected = rows @ LINEAR
    values = [row["values"] for row in asked(http, "regress", rows.tolist())]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    embedding = [row["embedding"] for row in asked(http, "embed", rows.tolist())]
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    wanted = 1 / (1 + np.exp(-expected))
    for row, probabilities in zip(asked(http, "multilabel", rows.tolist()), wanted, strict=True):
        found = {label["class_id"]: label["probability"] for label in row["labels"]}
        assert set(found) == set(np.flatnonzero(probabilities >= 0.5))
        np.testing.assert_allclose([found[i] for i in sorted(found)], probabilities[sorted(found)], atol=LIMIT)


def test_names_of_a_named_tuple_and_of_arguments_are_kept(http: httpx.Client) -> None:
    """What the user's forward calls its inputs and outputs is what the client types and reads."""
    found = asked(http, "heads", [{"left": [1, 2, 3], "right": [1, 1, 2]}])[0]["outputs"]
    assert found["total"] == [2, 3, 5]
    assert found["ratio"] == pytest.approx(6 / 5)


def test_a_two_input_graph_and_a_forest_answer_as_by_hand(http: httpx.Client) -> None:
    """ONNX sources against NumPy; the ZipMap is cut off and its classes are the labels."""
    weight = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    a, b = np.float32([[1, 2, 3]]), np.float32([[4, 5]])
    found = asked(http, "two", [{"a": a[0].tolist(), "b": b[0].tolist()}])
    np.testing.assert_allclose(found[0]["outputs"]["y"], (a @ weight + b)[0], rtol=1e-6)
    points = np.float32([[0, 0], [1, -1], [1, 1], [0.5, -0.25]])
    answers = asked(http, "forest", points.tolist())
    np.testing.assert_allclose([row["probabilities"] for row in answers], forest_by_hand(points), atol=1e-6)
    assert [row["label"] for row in answers] == [["no", "yes"][i] for i in forest_by_hand(points).argmax(1)]


@pytest.mark.parametrize(("width", "kind"), [(8, "PNG"), (96, "PNG"), (320, "JPEG"), (1201, "PNG")])
def test_lines_of_any_width_are_read_as_by_the_original(http: httpx.Client, width: int, kind: str) -> None:
    """One graph with a free width, no rule for resizing: pictures keep their width, and give a step for each column."""
    file = io.BytesIO()
    line(width).save(file, kind, quality=95)
    prediction = http.post("/predict?model=line", files={"file": file.getvalue()}).json()["predictions"][0]
    pixels = np.asarray(Image.open(file).convert("RGB"))[..., ::-1].transpose(2, 0, 1)
    taken = ((pixels / 255 - 0.5) / 0.5).astype(np.float32)[None]
    session = onnxruntime.InferenceSession(line_reader().SerializeToString())
    np.testing.assert_allclose(prediction["outputs"]["softmax"], session.run(None, {"x": taken})[0][0], atol=LIMIT)


def test_free_sides_are_for_graphs_that_leave_them_open(tmp_path: Path) -> None:
    """A module has its own size; examples of two sizes cannot be one batch."""
    with pytest.raises(ConfigError, match="any size, is for ONNX files"):
        publish(small_cnn(), name="any", image="height=-1,width=-1", models_dir=tmp_path)
    with pytest.raises(ConfigError, match="they become rows of 2 sizes"):
        publish(line_reader(), name="any", image=LINE_RECIPE, examples=[line(96), line(97)], models_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def manifest(models: Path, name: str, version: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((models / name / str(version) / "manifest.json").read_text())
    return found


def test_the_manifest_says_what_was_proved(models: Path) -> None:
    """Oracle, kind of examples, tolerance and its reason; made inputs are called that."""
    proof = manifest(models, "flowers")["proof"]
    assert proof["oracle"] == "float64 run of the unfolded network"
    assert (proof["examples"], proof["rows"], proof["agreement"]) == ("pictures", 12, 1.0)
    assert proof["largest_probability_difference"] <= proof["tolerance"] <= 1e-3
    assert 0 < proof["float32_cost"] < proof["tolerance"]
    assert manifest(models, "two")["proof"]["examples"] == "made"
    assert manifest(models, "two")["proof"]["oracle"] == "float64 evaluation of the original graph"
    assert manifest(models, "flowers")["accuracy"]["images"] == 12
    assert (models / "flowers/1/manifest.json").stat().st_size < 1_500_000


def test_no_norm_is_left_and_the_normalisation_is_in_the_weights(models: Path) -> None:
    """The graph of the pictures is a cast, the network and the task: nothing computes a mean or a deviation."""
    operations = [node.op_type for node in onnx.load(models / "flowers/1/model.onnx").graph.node]
    assert operations[0] == "Cast"
    assert not {"BatchNormalization", "Sub", "Div", "Mul"} & set(operations)


def test_what_stays_as_arithmetic_is_said_and_proved(tmp_path: Path, pictures: Path, transforms: Any) -> None:
    """A first layer that can take no mean leaves the normalisation before the network; that is no refused norm."""

    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_cnn()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x.abs().sqrt())

    published = publish(Bent().eval(), name="bent", image=transforms, examples=pictures, models_dir=tmp_path)
    assert "stay as arithmetic" in str(published)
    assert published.report is not None
    assert not published.report.refused
    assert {"Mul", "Add"} <= {node.op_type for node in onnx.load(tmp_path / "bent/1/model.onnx").graph.node}


@pytest.mark.parametrize("step", ["fold", "export_module"])
def test_one_changed_weight_on_the_way_is_found(
    step: str, tmp_path: Path, pictures: Path, transforms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single weight that changes by a ten-thousandth after the fold, or after the export, stops everything."""
    from foldserve.training.publish import network_graph

    original = getattr(network_graph, step)

    def spoiled(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        if step == "fold":
            with torch.no_grad():
                next(result.model.parameters()).view(-1)[7] *= 1.0001
        else:
            tensor = next(t for t in result.graph.initializer if len(t.dims) == 4)
            values = numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[7] *= 1.0001
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return result

    monkeypatch.setattr(network_graph, step, spoiled)
    with pytest.raises((ExportError, VerifyError), match="holds another value"):
        publish(small_cnn(), name="flowers", image=transforms, examples=pictures, models_dir=tmp_path)
    assert not list(tmp_path.glob("flowers/*/model.onnx"))


def test_a_wrong_graph_is_found_by_its_answers(
    tmp_path: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What surrounds the network is proved too: a softmax over the wrong numbers does not get out."""
    from foldserve.training.publish import served

    original = served.add_task

    def spoiled(model: onnx.ModelProto, *args: Any) -> None:
        original(model, *args)
        tensor = model.graph.initializer[-1]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))

    monkeypatch.setattr(served, "add_task", spoiled)
    with pytest.raises(VerifyError, match=r"is off by|differ"):
        publish(linear(), name="linear", labels=["a", "b", "c"], examples=rows, models_dir=tmp_path)


def test_two_publishers_at_once_take_different_numbers(tmp_path: Path, rows: np.ndarray) -> None:
    """Whoever comes second gets the next number; nothing is overwritten and nothing half appears."""
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: publish(two_inputs(), name="two", models_dir=tmp_path).folder, range(2)))
    assert sorted(folder.name for folder in folders if folder is not None) == ["1", "2"]


def test_the_line_to_ask_it_holds_the_row_as_people_write_it(tmp_path: Path) -> None:
    """0.1 in float32 stays 0.1, and what is sent is the very row that was proved; a long row goes into a file."""
    rows = np.array([[0.1, -2.5e-7, 3.0, 1e20, 0.3333333]] * 2, np.float32)
    asked = publish(mlp(), name="rows", examples=rows, models_dir=tmp_path, dry_run=True).question
    body = asked.partition("-d '")[2].partition("'")[0]
    assert body.startswith('{"instances": [[0.1, -2.5e-07, 3.0, 1e+20, 0.3333333]]}')
    assert np.array_equal(np.array(json.loads(body)["instances"], np.float32), rows[:1])
    long = publish(
        nn.Flatten().eval(), name="long", examples=np.ones((2, 500), np.float32), models_dir=tmp_path, dry_run=True
    )
    assert long.question.endswith('# rows.json: {"instances": [<500 values>, ...]}')
    assert "-d @rows.json" in long.question


def test_a_line_with_a_file_says_what_the_file_holds(tmp_path: Path) -> None:
    """Each input by name, with the lengths of its lists, behind a line that a shell takes as it is."""

    class Sum(nn.Module):
        def forward(self, image: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
            return image.mean((1, 2, 3)) + facts

    rows = {"image": np.ones((2, 3, 20, 20), np.float32), "facts": np.ones(2, np.float32)}
    asked = publish(Sum().eval(), name="sum", examples=rows, models_dir=tmp_path, dry_run=True).question
    assert asked.endswith('# rows.json: {"instances": [{"image": <3 x 20 x 20 values>, "facts": <value>}, ...]}')
    assert shlex.split(asked, comments=True)[-1] == "localhost:8000/predict?model=sum"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "model is a NoneType; expected a torch.nn.Module, an exported program, an onnx.ModelProto, or as text"),
        ({"0.weight": torch.ones(1)}, "model is a dict; expected the network that these weights are of"),
        (nn.ReLU, "model is a type; expected what it makes, a torch.nn.Module: call it first"),
    ],
)
def test_what_is_no_network_is_named(given: object, said: str, tmp_path: Path) -> None:
    """A state dict, a class or nothing in the place of a network is refused with what to give instead."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        publish(given, name="none", models_dir=tmp_path)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """Everything is proved and said; no folder appears, and nobody is told to ask what is not there."""
    published = publish(two_inputs(), name="two", models_dir=tmp_path / "models", dry_run=True)
    assert published.folder is None
    assert "nothing was written" in str(published)
    assert "ask it" not in str(published)
    assert not (tmp_path / "models").exists()


def test_worse_than_before_is_published_and_not_promoted(tmp_path: Path, transforms: Any) -> None:
    """McNemar's test on the same labelled pictures: beyond noise the new version waits for somebody's word."""
    network, root = small_cnn(), tmp_path / "val"
    generator = np.random.default_rng(1)
    for number in range(60):  # the true class of a picture is what the first network says
        picture = Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        with torch.no_grad():
            name = CLASSES[int(network(transforms(picture)[None]).argmax())]
        (root / name).mkdir(parents=True, exist_ok=True)
        picture.save(root / name / f"{number}.png")
    to = {
        "name": "flowers",
        "labels": CLASSES,
        "image": transforms,
        "examples": root,
        "models_dir": tmp_path / "models",
    }
    publish(network, **to)
    worse = publish(small_cnn(seed=9), **to)
    assert worse.folder is not None
    assert worse.manifest["promotion"]["promoted"] is False
    assert "McNemar" in worse.manifest["promotion"]["reason"]
    assert "NOT promoted" in str(worse)
    with pytest.raises(GateError, match=r"expected at least 0\.9"):
        publish(small_cnn(seed=9), min_accuracy=0.9, **to)
    # It is still compared with the first version: one that was held back is no measure.
    assert publish(small_cnn(seed=9), promote=True, dry_run=True, **to).manifest["promotion"]["promoted"] is True


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.sum()) > 0:
            return x * 2
        return x


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (mlp(), {"labels": ["a"], "inputs": ["2,5"]}, ConfigError, "1 labels for 2 outputs"),
    (mlp(), {"labels": ["a", "a"], "inputs": ["2,5"]}, ConfigError, "stands there twice"),
    (mlp(), {}, ConfigError, "not known; give rows with --examples, or .* with --input"),
    (mlp(), {"inputs": ["2,6"]}, ConfigError, "does not run on inputs of float32"),
    (mlp(), {"examples": np.zeros((4, 6), np.float32), "inputs": ["2,5"]}, ConfigError, "rows of"),
    (mlp(), {"examples": np.zeros((0, 5), np.float32), "inputs": ["2,5"]}, ConfigError, "one number above 0"),
    (mlp().train(), {"inputs": ["2,5"]}, ConfigError, "in training mode"),
    (mlp(), {"inputs": ["2,5"], "task": "sort"}, ConfigError, "expected one of classify"),
    (mlp(), {"inputs": ["2,5"], "name": "a/b"}, ConfigError, "model name"),
    (Random().eval(), {"inputs": ["2,5"]}, VerifyError, r"each time .*aten::.*F\.dropout\(x, p, self\.training\)"),
    (Branching().eval(), {"inputs": ["2,5"]}, ExportError, r"line \d+, in forward.*publish the file"),
    (small_cnn(), {"image": "resize=40,crop=30"}, ConfigError, "does not run on inputs"),
    (small_cnn(), {"image": "resize=40,crop=32", "examples": "no/such/place"}, ConfigError, "does not exist"),
    (small_cnn(), {"image": "resize=40,crop=32,size=3"}, ConfigError, "unknown key 'size'"),
    (
        nn.Linear(5, 1).eval(),
        {"task": "classify", "inputs": ["2,5"]},
        ConfigError,
        "one number for each of two classes",
    ),
    (two_inputs(), {"task": "classify", "image": "crop=8"}, ConfigError, "one input|does not|recipe"),
]


@pytest.mark.parametrize(("model", "options", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_cannot_be_published_is_said_and_leaves_nothing(
    model: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What came, what was expected, what to do, and nothing beside it; and the models folder is as it was."""
    with pytest.raises(error, match=f"(?s){message}"):
        publish(model, **{"name": "bad", "models_dir": tmp_path, **options})
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_examples_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    """The file is named, with what is wrong with it."""
    (tmp_path / "val").mkdir()
    (tmp_path / "val/rose.jpg").write_bytes(b"no picture")
    to = {"name": "flowers", "image": "resize=40,crop=32", "models_dir": tmp_path / "models"}
    with pytest.raises(ConfigError, match=r"rose\.jpg: not a whole PNG or JPEG image$"):
        publish(small_cnn(), examples=tmp_path / "val", **to)
    with pytest.raises(ConfigError, match="a folder of pictures needs --image"):
        publish(small_cnn(), name="flowers", examples=tmp_path / "val", inputs=["2,3,32,32"])


def test_another_interface_under_the_same_name_is_refused(tmp_path: Path, rows: np.ndarray) -> None:
    """What clients of a model send stays valid for its next version."""
    labels = ["low", "middle", "high"]
    publish(linear(), name="mlp", labels=labels, examples=rows, models_dir=tmp_path)
    with pytest.raises(ArtifactError, match="publish under another --name"):
        publish(linear(), name="mlp", task="regress", examples=rows, models_dir=tmp_path)
    with pytest.raises(ConfigError, match="names other classes"):
        publish(linear(), name="mlp", labels=labels[::-1], examples=rows, models_dir=tmp_path)


def test_another_recipe_than_before_is_said(tmp_path: Path, pictures: Path) -> None:
    """Whoever changes how pictures are prepared reads it before the version goes live."""
    to = {"name": "flowers", "labels": CLASSES, "examples": pictures, "models_dir": tmp_path}
    publish(small_cnn(), image="resize=40,crop=32", **to)
    published = publish(small_cnn(), image="resize=36,crop=32", dry_run=True, **to)
    assert "the picture recipe differs from version 1: resize [40] -> [36]" in str(published)


def test_half_precision_is_widened_exactly_and_said(tmp_path: Path) -> None:
    """Weights in float16 or bfloat16 are float32 in the graph, to the bit."""
    network = nn.Linear(5, 2).bfloat16().eval()
    published = publish(network, name="half", inputs=["bfloat16:2,5"], models_dir=tmp_path)
    assert "weights in bfloat16 become float32, exactly" in str(published)
    graph = onnx.load(tmp_path / "half/1/model.onnx").graph
    found = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) == 2)
    assert np.array_equal(found.reshape(2, 5), network.weight.detach().float().numpy())


def test_pictures_are_golden_as_files(models: Path) -> None:
    """What proves a version each time is encoded pictures: decoding and recipe are proved with the graph."""
    section = manifest(models, "flowers")["golden"]
    assert section["inputs"] == {}
    assert 0 < len(section["files"]) <= 12
    assert len(section["outputs"]["class_id"]["shape"]) == 2


def test_large_pictures_are_kept_small_and_still_proved(tmp_path: Path, transforms: Any) -> None:
    """Photographs beyond their share of the manifest are kept at the model's size; the oracle answers for those."""
    generator = np.random.default_rng(4)
    (tmp_path / "val").mkdir()
    for number in range(3):
        noise = generator.integers(0, 256, (600, 700, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"val/{number}.png")
    to = {"labels": CLASSES, "image": transforms, "models_dir": tmp_path / "models"}
    publish(small_cnn(), name="flowers", examples=tmp_path / "val", **to)
    assert (tmp_path / "models/flowers/1/manifest.json").stat().st_size < 2**20 + 50_000
    settings = Settings(models_dir=tmp_path / "models", provider="cpu", buckets=(1, 8), canary_seconds=0)
    with serve(create_app(settings)) as url:
        assert httpx.get(f"{url}/v2/models/flowers/ready").status_code == 200


def test_no_example_is_asked_twice(
    tmp_path: Path, transforms: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proof, golden files and accuracy use one answer of the oracle: in float64 it is what publishing costs."""
    from foldserve.training.publish.network import TorchNetwork

    rows = {"oracle": 0, "deployed": 0}
    for kind in rows:
        original = getattr(TorchNetwork, kind)

        def counted(self: Any, feeds: Any, kind: str = kind, original: Any = original) -> Any:
            rows[kind] += len(next(iter(feeds.values())))
            return original(self, feeds)

        monkeypatch.setattr(TorchNetwork, kind, counted)
    published = publish(small_cnn(), name="flowers", image=transforms, examples=pictures, models_dir=tmp_path)
    examples = published.manifest["accuracy"]["images"]
    assert rows == {"oracle": examples, "deployed": examples}
    assert published.manifest["golden"]["files"]


def test_pictures_in_memory_are_examples_as_files_are(tmp_path: Path, transforms: Any, pictures: Path) -> None:
    """Arrays of any size, PIL pictures and paths side by side prove the same as the files do."""
    paths = sorted(pictures.glob("*/*"))[:3]
    mixed = [np.asarray(Image.open(paths[0]).convert("RGB")), Image.open(paths[1]).convert("RGB"), paths[2]]
    to = {"name": "flowers", "labels": CLASSES, "image": transforms, "models_dir": tmp_path, "dry_run": True}
    published = publish(small_cnn(), examples=mixed, **to)
    assert (published.proof.examples, published.proof.rows) == ("pictures", 3)
    with pytest.raises(ConfigError, match="expected uint8"):
        publish(small_cnn(), examples=[np.zeros((40, 40, 3))], **to)


def outcomes(path: Path, **options: Any) -> dict[str, str]:
    def no_data() -> Any:
        raise AssertionError("Fashion-MNIST has no business here")

    return {check.what: str(check.outcome) for check in reverify(path, no_data, **options)}


def test_verify_repeats_the_proof_of_any_version(models: Path, pictures: Path, rows: np.ndarray) -> None:
    """Digests, place, graph, golden answers and, with the network, the comparison; another network is found out."""
    passed = dict.fromkeys(("digests", "place", "graph", "golden answers"), "passed")
    for name in ("flowers", "forest", "two", "mlp", "regress"):
        assert outcomes(version_folder(models / name)) == {**passed, "unfolded network": "not checked"}
    brought = (("flowers", small_cnn(), pictures), ("mlp", mlp(), rows), ("two", two_inputs(), None))
    for name, network, examples in brought:
        again = outcomes(models / name / "1", open_original=lambda n=network: as_source(n), examples=examples)
        assert again == {**passed, "unfolded network": "passed"}
    other = outcomes(models / "flowers/1", open_original=lambda: as_source(small_cnn(3)), examples=pictures)
    assert other["unfolded network"] == "FAILED"


def test_the_command_says_what_was_done_and_how_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`foldserve publish` and then `foldserve verify`, as typed; exit codes as for every command."""
    monkeypatch.chdir(tmp_path)
    onnx.save(linear(), tmp_path / "linear.onnx")
    np.save(tmp_path / "rows.npy", np.ones((3, 5), np.float32))
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    words = ["publish", "linear.onnx", "--name", "linear", "--labels", "labels.txt", "--examples", "rows.npy"]
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] is None
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "published models/linear/1" in said
    assert "localhost:8000/predict?model=linear" in said
    assert main(["verify", "models/linear", "--source", "linear.onnx", "--examples", "rows.npy"]) == 0
    assert "5 of 5 checks passed" in capsys.readouterr().out
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert main([*words[:2], "--name", "other", *words[4:]]) == 2
    assert "2 labels for 3 outputs" in capsys.readouterr().err


def named_classes() -> onnx.ModelProto:
    """Return a classifier as scikit-learn's exporter writes most of them: class names looked up by their index."""
    names, x = ["setosa", "versi color", "玫瑰"], np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["index"], axis=1, keepdims=0),
        helper.make_node("ArrayFeatureExtractor", ["names", "index"], ["row"], domain="ai.onnx.ml"),
        helper.make_node("Reshape", ["row", "flat"], ["label"]),
    ]
    graph = helper.make_graph(
        nodes,
        "named",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]),
        ],
        [
            numpy_helper.from_array(x, "weight"),
            numpy_helper.from_array(np.array([-1]), "flat"),
            helper.make_tensor("names", TensorProto.STRING, [3], [name.encode() for name in names]),
        ],
    )
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_a_classifier_that_names_its_classes_is_published(tmp_path: Path) -> None:
    """Names among the weights are text: looked up by the oracle, and part of the digest by their letters."""
    rows, names = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), ["a", "b", "c"]
    publish(named_classes(), name="named", labels=names, examples=rows, models_dir=tmp_path)
    model = onnx.load(tmp_path / "named" / "1" / "model.onnx")
    stated = {entry.key: entry.value for entry in model.metadata_props}["foldserve.weights"]
    with_others = copy.deepcopy(model)
    for tensor in with_others.graph.initializer:
        if tensor.name == "names":
            tensor.string_data[0] = b"another"
    assert weights_digest(model) == stated != weights_digest(with_others)
    session = onnxruntime.InferenceSession(named_classes().SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(["probabilities"], {"x": rows})[0]
    with serve(create_app(Settings(models_dir=tmp_path, provider="cpu", buckets=(1, 8)))) as url:
        answer = httpx.post(f"{url}/predict?model=named", json={"instances": rows.tolist()}).json()["predictions"]
    assert np.abs(np.array([one["probabilities"] for one in answer]) - expected).max() < LIMIT
