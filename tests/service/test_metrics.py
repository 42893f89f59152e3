"""The list of metrics as a closed set, and what they count."""

import ast
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from foldserve.service.metrics import REASONS, Metrics, _observe_many


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_metric_of_the_list_is_exported_with_its_unit():
    """A scrape shows each of them, and the help of one that measures names the unit."""
    families = {family.name: family for family in text_string_to_metric_families(Metrics().exposition().decode())}
    known = json.loads((Path(__file__).parents[1] / "surface.json").read_text())["metrics"]
    assert {*families} >= {name for name in known if not name.endswith("_created")}
    assert {*families} <= {*known}
    for name, family in families.items():
        assert family.documentation
        assert not name.endswith("_seconds") or "econds" in family.documentation


def test_answers_are_counted_by_route_and_status_and_never_by_what_came():
    """A client cannot make a new series with a method of its own."""
    metrics = Metrics()
    metrics.observe_request("/predict", "POST", 200, 0.002)
    metrics.observe_request("/predict", "POST", 200, 0.002)
    metrics.observe_request("unknown", "BREW", 404, 0.001)
    assert sample(metrics, "foldserve_requests_total", route="/predict", method="POST", status="200") == 2
    assert sample(metrics, "foldserve_requests_total", route="unknown", method="other", status="404") == 1
    assert sample(metrics, "foldserve_request_seconds_count", route="/predict") == 2


def test_a_batch_is_counted_once_with_its_rows_and_padding():
    """Five rows in a bucket of eight are five answers and three rows of padding."""
    metrics = Metrics()
    observer = metrics.for_version("fashion", 1)
    observer.batches(*np.array([[5, 8], [3, 0], [0.001, 0.001], [0.002, 0.002]]))
    observer.batch_failed()
    assert sample(metrics, "foldserve_rows_total", model="fashion") == 13
    assert sample(metrics, "foldserve_padded_rows_total", model="fashion") == 3
    assert sample(metrics, "foldserve_batch_rows_count", model="fashion") == 2
    assert sample(metrics, "foldserve_infer_seconds_sum", model="fashion") == 0.004
    assert sample(metrics, "foldserve_batch_failures_total", model="fashion") == 1


def test_each_reason_for_a_refusal_has_its_series_from_the_start():
    """A graph of refusals is at zero before the first one rather than absent."""
    metrics = Metrics()
    observer = metrics.for_version("fashion", 1)
    for reason in REASONS:
        assert sample(metrics, "foldserve_refused_total", model="fashion", reason=reason) == 0
        observer.refused(reason)
        assert sample(metrics, "foldserve_refused_total", model="fashion", reason=reason) == 1


def test_two_applications_count_apart():
    """There is no global registry."""
    first, second = Metrics(), Metrics()
    first.observe_request("/predict", "POST", 200, 0.001)
    assert b'route="/predict"' in first.exposition()
    assert b'route="/predict"' not in second.exposition()


def test_answers_counted_in_bulk_are_counted_as_one_by_one():
    """Counter, every bucket and the sum agree, also for times that lie exactly on a bound."""
    seconds = [50e-6, 49e-6, 51e-6, 1e-3, 5, 5.1, 1000, 0.0]
    bulk, single = Metrics(), Metrics()
    bulk.observe_requests("/predict", "POST", 200, seconds)
    for each in seconds:
        single.observe_request("/predict", "POST", 200, each)
    counted, expected = _request_samples(bulk), _request_samples(single)
    assert counted == pytest.approx(expected, rel=1e-12)  # a sum may be rounded in another order
    assert len(expected) > 15


def test_the_library_has_what_counting_in_bulk_uses_of_it():
    """A release that renames one of them, which are not public, is named here rather than found in a scrape."""
    source = ast.parse(inspect.getsource(_observe_many))
    used = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    assert used == {"_buckets", "_sum", "_upper_bounds"}
    assert used <= set(vars(Metrics().request_seconds.labels("/predict")))


def _request_samples(metrics):
    lines = metrics.exposition().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line.startswith("foldserve_request") and "_created" not in line)
    return {name: float(value) for name, value in samples}
