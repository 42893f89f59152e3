"""Networks as older PyTorch, TensorFlow and Paddle write them: served as they are, and published, asked over HTTP."""

import contextlib
import io
from collections.abc import Iterator

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest

from foldserve import publish
from foldserve.service.app import create_app
from foldserve.service.artifacts.repository import Repository
from foldserve.service.errors import ArtifactInvalid
from foldserve.service.settings import Settings
from foldserve.training.errors import VerifyError
from tests.support import exported, exporters
from tests.support.live import serve

MODELS = {
    "torch-9": exporters.old_pytorch(9),
    "torch-10": exporters.old_pytorch(10),
    "torch-11": exporters.old_pytorch(11),
    "torch-one": exporters.old_pytorch(9, batch=1),
    "tensorflow": exporters.tf2onnx(),
    "tensorflow-five": exporters.tf2onnx(five_outputs=True),
    "paddle": exporters.paddle(),
    "five-7": exporters.five_output_norm(7),
    "five-13": exporters.five_output_norm(13),
    "tied": exporters.tied(),
    "tied-half": exporters.tied(np.float16),
    "bfloat16": exporters.bfloat16(),
}
SIZES = {"paddle": ["2,3,16,16"]}  # what publish has to be told
RNG = np.random.default_rng(8)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    """One that serves the files as they are, one that serves what was published of them."""
    as_they_are, published = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("published")
    with contextlib.redirect_stdout(io.StringIO()):
        for name, model in MODELS.items():
            exported.save(as_they_are, name, model)
            publish(model, name=name, inputs=SIZES.get(name, []), models_dir=published)
    options = {"provider": "cpu", "buckets": (1, 4), "canary_seconds": 0, "specialise": False}
    apps = {
        "as they are": create_app(Settings(models_dir=as_they_are, allow_unverified=True, **options)),
        "published": create_app(Settings(models_dir=published, **options)),
    }
    with contextlib.ExitStack() as stack:
        yield {
            how: stack.enter_context(httpx.Client(base_url=stack.enter_context(serve(app)), timeout=60))
            for how, app in apps.items()
        }


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The file in onnxruntime, its norms with their result alone: what the network computes at rest."""
    at_rest = onnx.ModelProto()
    at_rest.CopyFrom(model)
    for node in at_rest.graph.node:
        if node.op_type == "BatchNormalization":
            del node.output[1:]
    return onnxruntime.InferenceSession(at_rest.SerializeToString(), providers=["CPUExecutionProvider"])


def rows_for(taken: onnxruntime.InferenceSession, rows: int) -> np.ndarray:
    (value,) = taken.get_inputs()
    shape = [rows, *(size if isinstance(size, int) and size > 0 else 16 for size in value.shape[1:])]
    if value.type == "tensor(int64)":
        return RNG.integers(0, 11, shape)
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("how", ["as they are", "published"])
@pytest.mark.parametrize("name", MODELS)
def test_each_answers_as_in_onnxruntime(services, name, how):
    """Row by row, whatever else is in the batch; the names of inputs and outputs stay."""
    original = session(MODELS[name])
    array = rows_for(original, 5)
    (taken,), (given,) = original.get_inputs(), original.get_outputs()
    expected = np.concatenate([original.run(None, {taken.name: array[row : row + 1]})[0] for row in range(5)])
    answer = services[how].post(f"/predict?model={name}", json={"instances": array.tolist()})
    assert answer.status_code == 200, answer.text
    found = [row["outputs"][given.name] for row in answer.json()["predictions"]]
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5, atol=1e-5)
    metadata = services[how].get(f"/v2/models/{name}").json()
    assert [entry["name"] for entry in metadata["inputs"]] == [taken.name]


def test_statistics_of_a_batch_that_something_reads_are_refused(tmp_path):
    """The answers of such a graph depend on the other rows, in every form of it."""
    exported.save(tmp_path, "used", exporters.five_output_norm(used=True))
    with pytest.raises(ArtifactInvalid, match="BatchNormalization in training mode"):
        Repository(tmp_path, allow_unverified=True).open("used")
    with pytest.raises(VerifyError, match="cannot be evaluated"):
        publish(exporters.five_output_norm(used=True), name="used", models_dir=tmp_path / "published")


def norm_in_a_branch(*further: str) -> onnx.ModelProto:
    """A norm of opset 9 in the body of an If, with further outputs that have these names."""
    values = np.float32([[1, 2, 0.5], [0.1, 0.2, 0.3], [0, 1, 2], [1, 2, 3]])
    tensors = [onnx.numpy_helper.from_array(row, name) for row, name in zip(values, "sbmv", strict=True)]
    tensors.append(onnx.numpy_helper.from_array(np.array(True), "always"))

    def body(nodes: list[onnx.NodeProto], name: str) -> onnx.GraphProto:
        return onnx.helper.make_graph(nodes, name, [], [onnx.helper.make_tensor_value_info(name, 1, None)])

    norm = onnx.helper.make_node("BatchNormalization", ["a", *"sbmv"], ["normed", *further])
    one = body([onnx.helper.make_node("Relu", ["x"], ["a"]), norm], "normed")
    other = body([onnx.helper.make_node("Relu", ["x"], ["kept"])], "kept")
    choice = onnx.helper.make_node("If", ["always"], ["y"], then_branch=one, else_branch=other)
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["N", 3]) for name in "xy")
    graph = onnx.helper.make_graph([choice], "branches", [x], [y], tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 9)], ir_version=4)


@pytest.mark.parametrize("further", [["", "", "", ""], ["", "b1", "", ""], ["a1", "b1", "c1", ""]])
def test_outputs_without_a_name_are_refused_or_left_out_since_they_end_the_process(tmp_path, further):
    """The runtime writes to what a norm in a body does not name: the service refuses the file, publish mends it."""
    exported.save(tmp_path, "ends", norm_in_a_branch(*further))
    with pytest.raises(ArtifactInvalid, match=r"BatchNormalization (with outputs that have no name|in training mode)"):
        Repository(tmp_path, allow_unverified=True).open("ends")
    publish(norm_in_a_branch(*further), name="mended", models_dir=tmp_path / "published")
    published = onnx.load(tmp_path / "published" / "mended" / "1" / "model.onnx")
    x = RNG.normal(size=(3, 3)).astype(np.float32)
    expected = session(norm_in_a_branch()).run(None, {"x": x})[0]
    np.testing.assert_allclose(session(published).run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)


def test_a_batch_that_one_input_fixes_at_one_is_served_one_by_one(tmp_path):
    """`{1, None}`: as many rows as a client likes, each in a run of its own."""
    model = exporters.mixed_batches()
    exported.save(tmp_path / "models", "mixed", model)
    a, b = RNG.normal(size=(2, 3, 3)).astype(np.float32)
    original = session(model)
    expected = np.concatenate(
        [original.run(None, {"a": a[row : row + 1], "b": b[row : row + 1]})[0] for row in range(3)]
    )
    publish(model, name="proved", models_dir=tmp_path / "models")
    app = create_app(Settings(models_dir=tmp_path / "models", provider="cpu", buckets=(1, 4), allow_unverified=True))
    instances = [{"a": one.tolist(), "b": other.tolist()} for one, other in zip(a, b, strict=True)]
    with serve(app) as url:
        for name in ("mixed", "proved"):
            answer = httpx.post(f"{url}/predict?model={name}", json={"instances": instances}, timeout=60)
            found = [row["outputs"]["y"] for row in answer.json()["predictions"]]
            np.testing.assert_allclose(found, expected, atol=1e-5)
