"""docs/metrics.md: each metric of a service with one process, and the alerts that look at it."""

import html
import json
import re
from pathlib import Path

import yaml

from foldserve.service.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]

HEAD = """# Metrics of the service

`GET /metrics`, in the text format of Prometheus; counters and histograms are sums over all workers, gauges have a label
`worker` where there are several. [deploy/monitoring](../deploy/monitoring) has the alerts that are named here, a
dashboard for Grafana, and the configuration that `COMPOSE_PROFILES=cpu,monitoring docker compose up` starts. Made from
the code by `make reference`.

| metric | kind | labels | unit | what it tells | alert |
|---|---|---|---|---|---|
"""
UNITS = {"seconds": "seconds", "bytes": "bytes", "ratio": "ratio", "rows": "rows", "fds": "files"}


def metrics() -> str:
    """One row for each metric; the labels are those of `surface.json`."""
    surface = json.loads((ROOT / "tests/surface.json").read_text())["metrics"]
    rules = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    rows = []
    for family in sorted(Metrics().registry.collect(), key=lambda family: family.name):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in surface[family.name][1] if label != "le")
        unit = next((unit for part, unit in UNITS.items() if part in family.name.split("_")), "")
        alerts = ", ".join(rule["alert"] for rule in rules if re.search(rf"\b{family.name}(_|\b)", rule["expr"]))
        told = html.escape(family.documentation, False)
        rows.append(f"| `{name}` | {family.type} | {labels} | {unit} | {told} | {alerts} |\n")
    return HEAD + "".join(rows)
