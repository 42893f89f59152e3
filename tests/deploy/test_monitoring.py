"""Rules and dashboard, on Debian's Prometheus and a real service: each panel shows something once something happens.

Grafana itself cannot be had here, so that its provisioning is not started: the dashboard is held to the types of its
schema, which `make cluster-test` installs, and its queries are asked of a Prometheus that scrapes the service.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper
from PIL import Image

from foldserve.service.keys import new_key
from tests.support import artifacts, processes
from tests.support.manifests import TOOLS

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy/monitoring"
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/foldserve.json").read_text())
SURFACE = json.loads((ROOT / "tests/surface.json").read_text())["metrics"]
TYPES = TOOLS / "npm/node_modules"
NEVER = "abandoned_loads"  # would take a load that never ends; the series is there, and its rate is asked for

needs_prometheus = pytest.mark.skipif(not shutil.which("promtool"), reason="needs apt-get install prometheus")


def queries() -> dict[str, str]:
    """Each query of the dashboard with its variables filled in, by panel and letter."""
    asked = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "8s")
            text = text.replace("$instance", ".*").replace("$model", ".*")
            assert "$" not in text, text
            asked[f"{panel['title']} {target['refId']}"] = text
    return asked


def metrics_in(text: str) -> set[str]:
    """The families of metrics that a query names."""
    named = set(re.findall(r"\b(?:foldserve|process)_\w+", text))
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named}


@pytest.mark.parametrize("file", ["alerts.yml", "alerts.test.yml", "grafana/dashboards/foldserve.json"])
def test_only_metrics_that_exist_are_asked_for(file):
    """A misspelt name would be a panel without data, and an alert that never fires."""
    assert metrics_in((MONITORING / file).read_text()) <= {re.sub(r"_total$", "", name) for name in SURFACE}


def test_every_alert_is_tested():
    """Each has a case in which it fires; none fires for a service that is well."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.safe_load((MONITORING / "alerts.test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules}
    assert {"expr": "ALERTS", "eval_time": "50m", "exp_samples": []} in tests[-1]["promql_expr_test"]


