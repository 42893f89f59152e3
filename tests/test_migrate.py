"""docs/migrate.md as a reader uses it: every block as it stands, from another server's files to answers over HTTP."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from foldserve.command import main
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import migration, pages
from tests.support.live import serve

PAGE = (Path(__file__).parents[1] / "docs/migrate.md").read_text()
BLOCKS = [block.text for block in pages.blocks("docs/migrate.md")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with what the page says is there."""
    migration.make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mynets", None)


def asked(url: str, block: str) -> str:
    """Type a block into a shell beside a service; returns what it printed."""
    typed = block.replace("localhost:8000", url.removeprefix("http://"))
    done = subprocess.run(["sh", "-e"], input=typed, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_works_from_top_to_bottom(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive of TorchServe, a repository of Triton and a LitAPI end as versions that answer their old callers."""
    archive, torchserve, service, triton, proof, litapi, predict = BLOCKS
    assert service.split() == ["foldserve", "serve", "--models-dir", "model_repository", "--allow-unverified"]
    for command in (archive, proof):
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "taken over from fish.mar" in printed
    assert "published models/digits/1" in printed
    exec(compile(litapi, "docs/migrate.md", "exec"), {})
    with serve(create_app(Settings(models_dir=here / "model_repository", allow_unverified=True))) as url:
        assert json.loads(asked(url, triton))["outputs"][0]["shape"] == [1, 3]
    with serve(create_app(Settings(models_dir=here / "models"))) as url:
        healthy, best = asked(url, torchserve).split("}", 1)
        assert json.loads(healthy + "}") == {"status": "Healthy"}
        assert set(json.loads(best)) == set(migration.CLASSES)
        assert len(json.loads(asked(url, predict))["predictions"][0]["top"]) == 2


def test_every_flag_of_the_page_is_one_of_ours_or_of_the_server_left_behind() -> None:
    """Who types what a table names is understood."""
    theirs = {"--start", "--model-store", "--model-repository", "--model-control-mode", "--model-file", "--data-binary"}
    settings = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    commands = {"--network", "--run-torchscript", "--examples", "--image", "--task", "--name", "--labels"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= settings | commands | theirs
