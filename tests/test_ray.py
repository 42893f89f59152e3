"""The replica of Ray Serve without Ray: what Ray calls, in Ray's order; Ray itself runs in `make cluster-test`."""

import asyncio
import inspect
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from pydantic import BaseModel
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http import auto

import foldserve.ray
from foldserve.ray.replica import BUSY, Replica
from foldserve.service.errors import InvalidInput, ModelNotFound, NotReady, TooManyRows
from foldserve.service.settings import Settings
from tests.support import artifacts, processes

PIXELS = artifacts.images(3)


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn's own class of connections comes back behind each test, and so does the log."""
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    artifacts.publish_classifier(tmp_path)
    return Settings(models_dir=tmp_path, provider="cpu", buckets=(1, 4), max_rows=8, host="0.0.0.0", canary_seconds=0)


@asynccontextmanager
async def replica_on(settings: Settings) -> Any:
    """A replica that serves, as `ray.serve` starts one: the application, its lifespan, then a server without one."""
    replica = Replica(settings)
    lifespan = LifespanOn(uvicorn.Config(replica.__serve_build_asgi_app__(), lifespan="on", log_config=None))
    await lifespan.startup()
    assert not lifespan.should_exit
    config = uvicorn.Config(lifespan.config.app, lifespan="off", log_config=None, port=0, access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            yield replica, http
    finally:
        await server.shutdown()
        await lifespan.shutdown()


def test_a_replica_answers_on_the_lane_and_by_handle(settings):
    """A usual request takes the fast lane though the server is Ray's, and a handle gives the same numbers."""

    async def scenario() -> None:
        async with replica_on(settings) as (replica, http):
            await replica.check_health()
            answer = await http.post("/predict", content=PIXELS.tobytes(), headers=processes.OCTETS)
            expected = artifacts.classify(PIXELS)
            predicted = [prediction["class_id"] for prediction in answer.json()["predictions"]]
            assert predicted == expected["class_id"].ravel().tolist()
            assert "parse;dur=0.000" in answer.headers["server-timing"]  # raw rows: only the lane has nothing to parse
            outputs = await replica.infer(None, {"image": PIXELS})
            assert outputs["class_id"].tolist() == expected["class_id"].tolist()
            np.testing.assert_allclose(outputs["probabilities"], expected["probabilities"], rtol=1e-5)
            assert (
                await replica.infer("fashion", {"image": PIXELS[:1]}, version=1, label=None)
            ).keys() == outputs.keys()
            assert replica.record_autoscaling_stats()[BUSY] > 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("model", "inputs", "error", "says"),
    [
        (None, {"image": PIXELS[:, 0]}, InvalidInput, r"shape \[3, 28, 28\], expected \[N, 1, 28, 28\]"),
        (None, {"image": PIXELS.astype(np.float64)}, InvalidInput, "datatype FP64, expected UINT8"),
        (None, {"image": PIXELS.astype("datetime64[s]")}, InvalidInput, "datatype 'datetime64"),
        (None, {"image": np.array(["x"], object)}, InvalidInput, "objects, expected bytes"),
        (None, {"image": np.uint8(1)}, InvalidInput, r"shape \[\]"),
        (None, {}, InvalidInput, "inputs: got 0, expected 1"),
        (None, {"image": artifacts.images(9)}, TooManyRows, "9 rows"),
        ("none", {"image": PIXELS}, ModelNotFound, "'none' is not served"),
    ],
)
def test_a_handle_refuses_what_the_infer_route_refuses(settings, model, inputs, error, says):
    """With the same sentences."""

    async def scenario() -> None:
        async with replica_on(settings) as (replica, _):
            with pytest.raises(error, match=says):
                await replica.infer(model, inputs)

    asyncio.run(scenario())


def test_a_replica_that_is_not_ready_is_not_healthy(settings):
    """Ray replaces it then."""

    async def scenario() -> None:
        async with replica_on(settings) as (replica, _):
            replica._parts.registry.doubt("fashion", "its golden answers differ")
            with pytest.raises(NotReady, match="golden answers"):
                await replica.check_health()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("busy", "replicas", "wanted"), [((0.9,), 1, 2), ((0.5,), 1, 1), ((0.9, 0.9), 2, 3), ((0.1, 0.1), 2, 1), ((), 2, 2)]
)
def test_busy_replicas_get_company(busy, replicas, wanted):
    """Six tenths of its cores are enough for one; without a signal their number stays."""
    metrics = {BUSY: dict(enumerate(busy))} if busy else {}
    bounds = {"capacity_adjusted_min_replicas": 0, "capacity_adjusted_max_replicas": 3}
    context = SimpleNamespace(current_num_replicas=replicas, aggregated_metrics=metrics, **bounds)
    assert foldserve.ray.busy_policy(context) == (wanted, {})


def test_replicas_decide_nothing_by_a_measurement_of_their_own(tmp_path, monkeypatch):
    """Two that had measured other graphs or threads would differ in the last bits; what was asked for stays."""
    monkeypatch.chdir(tmp_path)
    alone = Settings(models_dir="models", workers=3)
    changed = alone.model_copy(update=foldserve.ray._of_replicas(alone, 2))
    assert (changed.specialise, changed.threads, changed.workers) == (False, 2, 1)
    assert changed.models_dir == tmp_path / "models"
    stated = Settings(specialise=True, threads=4)
    kept = stated.model_copy(update=foldserve.ray._of_replicas(stated, 0.5))
    assert (kept.specialise, kept.threads) == (True, 4)


def test_a_serve_config_file_can_name_the_builder():
    """Ray calls a plain function with one dictionary, `args`, and converts nothing where it is no model of pydantic."""
    assert inspect.isfunction(foldserve.ray.build)
    (parameter,) = inspect.signature(foldserve.ray.build).parameters.values()
    assert not inspect.isclass(parameter.annotation) or not issubclass(parameter.annotation, BaseModel)


def without_ray(*flags: str) -> subprocess.CompletedProcess[str]:
    """`foldserve serve` where Ray cannot be imported."""
    program = "import sys; sys.modules['ray'] = None; from foldserve.command import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "serve", "--on", "ray", "--port", "0", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=processes.environment(), timeout=60)


def test_without_ray_the_start_names_the_extra():
    """One sentence, and the code of a mistake that can be mended."""
    done = without_ray("--host", "0.0.0.0")
    assert done.stderr == "foldserve serve: ray is not installed: pip install 'foldserve[ray]'\n"
    assert done.returncode == 2


def test_without_ray_an_application_names_the_extra(monkeypatch):
    """As every extra does."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"ray is not installed: pip install 'foldserve\[ray\]'"):
        foldserve.ray.app("models")


def test_grpc_is_refused_before_anything_starts():
    """It does not pass through Ray."""
    with pytest.raises(ValueError, match="gRPC does not pass through Ray"):
        foldserve.ray.app("models", grpc_port=8001)
