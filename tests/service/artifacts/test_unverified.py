"""ONNX files that came without a manifest: refused by default, served and marked where the operator allows it."""

import asyncio
import gzip
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.service.app import create_app
from foldserve.service.artifacts.repository import Repository
from foldserve.service.artifacts.unverified import made_inputs
from foldserve.service.errors import ArtifactInvalid, ServiceError
from foldserve.service.live.model import UNVERIFIED
from foldserve.service.models_cli import main as type_in
from foldserve.service.settings import Settings
from foldserve.service.tensors import TensorSpec
from tests.support import artifacts, v2_messages
from tests.support.damage import (
    custom_operator,
    external,
    future_opset,
    norm_in_training_mode,
    norm_of_an_old_opset_in_training_mode,
    weights,
)
from tests.support.live import serve
from tests.support.live_models import loaded as in_memory

CHANNELS = 4


def place(root: Path, model: onnx.ModelProto | bytes, name: str = "theirs", version: int = 1) -> Path:
    """A version folder as other exporters leave it: the model and nothing else."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return folder


def norm_behind_a_product() -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """Tokens times a matrix, then a norm over the tokens, not over the columns; with a question and its answer.

    onnxruntime 1.31's MatMul_BatchNormalization_Fusion scales the columns of the matrix instead.
    """
    rng = np.random.default_rng(0)
    matrix, scale, shift, mean = (rng.standard_normal(size).astype(np.float32) for size in ((4, 4), 4, 4, 4))
    var = rng.uniform(0.5, 2, CHANNELS).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["tokens", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "matrix"], ["product"]),
        helper.make_node("Reshape", ["product", "square"], ["columns"]),
        helper.make_node("BatchNormalization", ["columns", "scale", "shift", "mean", "var"], ["normed"]),
    ]
    constants = {
        "matrix": matrix, "scale": scale, "shift": shift, "mean": mean, "var": var,
        "flat": np.array([-1, CHANNELS]), "square": np.array([-1, CHANNELS, CHANNELS]),
    }  # fmt: skip
    model = model_of(nodes, {"tokens": (4, 4)}, {"normed": (4, 4)}, constants)
    asked = rng.standard_normal((3, 4, 4)).astype(np.float32)
    per_token = [array.astype(np.float64)[:, None] for array in (mean, var, scale, shift)]
    expected = (asked.astype(np.float64) @ matrix - per_token[0]) / np.sqrt(per_token[1] + 1e-5)
    return model, asked, expected * per_token[2] + per_token[3]


def model_of(nodes, inputs, outputs, constants=None, kind=TensorProto.FLOAT) -> onnx.ModelProto:
    """A graph of float inputs and outputs; shapes leave the batch out."""
    declared = [
        [helper.make_tensor_value_info(name, kind, ["n", *shape]) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "theirs", *declared, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def opened(root: Path) -> None:
    Repository(root, allow_unverified=True).open("theirs")


def loaded(root: Path, ask: dict[str, np.ndarray] | None = None):
    """The model as the registry has it, and its answers."""

    async def load():
        async with in_memory(root, buckets=(1, 2, 4), threads=1, allow_unverified=True) as models:
            model = models.registry.get()
            answer = await model.batcher.infer(ask) if ask else None
        return model, answer and answer.outputs

    return asyncio.run(load())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One verified classifier beside two unverified models."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    place(root, artifacts.two_inputs_model(), "sum")
    place(root, norm_behind_a_product()[0])
    app = create_app(Settings(models_dir=root, provider="cpu", buckets=(1, 4), allow_unverified=True))
    with serve(app) as url, httpx.Client(base_url=url) as http:
        yield http


def test_without_the_switch_it_is_refused_with_the_remedy(models):
    """Nothing is served unproved unless the operator says so."""
    place(models, artifacts.two_inputs_model())
    with pytest.raises(ArtifactInvalid, match=r"holds no manifest\.json.*--allow-unverified"):
        Repository(models).open("theirs")


def test_a_norm_is_run_as_it_stands_where_the_runtime_would_fuse_it_wrongly(models):
    """The plain runtime is off by more than half of the largest value on this graph, the service is not."""
    model, asked, expected = norm_behind_a_product()
    folder = place(models, model)
    plain = artifacts.plain_session(folder / "model.onnx").run(None, {"tokens": asked})[0]
    assert np.abs(plain - expected).max() > 0.5 * np.abs(expected).max(), "the runtime has been mended"
    _, answer = loaded(models, {"tokens": asked})
    np.testing.assert_allclose(answer["normed"], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("form", ["flat", "binary"])
def test_several_inputs_are_served_and_marked_in_every_answer(service, form):
    """Over the fast lane and over the application, which a compressed body takes."""
    left, right = np.random.default_rng(2).standard_normal((2, 3, 3)).astype(np.float32)
    body, length = v2_messages.request({"left": left, "right": right}, form)
    headers = {"Inference-Header-Content-Length": str(length)} if length else {}
    squeezed = service.post(
        "/v2/models/sum/infer", content=gzip.compress(body), headers={**headers, "Content-Encoding": "gzip"}
    )
    for answer in (service.post("/v2/models/sum/infer", content=body, headers=headers), squeezed):
        assert answer.status_code == 200, answer.text
        assert (answer.headers["x-model-version"], answer.headers["x-model-verified"]) == ("1", "false")
        np.testing.assert_array_equal(v2_messages.answer(answer.content, None)[1]["sum"], left + right)


def test_what_is_verified_is_not_marked(service):
    """The header is for the others alone."""
    octets = {"Content-Type": "application/octet-stream"}
    answer = service.post("/predict?model=fashion", content=artifacts.images(1).tobytes(), headers=octets)
    assert answer.status_code == 200
    assert "x-model-verified" not in answer.headers


def test_metadata_config_index_and_metrics_mark_it(service):
    """Wherever a model is described, it says whether anybody proved it."""
    for name, verified in (("fashion", True), ("sum", False)):
        said = str(verified).lower()
        assert service.get(f"/v2/models/{name}").json()["properties"]["verified"] == said
        assert service.get(f"/v2/models/{name}/config").json()["parameters"]["verified"] == {"string_value": said}
        row = next(row for row in service.post("/v2/repository/index").json() if row["name"] == name)
        assert (row["state"], row["verified"]) == ("READY", verified)
        assert row["reason"] == ("" if verified else f"unverified: {UNVERIFIED}")
        assert next(row for row in service.get("/v2").json()["models"] if row["name"] == name)["verified"] == verified
        info = next(line for line in service.get("/metrics").text.splitlines() if f'model_info{{model="{name}"' in line)
        assert f'verified="{said}"' in info
    assert 'foldserve_golden_deviation_ratio{model="sum"} NaN' in service.get("/metrics").text


def test_the_list_that_an_operator_types_marks_it(service, capsys):
    """In the column of reasons."""
    assert type_in(["models", "--url", str(service.base_url), "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if UNVERIFIED in line] == ["sum", "theirs"]


def test_predict_takes_the_inputs_by_name(service):
    """A model of two inputs wants both in each instance, and says so."""
    answer = service.post("/predict?model=sum", json={"instances": [{"left": [1, 2, 3], "right": [4, 5, 6]}]})
    assert answer.json()["predictions"] == [{"outputs": {"sum": [5, 7, 9]}}]
    refused = service.post("/predict?model=sum", json={"instances": [[1, 2, 3]]})
    assert refused.status_code == 400
    assert "expected an object of 'left', 'right'" in refused.json()["error"]


def test_the_log_says_it_once(models, caplog):
    """One warning when it is loaded."""
    place(models, artifacts.two_inputs_model())
    with caplog.at_level(logging.WARNING):
        loaded(models)
    assert [record.getMessage() for record in caplog.records if "unverified" in record.getMessage()] == [
        f"model 'theirs' version 1 is served unverified: {UNVERIFIED}"
    ]


def test_grpc_marks_it_too(models):
    """In the properties of the model and in the trailers of each answer."""
    grpc = pytest.importorskip("grpc", reason="needs the extra grpc")
    from foldserve.service.v2.rpc.descriptors import INFERENCE
    from tests.support.grpc_calls import request, stubs

    place(models, artifacts.two_inputs_model())
    app = create_app(Settings(models_dir=models, provider="cpu", buckets=(1,), allow_unverified=True, grpc_port=0))
    with serve(app), grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel:
        calls = stubs(channel)
        metadata = calls.ModelMetadata(INFERENCE.messages["ModelMetadataRequest"](name="theirs"))
        assert metadata.properties["verified"] == "false"
        ones = np.ones((1, 3), np.float32)
        _, call = calls.ModelInfer.with_call(request("theirs", {"left": ones, "right": ones}))
        assert ("x-model-verified", "false") in [tuple(entry) for entry in call.trailing_metadata()]
        index = calls.RepositoryIndex(INFERENCE.messages["RepositoryIndexRequest"]())
        assert [entry.reason for entry in index.models] == [f"unverified: {UNVERIFIED}"]


def nan_weights(model):
    weights(model, lambda array: array * np.nan)


def nan_in_a_list(model):
    tensor = next(item for item in model.graph.initializer if item.name == "fc.bias")
    tensor.ClearField("raw_data")
    tensor.float_data.extend([np.nan] * 10)


def ragged_weights(model):
    model.graph.initializer[0].raw_data += b"x"


def norm_whose_statistics_are_read(model):
    """Names that nothing reads are left out instead, as exporters of networks at rest wrote them."""
    norm_of_an_old_opset_in_training_mode(model)
    model.graph.output.append(onnx.helper.make_tensor_value_info("saved_mean", onnx.TensorProto.FLOAT, None))


UNSOUND = {
    "NaN weights": (nan_weights, "tensor 'fc.bias' holds NaN"),
    "NaN in a list of floats": (nan_in_a_list, "tensor 'fc.bias' holds NaN"),
    "weights of a broken length": (ragged_weights, "is not an ONNX model"),
    "a future opset": (future_opset, "cannot be loaded"),
    "an unknown operator": (custom_operator, "com.example"),
    "a norm in training mode": (norm_in_training_mode, "training mode"),
    "a norm in training mode before opset 14": (norm_whose_statistics_are_read, "training mode"),
    "weights outside the folder": (external("../../../../etc/passwd"), "keeps weights in another file"),
}


@pytest.mark.parametrize(("change", "expected"), UNSOUND.values(), ids=UNSOUND.keys())
def test_what_must_not_run_is_refused_here_too(models, change, expected):
    """Allowing unverified models does not allow those that are known to be wrong."""
    model = artifacts.classifier_model(metadata={})
    change(model)
    place(models, model)
    with pytest.raises(ServiceError, match=expected):
        loaded(models)


@pytest.mark.parametrize("data", [b"", b"<!DOCTYPE html>", artifacts.echo_model().SerializeToString()[:-9]])
def test_what_is_no_model_is_refused(models, data):
    """Empty, a page, or cut off."""
    place(models, data)
    with pytest.raises(ServiceError, match=r"not an ONNX model|cannot be loaded"):
        loaded(models)


def test_a_folder_without_a_model_is_refused(models):
    """The switch allows a missing manifest and nothing else."""
    (models / "theirs" / "1").mkdir(parents=True)
    with pytest.raises(ArtifactInvalid, match=r"model\.onnx cannot be read: No such file"):
        opened(models)


def test_a_link_out_of_the_folder_is_not_followed(models, tmp_path):
    """As with a manifest."""
    folder = place(models, artifacts.echo_model())
    (folder / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactInvalid, match="not a regular file"):
        opened(models)


def test_our_own_export_without_its_manifest_is_refused(models):
    """A folder that is copied file by file never serves in between; once the manifest is there, it does."""
    folder = artifacts.publish_classifier(models, "theirs")
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactInvalid, match="exported together with a manifest, which is missing"):
        opened(models)
    (folder / "manifest.json").write_bytes(manifest)
    opened(models)


def test_a_damaged_manifest_is_not_taken_for_none(models):
    """A broken manifest is not taken for a missing one."""
    folder = artifacts.publish_classifier(models, "theirs")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ArtifactInvalid, match="cannot be read as JSON"):
        opened(models)


def test_a_graph_whose_first_axis_is_no_batch_is_refused(models):
    """Two rows for each of the input: it cannot be known whose they are."""
    place(models, model_of([helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], {"x": (3,)}, {"y": (3,)}))
    with pytest.raises(ArtifactInvalid, match=r"output 'y' has shape \(2, 3\) for a batch of 1,"):
        loaded(models)


def test_rows_that_depend_on_their_neighbours_are_run_alone(models):
    """As much as a range that is taken from the batch lets them: only single rows are run from then on."""
    place(models, less_the_mean_of_the_batch(0.05))
    model, _ = loaded(models)
    assert model.engine.buckets == (1,)


def test_rows_that_depend_on_nothing_but_their_neighbours_are_refused(models):
    """Each row minus the mean over the batch would be nothing, run alone: no client means that."""
    place(models, less_the_mean_of_the_batch(1.0))
    with pytest.raises(ArtifactInvalid, match="the graph's first axis is not the batch"):
        loaded(models)


def less_the_mean_of_the_batch(share):
    """Rows of three numbers, each minus a share of the mean over the batch."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Mul", ["mean", "share"], ["less"]),
        helper.make_node("Sub", ["x", "less"], ["y"]),
    ]
    return model_of(nodes, {"x": (3,)}, {"y": (3,)}, {"share": np.float32([share])})


