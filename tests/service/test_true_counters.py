"""Counters that tell of clients: what they asked, and nothing that the service asked itself."""

from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from foldserve.service.app import create_app
from foldserve.service.live.canary import Canary
from foldserve.service.settings import Settings
from tests.support import artifacts, operator
from tests.support.live import serve
from tests.support.live_models import loaded
from tests.support.wire import on_loop

ONE = artifacts.images(1, seed=5).tobytes()
INFER = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
NOT_FOR_THE_LANE = {"Content-Encoding": "identity"}


def samples(http: httpx.Client, name: str) -> dict[str, float]:
    """The series of a metric: what stands between its braces, and its value."""
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(f"foldserve_{name}{{")]
    return {line.partition("{")[2].rpartition("}")[0]: float(line.rpartition(" ")[2]) for line in lines}


def statistics(http: httpx.Client, version: int = 1) -> dict:
    """What the protocol's statistics say of one version."""
    (only,) = http.get(f"/v2/models/fashion/versions/{version}/stats").json()["model_stats"]
    return only


@on_loop
async def test_an_idle_service_has_answered_nobody(fashion):
    """Loads and canaries run sixteen rows each; none of them is an answer, in metrics and statistics alike."""
    async with loaded(fashion) as models:
        canary = Canary(models.registry, 5.0)
        (model,) = models.registry.models()
        for _ in range(4):
            await canary.check(model)
        assert models.value("check_rows_total", model="fashion", source="golden") == 16
        ran = models.value("check_rows_total", model="fashion", source="canary")
        assert ran >= 3 * 16
        for name in ("rows_total", "padded_rows_total", "batch_rows_count", "queue_seconds_count", "infer_seconds_sum"):
            assert models.value(name, model="fashion") == 0, name
        told = model.statistics.to_json("fashion", 1)
        assert (told["inference_count"], told["execution_count"], told["last_inference"]) == (0, 0, 0)
        assert told["inference_stats"]["success"] == {"count": 0, "ns": 0}
        assert told["batch_stats"] == []
        assert told["check_rows"] == {"golden": 16, "canary": ran, "shadow": 0}


@pytest.fixture(params=[0.05], ids=["canaries"])
def service(fashion, request) -> Iterator[SimpleNamespace]:
    """One classifier; a canary asks it all the time, or, where the parameter is 0, never."""
    settings = {"canary_seconds": request.param, "hang_seconds": 0}
    app = create_app(Settings(models_dir=fashion, provider="cpu", buckets=(1, 4), **settings))
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield SimpleNamespace(app=app, http=http)


def test_each_door_counts_the_same(service):
    """Nine requests behind four doors, canaries in between: nine requests, nine rows, nine answers."""
    for path, headers in [("/predict", {}), ("/v2/models/fashion/infer", INFER), ("/predict", NOT_FOR_THE_LANE)]:
        for _ in range(3):
            octets = {"Content-Type": "application/octet-stream"}
            assert service.http.post(path, content=ONE, headers=octets | headers).status_code == 200
    assert samples(service.http, "rows_total") == {'model="fashion"': 9}
    assert samples(service.http, "batch_rows_count") == {'model="fashion"': 9}
    told = statistics(service.http)
    assert (told["inference_count"], told["execution_count"]) == (9, 9)
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert told["inference_stats"][stage]["count"] == 9
        assert told["inference_stats"][stage]["ns"] > 0, stage
    stages = sum(told["inference_stats"][f"compute_{stage}"]["ns"] for stage in ("input", "infer", "output"))
    assert stages + told["inference_stats"]["queue"]["ns"] <= told["inference_stats"]["success"]["ns"]
    assert samples(service.http, "model_requests_total") == {
        'model="fashion",outcome="answered",version="1"': 9,
        'model="fashion",outcome="failed",version="1"': 0,
    }


@pytest.mark.parametrize("service", [0], ids=["no canaries"], indirect=True)  # one would turn ready false first
def test_a_request_that_fails_is_counted_for_its_version(service):
    """Once it is read; one that cannot be read is no request of any version."""
    engine = service.app.state.registry.get().engine
    runner, engine._runner = engine._runner, None  # whatever is asked now fails
    for path in ("/predict", "/v2/models/fashion/infer"):
        for headers in ({}, NOT_FOR_THE_LANE):
            assert service.http.post(path, content=ONE, headers=INFER | headers).status_code == 500
    engine._runner = runner
    assert service.http.post("/predict", content=b"x", headers=INFER).status_code == 400
    counted = samples(service.http, "model_requests_total")
    assert counted['model="fashion",outcome="failed",version="1"'] == 4
    assert statistics(service.http)["inference_stats"]["fail"]["count"] == 4


def test_a_shadow_answers_nobody(tmp_path):
    """Its rows are counted as such, for the metrics and for its version; the version that answers has them all."""
    for version in (1, 2):
        operator.publish(tmp_path / "models", version)
    with operator.running(tmp_path / "models") as http:
        http.done("models/fashion/shadow", version=1, seconds=600)
        for _ in range(5):
            assert http.answering() == 2
        http.compared(20)
        assert samples(http, "rows_total") == {'model="fashion"': 20}
        checked = samples(http, "check_rows_total")
        assert checked['model="fashion",source="shadow"'] == 20
        shadow, live = statistics(http, 1), statistics(http, 2)
        assert (shadow["inference_count"], shadow["check_rows"]["shadow"], shadow["last_inference"]) == (0, 20, 0)
        assert (live["inference_count"], live["check_rows"]["shadow"]) == (20, 0)
        requests = samples(http, "model_requests_total")
        assert requests['model="fashion",outcome="answered",version="1"'] == 0
        assert requests['model="fashion",outcome="answered",version="2"'] == 5


@on_loop
async def test_counts_hold_under_thousands_of_batches(fashion):
    """More than are noted before they are counted, of several sizes: sums, sizes and times agree."""
    async with loaded(fashion, buckets=(1, 4)) as models:
        (model,) = models.registry.models()
        for rows in (1, 3, 4) * 700:
            await model.batcher.infer({"image": artifacts.images(rows)})
        told = model.statistics.to_json("fashion", 1)
        assert (told["inference_count"], told["execution_count"]) == (8 * 700, 3 * 700)
        assert {entry["batch_size"]: entry["compute_infer"]["count"] for entry in told["batch_stats"]} == {
            1: 700,
            3: 700,
            4: 700,
        }
        assert models.value("rows_total", model="fashion") == 8 * 700
        assert models.value("padded_rows_total", model="fashion") == 700
        seconds = models.value("infer_seconds_sum", model="fashion")
        spent = sum(entry[f"compute_{name}"]["ns"] for entry in told["batch_stats"] for name in ("input", "infer"))
        np.testing.assert_allclose(spent / 1e9, seconds, rtol=1e-6)
