"""K13: a hundred models of 180 KB: when it is ready, what they take, and what a listing of them costs."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.trust.asking import ask, get
from benchmarks.trust.row import Bench, Measured, Row
from benchmarks.trust.unasked import Unasked

MODELS = 100
READY_SECONDS = 6.0
MOST_MIB = 600.0
LISTINGS = 60
JSON = {"Content-Type": "application/json"}


def hundred(bench: Bench) -> Measured:
    """K13: copies of the model that comes along, under names of their own."""
    with copies(bench.models) as models, Unasked(bench, str(models)) as service:
        rows, seconds, beside = listings(service.port)
        mib = service.rss_mib()
    complete = sum(count == MODELS for count in rows)
    words = f"ready after {service.seconds:.1f} s, {mib:.0f} MiB; {complete} of {LISTINGS} listings whole"
    words = f"{words}, {seconds * 1e3:.0f} ms at most, liveness beside them {beside * 1e3:.0f} ms"
    is_kept = service.seconds <= READY_SECONDS and mib <= MOST_MIB and complete == LISTINGS and beside <= 0.05
    return Measured(words, is_kept)


@contextmanager
def copies(models: Path) -> Iterator[Path]:
    """A folder of a hundred models, each with a file of its own: what was proved of one says nothing of another."""
    (source,) = [path.parent for path in models.glob("lenet-bn/1/manifest.json")]
    with tempfile.TemporaryDirectory() as name:
        for number in range(MODELS):
            folder = Path(name) / f"m{number}" / "1"
            shutil.copytree(source, folder)
            model = folder / "model.onnx"
            model.write_bytes(model.read_bytes() + b"2\4%04d" % number)  # the field `doc_string`
            manifest = json.loads((folder / "manifest.json").read_text()) | {"name": f"m{number}"}
            digest = hashlib.sha256(model.read_bytes()).hexdigest()
            manifest["files"]["model.onnx"] = {"bytes": model.stat().st_size, "sha256": digest}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        yield Path(name)


def listings(port: int) -> tuple[list[int], float, float]:
    """How many models that serve each listing names, the longest one, and the longest wait for liveness beside one."""
    rows, seconds, beside = [], [], []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(LISTINGS):
            listing = pool.submit(ask, port, "POST", "/v2/repository/index", b"{}", JSON, 30)
            while not listing.done():
                beside.append(get(port, "/v2/health/live").seconds)
            answer = listing.result()
            rows.append(sum(row["state"] == "READY" for row in json.loads(answer.body)))
            seconds.append(answer.seconds)
    return rows, max(seconds), max(beside)


ROWS = [
    Row(
        "K13",
        "a hundred models",
        "ready <= 6 s, memory <= 600 MiB, each listing whole, liveness beside it <= 50 ms",
        hundred,
        change="slow-listings",
        part=12,
    ),
]
