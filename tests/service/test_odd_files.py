"""Files that nobody tried before, each at every door: types, axes that are no batch, numbers that JSON cannot say."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto as Kind
from onnx import helper, numpy_helper

from foldserve.service.app import create_app
from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines.load import load_engine
from foldserve.service.errors import ArtifactInvalid, BucketsInvalid
from foldserve.service.settings import Settings
from tests.support import exported
from tests.support.live import serve

grpc = pytest.importorskip("grpc", reason="needs the extra grpc")

from tests.support.grpc_calls import MESSAGES, stubs  # noqa: E402


def graph(
    op: str, kind: int, shape: Sequence[object], *, constants: dict[str, np.ndarray] | None = None, **attributes: object
) -> onnx.ModelProto:
    """One operator from `x` to `y`, of one type and shape; constants are further inputs."""
    made = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    nodes = [helper.make_node(op, ["x", *(tensor.name for tensor in made)], ["y"], **attributes)]
    inner = helper.make_graph(nodes, op, values[:1], values[1:], made)
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SERVED = {
    "half": (graph("Neg", Kind.FLOAT16, ["N", 3]), np.float16, "FP16"),
    "double": (graph("Neg", Kind.DOUBLE, ["batch_size", 3]), np.float64, "FP64"),
    "int8": (graph("Neg", Kind.INT8, ["-1", 3]), np.int8, "INT8"),
    "unnamed": (graph("Neg", Kind.FLOAT, ["", 3]), np.float32, "FP32"),
    "three": (graph("Neg", Kind.FLOAT, [3, 3]), np.float32, "FP32"),
    "five": (graph("Neg", Kind.FLOAT, [5, 3]), np.float32, "FP32"),
}
LOG = graph("Log", Kind.FLOAT, ["N", 3])
RANDOM = graph("RandomNormalLike", Kind.FLOAT, ["N", 3])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    root = tmp_path_factory.mktemp("models")
    for name, model in {"log": LOG, "random": RANDOM, **{name: made[0] for name, made in SERVED.items()}}.items():
        exported.save(root, name, model)
    app = create_app(Settings(models_dir=root, provider="cpu", buckets=(1, 8), allow_unverified=True, grpc_port=0))
    with (
        serve(app) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as http,
        grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel,
    ):
        yield SimpleNamespace(http=http, infer=stubs(channel).ModelInfer)


@pytest.mark.parametrize("name", SERVED)
def test_every_door_gives_the_negated_rows(service, name):
    """Any type, any name of the batch, any batch that a graph fixes: four rows by /predict, V1 and gRPC."""
    _, dtype, datatype = SERVED[name]
    rows = np.arange(12).reshape(4, 3).astype(dtype)
    instances = {"instances": rows.tolist()}
    predicted = service.http.post(f"/predict?model={name}", json=instances)
    assert predicted.status_code == 200, predicted.text
    assert np.array_equal([row["outputs"]["y"] for row in predicted.json()["predictions"]], -rows)
    assert np.array_equal(service.http.post(f"/v1/models/{name}:predict", json=instances).json()["predictions"], -rows)
    message = MESSAGES["ModelInferRequest"](model_name=name)
    message.inputs.add(name="x", datatype=datatype, shape=rows.shape)
    message.raw_input_contents.append(rows.tobytes())
    assert np.array_equal(np.frombuffer(service.infer(message).raw_output_contents[0], dtype).reshape(4, 3), -rows)


def test_what_does_not_fit_half_precision_is_refused_by_its_place(service):
    """A number is rounded to FP16 but never to infinity."""
    refused = service.http.post("/predict?model=half", json={"instances": [[1, 2, 3], [1, 70_000, 3]]})
    assert refused.status_code == 400
    assert "instances[1]: a number beyond 65504, expected one that fits FP16" in refused.json()["error"]


@pytest.mark.parametrize("path", ["/predict?model=log", "/v1/models/log:predict"])
def test_an_answer_that_json_cannot_say_is_the_inputs_matter(service, path):
    """The logarithm of a negative number is no failure of the service; the door that can say it is named."""
    assert service.http.post(path, json={"instances": [[1, 2, 3]]}).status_code == 200
    refused = service.http.post(path, json={"instances": [[1, -2, 3]]})
    assert refused.status_code == 400
    assert "y that are not finite numbers, which JSON cannot say: /v2/models/log/infer" in refused.json()["error"]


def test_random_numbers_are_served_and_said_to_vary(service):
    """They depend on nothing, and so not on the batch either."""
    assert service.http.get("/v2/models/random").json()["properties"]["batch_invariant"] == "false"


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (graph("Softmax", Kind.FLOAT, ["time", 3], axis=0), ArtifactInvalid, "the graph's first axis is not the batch"),
        (
            graph("CumSum", Kind.FLOAT, ["T", 3], constants={"axis": np.array(0)}),
            ArtifactInvalid,
            "a row gets another answer beside another row",
        ),
        (graph("Neg", Kind.FLOAT, [0, 3]), BucketsInvalid, "batches of 0 rows; export it with a free first axis"),
        (graph("Neg", Kind.FLOAT, [9, 3]), BucketsInvalid, "exactly 9 rows, more than the largest bucket"),
    ],
)
def test_what_is_no_batch_is_refused_with_what_to_do(tmp_path, model, error, message):
    """Served row by row it would give wrong answers without a word."""
    exported.save(tmp_path, "odd", model)
    artifact = Repository(tmp_path, allow_unverified=True).open("odd")
    with pytest.raises(error, match=message):
        load_engine(artifact, provider="cpu", threads=1, buckets=(1, 8))
