"""Pictures at the doors of HTTP: while decoders are busy, the others are told in time, and nothing else waits."""

import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from foldserve.service.app import create_app
from foldserve.service.bodies import images
from foldserve.service.errors import InvalidInput
from foldserve.service.settings import Settings
from tests.support.live import serve
from tests.support.predict_bodies import b64, form, png

PICTURE = np.random.default_rng(2).integers(0, 256, (300, 300), dtype=np.uint8)  # too much for the event loop
FORM = form(png(PICTURE))
JSON = json.dumps({"instances": [b64(PICTURE[:100, :100])]}).encode()
ELEMENT = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [b64(PICTURE[:100, :100])["b64"]]}
INFER = json.dumps({"inputs": [ELEMENT]}).encode()
DOORS = {
    "file": (png(PICTURE), {"Content-Type": "image/png"}),
    "form": (FORM[0], {"Content-Type": FORM[1]}),
    "JSON on the lane": (JSON, {"Content-Type": "application/json"}),
    "JSON at the application": (JSON, {"Content-Type": "application/json", "Content-Encoding": "identity"}),
    "long JSON": (json.dumps({"instances": [b64(PICTURE)] * 3}).encode(), {"Content-Type": "application/json"}),
    "infer on the lane": (INFER, {"Content-Type": "application/json"}),
    "infer at the application": (INFER, {"Content-Type": "application/json", "X-API-Key": "none"}),
}
PATHS = {door: "/v2/models/fashion/infer" if door.startswith("infer") else "/predict" for door in DOORS}


@pytest.fixture
def service(fashion, monkeypatch) -> Iterator[SimpleNamespace]:
    """One decoder, which a test can hold up."""
    gate, held = threading.Event(), threading.Event()
    gate.set()
    decode = images.decode_image

    def decode_at_gate(data, spec, budget, place="image"):
        held.set()
        while not gate.wait(0.005):
            budget.beat()
        return decode(data, spec, budget, place)

    monkeypatch.setattr(images, "decode_image", decode_at_gate)
    app = create_app(Settings(models_dir=fashion, provider="cpu", buckets=(1, 8), canary_seconds=0, decode_threads=1))
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield SimpleNamespace(http=http, gate=gate, held=held)
        gate.set()


@pytest.mark.parametrize("door", DOORS)
def test_a_deadline_holds_while_pictures_wait_for_a_decoder(service, door):
    """504 or 503 soon after it passes, as `{"error": ...}`; pixels and health are answered meanwhile."""
    body, headers = DOORS[door]
    answer = service.http.post(PATHS[door], content=body, headers=headers)
    assert answer.status_code == 200
    stages = [stage.partition(";")[0] for stage in answer.headers["server-timing"].split(", ")]
    assert stages == ["decode", "queue", "infer", "total"]
    service.gate.clear()
    service.held.clear()
    first = threading.Thread(
        target=service.http.post, args=(PATHS[door],), kwargs={"content": body, "headers": headers}, daemon=True
    )
    first.start()
    assert service.held.wait(60)
    started = time.perf_counter()
    late = service.http.post(PATHS[door], content=body, headers=headers | {"X-Deadline-Ms": "300"})
    assert late.status_code in (503, 504)
    assert list(late.json()) == ["error"]
    assert time.perf_counter() - started < 4
    pixels = service.http.post("/predict", content=bytes(784), headers={"Content-Type": "application/octet-stream"})
    assert pixels.status_code == 200
    assert service.http.get("/v2/health/ready").status_code == 200
    service.gate.set()
    first.join()
    assert service.http.post(PATHS[door], content=body, headers=headers).status_code == 200
    refused = [line for line in service.http.get("/metrics").text.splitlines() if "refused_decodings_total{" in line]
    assert sum(float(line.split()[-1]) for line in refused) == 1


def test_requests_that_the_end_cuts_off_are_told_so(fashion, monkeypatch):
    """On the lane and at the application: 503 as `{"error": ...}` once the time to drain is over."""
    ended, held = threading.Event(), threading.Semaphore(0)

    def stuck(data, spec, budget, place="image"):
        held.release()
        ended.wait(60)
        raise InvalidInput("it was given up long ago")

    monkeypatch.setattr(images, "decode_image", stuck)
    app = create_app(
        Settings(models_dir=fashion, provider="cpu", buckets=(1, 8), canary_seconds=0, decode_threads=len(DOORS))
    )
    answers: list[httpx.Response] = []

    def ask(url: str, body: bytes, headers: dict[str, str]) -> None:
        path = PATHS["infer on the lane"] if body is INFER else "/predict"
        answers.append(httpx.post(f"{url}{path}", content=body, headers=headers, timeout=60))

    with serve(app, drain_seconds=1) as url:
        askers = [threading.Thread(target=ask, args=(url, *door)) for door in DOORS.values()]
        for asker in askers:
            asker.start()
        assert all(held.acquire(timeout=60) for _ in DOORS)
    ended.set()
    for asker in askers:
        asker.join()
    assert [answer.status_code for answer in answers] == [503] * len(DOORS)
    assert all("ended before" in answer.json()["error"] for answer in answers)
    assert all("retry-after" in answer.headers for answer in answers)
