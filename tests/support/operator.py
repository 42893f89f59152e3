"""A service whose models change, and the operator who changes them: each version's answers tell its number."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from foldserve.service.app import create_app
from foldserve.service.keys import new_key
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve

OCTETS = {"Content-Type": "application/octet-stream"}
PIXELS = artifacts.images(4, seed=3)
EXPECTED = {seed: artifacts.classify(PIXELS, artifacts.classifier_weights(seed))["probabilities"] for seed in range(5)}


class Operator(httpx.Client):
    """Somebody with an admin key."""

    def call(self, path: str, **body: object) -> httpx.Response:
        """A POST in the repository."""
        return self.post(f"/v2/repository/{path}", json=body)

    def done(self, path: str, **body: object) -> dict:
        """The same, which has to succeed."""
        answer = self.call(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.content else {}

    def answering(self, query: str = "") -> int:
        """The version that answers `/predict`, whose answer has to be that version's own (its seed is its number)."""
        answer = self.post(f"/predict?model=fashion{query}", content=PIXELS.tobytes(), headers=OCTETS)
        assert answer.status_code == 200, answer.text
        version = int(answer.headers["x-model-version"])
        found = np.array([entry["probabilities"] for entry in answer.json()["predictions"]])
        np.testing.assert_allclose(found, EXPECTED[version], atol=1e-5)
        return version

    def compared(self, rows: int) -> dict:
        """The report of a comparison, once it holds so many rows: the copies run behind the answers."""
        while (report := self.get("/v2/repository/models/fashion").json()["shadow"])["rows"] < rows:
            assert report["dropped"] == 0, report  # what was dropped never comes
        return report

    def index(self, name: str = "fashion") -> dict[str, tuple[str, str]]:
        """Version -> state and reason."""
        rows = self.done("index")
        return {row["version"]: (row["state"], row["reason"]) for row in rows if row["name"] == name}


@contextmanager
def running(models: Path, **changes: object) -> Iterator[Operator]:
    """A service whose every change is asked for: it does not look at the disk by itself."""
    key, line = new_key("operator", ["admin"])
    keys = models.parent / f"keys-{secrets.token_hex(4)}"  # each service follows its own
    keys.write_text(line)
    # On a machine that has other things to do nothing is refused as late, and no watchdog ends the tests' own process.
    unhurried = {"default_deadline_ms": 300_000, "hang_seconds": 0}
    defaults = {"state_dir": models.parent / "state", "poll_seconds": 0, "closed_scopes": (), **unhurried}
    app = create_app(
        Settings(models_dir=models, provider="cpu", buckets=(1, 4), keys_file=keys, **{**defaults, **changes})
    )
    with serve(app) as url, Operator(base_url=url, headers={"X-API-Key": key}, timeout=300) as operator:
        operator.app = app
        yield operator


def publish(models: Path, version: int, name: str = "fashion") -> Path:
    """A version whose weights, and so whose answers, are those of its number."""
    return artifacts.publish_classifier(models, name, version=version, seed=version)
