"""What the metrics say of predictions, against the answers that clients got."""

import asyncio
import re
from collections import Counter

import httpx
import numpy as np
import pytest

from foldserve.service.app import create_app
from foldserve.service.live.predictions import MOST_CLASSES, Predictions, is_countable
from foldserve.service.metrics import Metrics, PredictionMetrics
from foldserve.service.settings import Settings
from foldserve.service.tensors import TensorSpec
from tests.support import artifacts, live_models
from tests.support.live import serve
from tests.support.processes import OCTETS


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"foldserve_{name}", {"model": "m", "version": "3", **labels})


def noted(rows: int, classes: int, batches: int = 1, names: list[str] | None = None):
    """Predictions of random batches, each padded by two rows, and what was in them."""
    metrics, random = Metrics(), np.random.default_rng(0)
    predictions = Predictions(PredictionMetrics(metrics, "m", 3), names, classes)
    given, sure = [], []
    for _ in range(batches):
        probabilities = random.dirichlet(np.ones(classes), rows + 2).astype(np.float32)
        outputs = {"probabilities": probabilities, "class_id": probabilities.argmax(axis=1)[:, None]}
        given += outputs["class_id"][:rows, 0].tolist()
        sure += probabilities[:rows].max(axis=1).tolist()
        predictions.note(outputs, rows)
        probabilities[:] = -1  # an engine may use its outputs again
    predictions.count()
    return metrics, Counter(given), np.array(sure)


@pytest.mark.parametrize(("rows", "classes", "batches"), [(1, 10, 300), (256, 100, 3), (5, MOST_CLASSES, 4)])
def test_classes_and_confidences_are_those_of_the_rows(rows, classes, batches):
    """Few rows are kept and many are reduced at once, and both are counted alike, without padding."""
    metrics, given, sure = noted(rows, classes, batches)
    for number in range(classes):
        assert (value(metrics, "predicted_classes_total", **{"class": str(number)}) or 0) == given[number]
    assert value(metrics, "confidence_count") == len(sure)
    assert value(metrics, "confidence_sum") == pytest.approx(sure.sum(), rel=1e-6)
    assert value(metrics, "confidence_bucket", le="0.5") == (sure <= 0.5).sum()


def test_a_model_of_many_classes_has_no_series_for_each():
    """A thousand series for each version would be paid for by every scrape; confidences are counted all the same."""
    metrics, _, sure = noted(4, MOST_CLASSES + 1)
    assert value(metrics, "confidence_count") == len(sure)
    assert "predicted_classes_total{" not in metrics.exposition().decode()


def test_what_no_label_fits_is_left_out():
    """A file that somebody else exported may give any number; it is not a class, and no reason to fail."""
    metrics = Metrics()
    predictions = Predictions(PredictionMetrics(metrics, "m", 3), ["a", "a", "b"], 3)
    ids = np.array([-1, 0, 1, 2, 3, 1 << 40])
    predictions.note({"class_id": ids, "probabilities": np.full((6, 3), np.nan, np.float32)}, 6)
    predictions.count()
    assert value(metrics, "predicted_classes_total", **{"class": "a"}) == 2
    assert value(metrics, "predicted_classes_total", **{"class": "b"}) == 1
    assert value(metrics, "confidence_count") == 0


@pytest.mark.parametrize(
    ("probabilities", "class_id", "is_counted"),
    [
        (("FP32", (None, 3)), ("INT64", (None, 1)), True),
        (("FP16", (None, 3)), ("INT32", (None,)), True),
        (("FP32", (None, 3)), ("BYTES", (None, 1)), False),
        (("FP32", (None, 3, 8)), ("INT64", (None, 8)), False),
        (("FP32", (None, None)), ("INT64", (None, 1)), False),
        (("INT8", (None, 3)), ("INT64", (None, 1)), False),
    ],
)
def test_only_one_class_a_row_is_counted(probabilities, class_id, is_counted):
    """Texts, maps of classes and free sizes are answered, and not counted."""
    outputs = {
        "probabilities": TensorSpec("probabilities", *probabilities),
        "class_id": TensorSpec("class_id", *class_id),
    }
    assert is_countable(outputs) is is_counted


def test_a_scrape_shows_what_clients_were_answered(fashion):
    """Over HTTP, by name and version; golden answers and canaries are no predictions."""
    with serve(create_app(Settings(models_dir=fashion, provider="cpu"))) as url, httpx.Client(base_url=url) as http:
        given: Counter[str] = Counter()
        for seed in range(5):
            body = artifacts.images(7, seed=seed).tobytes()
            answers = http.post("/predict", content=body, headers=OCTETS).json()["predictions"]
            given.update(answer["label"] for answer in answers)
        text = http.get("/metrics").text
    found = re.findall(r'predicted_classes_total\{class="([^"]+)",model="fashion",version="1"\} (\S+)', text)
    assert {name: float(count) for name, count in found} == given
    assert 'foldserve_confidence_count{model="fashion",version="1"} 35.0' in text


def test_a_model_that_does_not_classify_has_none(fashion_and_echo):
    """It is served as before."""

    async def shown() -> str:
        async with live_models.loaded(fashion_and_echo) as models:
            await models.registry.get("echo").batcher.infer({"identity": np.ones((1, 4), np.int64)})
            return models.metrics.exposition().decode()

    assert 'confidence_count{model="echo"' not in asyncio.run(shown())
