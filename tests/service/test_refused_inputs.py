"""Inputs of the right shape that a graph cannot take: the client's mistake behind every door, and nobody else's.

onnxruntime reports them under codes that it has for failures of its own, too. What tells them apart is whether the
golden inputs still run.
"""

import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.service.app import create_app
from foldserve.service.live.canary import Canary
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve
from tests.support.live_models import loaded
from tests.support.wire import on_loop

TABLE = np.arange(8, dtype=np.float32)
DIVIDEND = np.full((1, 4), 12, np.int64)


def graph(nodes, inputs, outputs, constants=()):
    """A graph of a few nodes; each input and output as name, type and row shape."""
    described = [
        [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, kind, shape in tensors]
        for tensors in (inputs, outputs)
    ]
    return artifacts._model(
        helper.make_graph(nodes, "g", *described, [numpy_helper.from_array(array, name) for name, array in constants]),
        {},
    )


def lookup():
    """`y` is the element of a table at `x`; INVALID_ARGUMENT beyond it."""
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    return graph([node], [("x", TensorProto.INT64, [4])], [("y", TensorProto.FLOAT, [4])], [("table", TABLE)])


def quotient():
    """`y` is 12 / `x`; FAIL for zero, with which batches are filled up."""
    node = helper.make_node("Div", ["dividend", "x"], ["y"])
    return graph([node], [("x", TensorProto.INT64, [4])], [("y", TensorProto.INT64, [4])], [("dividend", DIVIDEND)])


def picked():
    """`y` is the elements of a row at `x`; FAIL beyond it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["row"], to=TensorProto.FLOAT),
        helper.make_node("GatherElements", ["row", "x"], ["y"], axis=1),
    ]
    return graph(nodes, [("x", TensorProto.INT64, [4])], [("y", TensorProto.FLOAT, [4])])


# Model, inputs that it takes, what it answers, inputs that it cannot take, and what onnxruntime says of them.
CASES = {
    "lookup": (lookup, [7, 0, 1, -8], [7, 0, 1, 0], [8, 0, 0, 0], "idx=8 must be within the inclusive range [-8,7]"),
    "quotient": (quotient, [1, 2, 3, 12], [12, 6, 4, 1], [1, 0, 1, 1], "Integer division by zero"),
    "picked": (picked, [3, 2, 1, 0], [0, 1, 2, 3], [0, 4, 0, 0], "Out of range value in index tensor"),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Each model published with its golden answers, behind HTTP and gRPC."""
    pytest.importorskip("grpc", reason="needs the extra grpc")
    import grpc

    from tests.support.grpc_calls import stubs

    root = tmp_path_factory.mktemp("models")
    publish_all(root)
    settings = Settings(
        models_dir=root, provider="cpu", buckets=(1, 4), grpc_port=0, canary_seconds=0, default_deadline_ms=300_000
    )
    app = create_app(settings)
    with (
        serve(app) as url,
        httpx.Client(base_url=url, timeout=60) as http,
        grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel,
    ):
        yield SimpleNamespace(app=app, http=http, calls=stubs(channel))


def publish_all(root):
    for name, (model, good, answer, _, _) in CASES.items():
        made = model()
        dtype = np.int64 if made.graph.output[0].type.tensor_type.elem_type == TensorProto.INT64 else np.float32
        artifacts.publish(root, name, made, {"x": np.array([good] * 4)}, {"y": np.array([answer] * 4, dtype)})


def body(*rows: list[int]) -> dict:
    return {"inputs": [{"name": "x", "shape": [len(rows), 4], "datatype": "INT64", "data": [*map(list, rows)]}]}


def failures(service: SimpleNamespace, name: str) -> float:
    text = service.http.get("/metrics").text.splitlines()
    prefix = f'foldserve_batch_failures_total{{model="{name}"}} '
    return float(next(line for line in text if line.startswith(prefix)).removeprefix(prefix))


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "identity"}], ids=["lane", "application"])
@pytest.mark.parametrize("name", CASES)
def test_a_client_is_told_what_the_graph_cannot_take(service, caplog, capfd, name, headers):
    """400 with onnxruntime's sentence, counted as failed; no line in the log, no failure of the engine."""
    _, good, answer, bad, says = CASES[name]
    path = f"/v2/models/{name}/infer"
    with caplog.at_level(logging.INFO):
        refused = service.http.post(path, json=body(bad), headers=headers)
        served = service.http.post(path, json=body(good), headers=headers)
    assert refused.status_code == 400
    assert says in refused.json()["error"]
    assert served.json()["outputs"][0]["data"] == answer
    assert [record for record in caplog.records if record.name.startswith("foldserve")] == []
    assert capfd.readouterr().err == ""
    assert failures(service, name) == 0
    statistics = service.http.get(f"/v2/models/{name}/stats").json()["model_stats"][0]["inference_stats"]
    assert statistics["fail"]["count"] > 0


@pytest.mark.parametrize("name", CASES)
def test_the_same_over_grpc(service, name):
    """INVALID_ARGUMENT with the same sentence, with typed numbers."""
    import grpc

    from foldserve.service.v2.rpc.messages import from_dict

    _, _, _, bad, says = CASES[name]
    tensor = {"name": "x", "datatype": "INT64", "shape": [1, 4], "contents": {"int64_contents": bad}}
    with pytest.raises(grpc.RpcError) as refusal:
        service.calls.ModelInfer(from_dict("ModelInferRequest", {"model_name": name, "inputs": [tensor]}))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert says in refusal.value.details()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_what_fills_a_batch_up_is_nobodys_mistake(service, rows):
    """A batch of three is run as four; the fourth row divides by zero unless it is chosen with care."""
    _, good, answer, _, _ = CASES["quotient"]
    served = service.http.post("/v2/models/quotient/infer", json=body(*[good] * rows))
    assert served.json()["outputs"][0]["data"] == answer * rows


@on_loop
async def test_an_engine_that_cannot_run_anything_is_no_mistake_of_clients(models):
    """The same words from onnxruntime, but for the golden inputs too: 500, and the canary counts it."""
    publish_all(models)
    async with loaded(models, buckets=(1, 4)) as live:
        canary = Canary(live.registry, 5.0)
        model = live.registry.get("lookup")
        await canary.check(model)
        bad = {"x": np.array([[8, 0, 0, 0]])}
        with pytest.raises(Exception) as refusal:
            await model.batcher.infer(bad)
        words = str(refusal.value.__cause__.__cause__)
        assert (refusal.value.status, live.value("batch_failures_total", model="lookup")) == (400, 0)

        class Broken:
            def run(self, inputs):
                raise RuntimeError(words)

        model.engine._runner = Broken()
        with pytest.raises(Exception) as failure:
            await model.batcher.infer(bad)
        assert (failure.value.status, live.value("batch_failures_total", model="lookup")) == (500, 1)
        await canary.check(model)
        assert live.value("batch_failures_total", model="lookup") == 2
        assert not live.registry.ready
        assert "idx=8" in json.dumps(live.registry.reasons)
