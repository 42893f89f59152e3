"""What users hold on to: settings, metrics, routes, manifest keys and error bodies, compared with `surface.json`.

Whoever renames a module changes nothing here. Whoever means to change something users see writes the file anew with
`python -m tests.test_surface`, and the CHANGELOG says so.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import httpx
import onnx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts, bad_requests
from tests.support.live import serve

SURFACE = Path(__file__).with_name("surface.json")
VERSION = Path(__file__).parents[1] / "models/lenet-bn/1"


def surface() -> dict[str, Any]:
    """Everything that is compared, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        artifacts.publish_classifier(Path(folder))
        limits = {"buckets": (1, 8), "max_rows": bad_requests.MAX_ROWS, "default_deadline_ms": 300_000}
        settings = Settings(models_dir=Path(folder), provider="cpu", **limits)
        app = create_app(settings)
        with serve(app) as url, httpx.Client(base_url=url, timeout=300) as http:
            assert http.post(bad_requests.INFER, content=bad_requests.right()[0]).status_code == 200
            errors = {bad.name: refused(http, bad) for bad in bad_requests.ALL}
            metrics = http.get("/metrics").text
            routes = http.get("/openapi.json").json()["paths"]
    return {
        "settings": {name: str(field.default) for name, field in Settings.model_fields.items()},
        "metrics": {family.name: [family.type, labels(family)] for family in text_string_to_metric_families(metrics)},
        "routes": {path: sorted(methods) for path, methods in sorted(routes.items())},
        "manifest": keys(json.loads((VERSION / "manifest.json").read_text())),
        "metadata": sorted(entry.key for entry in onnx.load(VERSION / "model.onnx").metadata_props),
        "errors": errors,
    }


def labels(family: Metric) -> list[str]:
    """The names of the labels that a metric's samples carry."""
    return sorted({label for sample in family.samples for label in sample.labels})


def refused(http: httpx.Client, bad: bad_requests.BadRequest) -> list[Any]:
    """Status and body of the answer to a request that must be refused; long sentences by their beginning."""
    answer = http.post(bad.path, content=bad.body, headers=bad.headers)
    return [answer.status_code, {key: value[:120] for key, value in answer.json().items()}]


def keys(value: Any) -> Any:
    """The keys of a manifest, down to where values begin."""
    return {key: keys(inner) for key, inner in sorted(value.items())} if isinstance(value, dict) else None


def test_what_users_hold_on_to_is_as_before():
    """Names of settings, metrics, routes and manifest keys, and every refusal, word for word."""
    expected = json.loads(SURFACE.read_text())
    found = json.loads(json.dumps(surface()))
    for part in expected:
        assert found[part] == expected[part], part
    assert found.keys() == expected.keys()


if __name__ == "__main__":
    SURFACE.write_text(json.dumps(surface(), indent=1, sort_keys=True) + "\n")
