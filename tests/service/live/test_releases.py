"""Folders of the release before are served as they are, and a later release's are refused in a line."""

import hashlib
import json
from pathlib import Path

import httpx
import pytest

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve
from tests.support.processes import failed

# As the release before wrote them, word for word.
STATE = {
    "format": 1,
    "models": {
        "fashion": {
            "labels": {"latest": 1, "stable": 2},
            "loaded": [],
            "is_unloaded": False,
            "shadow": None,
            "history": [
                {"at": 1795697011.07, "label": "latest", "action": "rollback", "source": 2, "target": 1},
                {"at": 1795697013.2, "label": "stable", "action": "promote", "source": None, "target": 2},
            ],
        }
    },
}
KEY = "fs_of-the-release-before"
KEYS = f"# name scopes digest\nops admin,infer {hashlib.sha256(KEY.encode()).hexdigest()}\n"


@pytest.fixture
def folders(models: Path) -> Path:
    """Models, state and keys of the release before."""
    for version in (1, 2):
        artifacts.publish_classifier(models, version=version, seed=version)
    state = models.parent / "state"
    state.mkdir()
    (state / "state.json").write_text(json.dumps(STATE))
    (models.parent / "keys").write_text(KEYS)
    return models.parent


def test_the_folders_of_the_release_before_are_served(folders: Path):
    """Labels stand where they stood, the history is there, and keys that were given out open what they opened."""
    settings = Settings(
        models_dir=folders / "models", state_dir=folders / "state", keys_file=folders / "keys",
        provider="cpu", buckets=(1, 4), poll_seconds=0,
    )  # fmt: skip
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, headers={"X-API-Key": KEY}) as http:
        shown = http.get("/v2/repository/models/fashion").json()
        moved = http.post("/v2/repository/models/fashion/promote", json={"version": 2})
    assert shown["latest"] == 1
    assert shown["labels"] == {"stable": 2}
    assert [(move["action"], move["key"]) for move in shown["history"]] == [("rollback", None), ("promote", None)]
    assert moved.status_code == 200


@pytest.mark.parametrize("file", ["state", "manifest"])
def test_what_a_later_release_wrote_is_refused_in_a_line(folders: Path, file: str):
    """Another format is named with its file; nothing is guessed."""
    if file == "state":
        path = folders / "state/state.json"
        path.write_text(json.dumps(STATE | {"format": 2}))
    else:
        path = folders / "models/fashion/1/manifest.json"
        for version in (1, 2):
            other = folders / f"models/fashion/{version}/manifest.json"
            other.write_text(json.dumps(json.loads(other.read_text()) | {"format": 2}))
    code, lines = failed("--models-dir", str(folders / "models"), "--state-dir", str(folders / "state"))
    assert code == 3
    assert str(path.name) in lines[-1]
    assert "format" in lines[-1]
    assert "Traceback" not in "".join(lines)