@needs_prometheus
@pytest.mark.parametrize(
    "words", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts.test.yml"]
)
def test_prometheus_takes_the_files(words):
    """Its own tool reads them, and runs the rules on made series."""
    done = subprocess.run(["promtool", *words.split()], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_mounts_what_is_there():
    """Prometheus and Grafana find their files where their images look for them."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounts = [mount.split(":") for name in ("prometheus", "grafana") for mount in services[name]["volumes"]]
    held = {there: ROOT / here for here, there, *_ in mounts if here.startswith("./")}
    assert all(path.exists() for path in held.values())
    provider = yaml.safe_load((MONITORING / "grafana/dashboards/foldserve.yml").read_text())["providers"][0]
    assert provider["options"]["path"] == "/etc/grafana/provisioning/dashboards"
    assert held["/etc/grafana/provisioning"] == MONITORING / "grafana"
    source = yaml.safe_load((MONITORING / "grafana/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["uid"] == DASHBOARD["templating"]["list"][0]["current"]["value"]


@pytest.mark.slow
@pytest.mark.skipif(
    not ((TOOLS / ".installed").exists() and TYPES.exists()),
    reason="needs npm and make cluster-test, for the types of Grafana",
)
@pytest.mark.parametrize("misspelt", [None, ("gridPos", "girdPos"), ("unit", "unti"), ("targets", "xargets")])
def test_the_dashboard_is_one_by_the_types_of_grafana(tmp_path, misspelt):
    """The compiler takes it as it is, and no member that the schema does not know."""
    text = json.dumps(DASHBOARD)
    if misspelt is not None:
        text = text.replace(f'"{misspelt[0]}"', f'"{misspelt[1]}"')
    types = TYPES / "@grafana/schema/dist/types/raw/dashboard/x/types.gen"
    imported = f'import type {{ Dashboard }} from "{types}";'
    (tmp_path / "d.ts").write_text(f"{imported}\nexport const d: Dashboard = {text};\n")
    flags = ["--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "node", "d.ts"]
    compiler = TYPES / ".bin/tsc"
    done = subprocess.run([str(compiler), *flags], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) is (misspelt is None), done.stdout


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Prometheus with our files, but for pace and target."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(MONITORING / "alerts.yml", folder)
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            until = time.monotonic() + 30
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/-/ready").status_code == 200:
                        break
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
            yield http
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def readings(http: httpx.Client) -> dict[str, Any]:
    """What each query of the dashboard gives now; rows that are NaN are no data."""
    found = {}
    for name, query in queries().items():
        answer = http.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        rows = [(row["metric"], row["value"][1]) for row in answer["data"]["result"] if row["value"][1] != "NaN"]
        found[name] = sorted(rows, key=str)
    return found


def pick_model(root: Path, name: str = "pick") -> None:
    """A model that looks its row up in a table of 4: 9 is an input that it cannot take."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [4, 1], [0.0, 1.0, 2.0, 3.0])
    node = helper.make_node("Gather", ["table", "index"], ["value"], axis=0)
    graph = helper.make_graph(
        [node],
        "pick",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N", 1])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    asked = np.arange(16, dtype=np.int64) % 4
    artifacts.publish(root, name, model, {"index": asked}, {"value": asked[:, None].astype(np.float32)})


def known_traffic(models: Path, http: httpx.Client, key: str) -> None:
    """Something of everything that the dashboard shows."""
    artifacts.publish_classifier(models, version=2, seed=1)  # is loaded, proved and becomes latest
    pixels = artifacts.images(3).tobytes()
    opened = {**processes.OCTETS, "X-API-Key": key}
    picture = {"Content-Type": "image/png", "X-API-Key": key, "X-Deadline-Ms": "1"}
    large = png(1500)
    with ThreadPoolExecutor(8) as pool:
        until = time.monotonic() + 6
        while time.monotonic() < until:
            for _ in range(10):
                http.post("/predict?model=fashion", content=pixels, headers=opened)
            http.post("/predict?model=fashion", content=bytes(784 * 4000), headers={**opened, "X-Deadline-Ms": "1"})
            http.post("/predict?model=fashion", content=large, headers=picture)
            http.post("/predict?model=fashion", content=pixels, headers={**opened, "X-API-Key": "wrong"})
            list(pool.map(lambda index: pick(http, key, index), (0, 1, 9, 2, 3, 0, 1, 2)))
    artifacts.publish_classifier(models, "new", version=3).rename(models / "fashion/3")  # says that it is another model
    with (models / "fashion/2/model.onnx").open("ab") as file:
        file.write(b"somebody wrote here")


def still(busy: Mapping[str, Any], counted: Collection[str]) -> set[str]:
    """The queries that give nothing, or, where they count, nothing but zeros."""
    return {
        name for name, rows in busy.items() if not (any(float(row[1]) for row in rows) if name in counted else rows)
    }


def png(side: int) -> bytes:
    """A picture that takes longer than a millisecond to decode."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG", compress_level=1)
    return file.getvalue()


def pick(http: httpx.Client, key: str, index: int) -> int:
    tensor = {"name": "index", "datatype": "INT64", "shape": [1], "data": [index]}
    url = "/v2/models/pick/infer"
    return http.post(url, json={"inputs": [tensor]}, headers={"X-API-Key": key}).status_code


@needs_prometheus
@pytest.mark.slow
@pytest.mark.skipif("CLUSTER_TOOLS" not in os.environ, reason="takes half a minute: make cluster-test")
def test_each_panel_changes_with_what_happens(tmp_path):
    """No data before the service is there, and another value after known traffic than before it."""
    counted = {name for name, query in queries().items() if "rate(" in query or "increase(" in query}
    never = {name for name, query in queries().items() if NEVER in query}
    models = tmp_path / "models"
    artifacts.publish_classifier(models)
    pick_model(models)
    key, line = new_key("client", ["infer"])
    (tmp_path / "keys").write_text(line + "\n")
    port = free_port()
    flags = ["--models-dir", str(models), "--port", str(port), "--keys-file", str(tmp_path / "keys")]
    flags += ["--closed-scopes", "infer", "--canary-seconds", "0.5", "--poll-seconds", "0.2"]
    with prometheus(tmp_path, f"127.0.0.1:{port}") as asked:
        absent = readings(asked)
        assert not any(absent.values())
        with processes.started(*flags) as (_, address), httpx.Client(base_url=address, timeout=30) as http:
            until = time.monotonic() + 20
            while not (quiet := readings(asked))["Instances that are ready A"]:
                assert time.monotonic() < until
                time.sleep(0.2)
            known_traffic(models, http, key)
            until = time.monotonic() + 20  # for some polls and some scrapes
            while still(busy := readings(asked), counted) != never and time.monotonic() < until:
                time.sleep(0.2)
            shown = {target["health"] for target in asked.get("/api/v1/targets").json()["data"]["activeTargets"]}
    assert shown == {"up"}
    assert not any(float(row[1]) for name in counted for row in quiet[name] if "process" not in queries()[name])
    assert still(busy, counted) == never
    assert float(busy["Instances that are ready A"][0][1]) == 1
    assert {rows[0]["status"] for rows in busy["Answers a second A"]} >= {"200", "401", "503"}
    changes = dict(zip("ABC", (busy[f"Versions refused, loads given up, folders changed {ref}"] for ref in "ABC")))
    assert float(changes["A"][0][1]) > 0
    assert any(float(value) == 1 for _, value in changes["C"])