def test_a_graph_that_cannot_run_on_what_is_made_for_it_is_refused(models):
    """With the runtime's own reason, and not as a crash."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    place(models, model_of([node], {"x": (3,)}, {"y": (7,)}, {"shape": np.array([-1, 7])}))
    with pytest.raises(ArtifactInvalid, match=r"fails on inputs made for it|cannot be loaded"):
        loaded(models)


def test_made_inputs_are_the_same_each_time_and_within_what_most_graphs_take():
    """Floats have a logarithm, wide integers are places in any table, bytes are pixels."""
    kinds = {"FP32": (0, 1), "FP16": (0, 1), "INT64": (0, 1), "UINT8": (0, 255), "BOOL": (0, 1)}
    specs = [TensorSpec(kind, kind, (None, 5, 7)) for kind in kinds]
    made, again = made_inputs(specs), made_inputs(specs)
    for name, (low, high) in kinds.items():
        assert made[name].shape == (16, 5, 7)
        assert (made[name].min() >= low, made[name].max() <= high) == (True, True)
        assert made[name].dtype == specs[list(kinds).index(name)].dtype
        np.testing.assert_array_equal(made[name], again[name])
    assert made_inputs([TensorSpec("x", "FP32", (4, 2))])["x"].shape == (4, 2)


def test_with_a_manifest_it_is_proved_like_any_other(models):
    """A manifest with its golden answers takes the mark off."""
    folder = place(models, artifacts.two_inputs_model())
    left, right = np.random.default_rng(3).standard_normal((2, 16, 3)).astype(np.float32)
    model, _ = loaded(models)
    assert not model.is_verified
    golden = {
        "inputs": artifacts.encode({"left": left, "right": right}),
        "outputs": artifacts.encode({"sum": left + right}),
        "tolerance": {"cpu": 1e-5, "cuda": 1e-4},
    }
    files = {"model.onnx": artifacts.file_entry(folder / "model.onnx")}
    manifest = {"format": 1, "name": "theirs", "version": 1, "files": files, "golden": golden}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    model, _ = loaded(models)
    assert model.is_verified


def raw_model(models: Path, tensor: bytes, how: str) -> None:
    """A model whose bytes hold a tensor that onnx's own writer would not write so."""
    model = artifacts.echo_model()
    if how == "an initializer":
        graph = model.graph.SerializeToString() + bytes([5 << 3 | 2]) + varint(len(tensor)) + tensor
    else:  # a Constant's, in two pieces
        half = onnx.TensorProto(name="c", data_type=1, dims=[1]).SerializeToString()
        attribute = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR).SerializeToString()
        for piece in (half, tensor):
            attribute += bytes([5 << 3 | 2]) + varint(len(piece)) + piece
        node = onnx.NodeProto(op_type="Constant", output=["c"]).SerializeToString()
        node += bytes([5 << 3 | 2]) + varint(len(attribute)) + attribute
        graph = model.graph.SerializeToString() + bytes([1 << 3 | 2]) + varint(len(node)) + node
    model.ClearField("graph")
    place(models, model.SerializeToString() + bytes([7 << 3 | 2]) + varint(len(graph)) + graph)


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7])


