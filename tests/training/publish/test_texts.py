"""A model card and a licence travel with the version that they are of."""

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from torch import nn

from foldserve import publish
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from foldserve.training.command import main
from foldserve.training.errors import ConfigError
from tests.support.live import serve

TEXTS = {"README.md": "# Scales\n\nFor weighing.\n", "LICENSE": "Do as you like.\n"}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """What `publish` gets for both texts, and where."""
    for name, text in TEXTS.items():
        (tmp_path / f"my-{name}").write_text(text)
    files = {"card": tmp_path / "my-README.md", "license": tmp_path / "my-LICENSE"}
    rows = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    return {"name": "scales", "examples": rows, "models_dir": tmp_path / "models", **files}


def test_texts_lie_in_the_folder_and_in_the_manifest(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """They are served around, and a change of either is found."""
    version = publish(nn.Linear(3, 2).eval(), **given).folder
    assert version is not None
    listed = json.loads((version / "manifest.json").read_text())["files"]
    for name, text in TEXTS.items():
        assert (version / name).read_text() == text
        assert listed[name] == {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    with serve(create_app(Settings(models_dir=given["models_dir"], provider="cpu", buckets=(1,)))) as url:
        assert httpx.get(f"{url}/v2/models/scales/ready").status_code == 200
    assert main(["verify", str(version)]) == 0
    (version / "LICENSE").write_text("Do as you lick.\n")
    assert main(["verify", str(version)]) == 1
    assert "LICENSE has SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "no UTF-8"),
        (b"a" * (2**20 + 1), "more than 1048576 bytes"),
    ],
)
def test_a_text_that_is_none_is_refused(content: bytes | None, message: str, given: dict[str, Any]) -> None:
    """Before anything is run."""
    given["license"].unlink()
    if content is not None:
        given["license"].write_bytes(content)
    with pytest.raises(ConfigError, match=f"--license .*{message}"):
        publish(nn.Linear(3, 2).eval(), **given)