def five_bytes(number: int, kind: int) -> bytes:
    key = number << 3 | kind
    return bytes([key & 0x7F | 0x80, key >> 7 | 0x80, 0x80, 0x80, 0x10])


NAN = np.array([np.nan], "<f4").tobytes()
TENSOR = onnx.TensorProto(name="w", data_type=1, dims=[1]).SerializeToString()
ENTRY = onnx.StringStringEntryProto(key="location", value="../../etc/passwd").SerializeToString()


@pytest.mark.parametrize(
    ("tensor", "how", "expected"),
    [
        (TENSOR + five_bytes(13, 2) + bytes([len(ENTRY)]) + ENTRY, "an initializer", "keeps weights in another file"),
        (TENSOR + five_bytes(14, 0) + b"\x01", "an initializer", "keeps weights in another file"),
        (TENSOR + five_bytes(9, 2) + b"\x04" + NAN, "an initializer", "holds NaN"),
        (TENSOR + five_bytes(4, 2) + b"\x04" + NAN, "an initializer", "holds NaN"),
        (b"\x4a\x04" + NAN, "a constant in two pieces", "holds NaN"),
        (TENSOR + b"\x4a\x04" + NAN + b"\x10\x81\x80\x80\x80\x10", "an initializer", "holds NaN"),
        (TENSOR + b"\x4a\x04" + NAN + bytes([2 << 3 | 2, 1, 7]), "an initializer", "holds NaN"),
    ],
)
def test_odd_encodings_hide_nothing(models, tensor, how, expected):
    """Five-byte tags, messages in pieces, types of more bits than count or of another wire type."""
    raw_model(models, tensor, how)
    with pytest.raises(ArtifactInvalid, match=expected):
        opened(models)
