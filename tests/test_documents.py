"""The pages under docs/ as a reader uses them: every block is run as it stands, against a real service."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts, pages
from tests.support.live import serve
from tests.support.pages import Block, blocks

ROOT = Path(__file__).parents[1]
CLIENTS_PYTHON = os.environ.get("CLIENTS_PYTHON", "")


class Reader(SimpleNamespace):
    """Somebody who types blocks in an empty folder, beside a service."""

    def run(self, *command: str, text: str) -> str:
        """Type a block into an interpreter; returns what it printed."""
        typed = text.replace("localhost:8000", self.address).replace("localhost:8001", self.grpc_address)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            command, input=typed, cwd=self.folder, capture_output=True, text=True, env=environment, timeout=120
        )
        assert done.returncode == 0, f"{typed}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A folder where `foldserve` is this one, and a service of two versions of lenet-bn with one operator."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bin").mkdir()
    command = folder / "bin" / "foldserve"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m foldserve "$@"\n')
    command.chmod(0o755)
    for version in (1, 2):
        artifacts.publish_classifier(folder / "models", "lenet-bn", version=version, seed=version)
    reader = Reader(folder=folder, address="", grpc_address="")
    reader.run("sh", "-e", text=blocks("docs/operations.md")[0].text)
    settings = Settings(
        models_dir=folder / "models", provider="cpu", buckets=(1, 4), keys_file=folder / "keys", closed_scopes=(),
        state_dir=folder / "state", grpc_port=0,
    )  # fmt: skip
    Image.fromarray(artifacts.images(1)[0, 0]).save(folder / "shirt.png")
    app = create_app(settings)
    with serve(app) as url:
        reader.grpc_address = f"127.0.0.1:{app.state.grpc.port}"
        reader.address = url.removeprefix("http://")
        command.write_text(
            f'#!/bin/sh\ncase "$1" in models|predict) word=$1; shift; set -- $word --url {url} "$@";; esac\n'
            f'exec "{sys.executable}" -m foldserve "$@"\n'
        )
        yield reader


def run_block(reader: Reader, block: Block) -> str:
    """Run a block with the program that its language names."""
    language, text, needs = block
    if needs == "triton":
        if not CLIENTS_PYTHON:
            pytest.skip("CLIENTS_PYTHON names no environment with tritonclient")
        return reader.run(CLIENTS_PYTHON, "-", text=text)
    if language == "python":
        return reader.run(sys.executable, "-", text=text)
    if language == "js":
        if shutil.which("node") is None:
            pytest.skip("needs node")
        return reader.run("node", "--input-type=module", "-", text=text)
    assert language == "sh"
    return reader.run("sh", "-e", text=text)


EXPECTED = (
    '"inputs":[{"name":"image"', '"outputs":[{"name":"logits"', "", '{"error":"inputs[0].data: 28 values, expected 784',
    '"outputs":[{"name":"logits"', '"predictions":[{"class_id"',
    "(2, 10)\n400 input 'image': datatype FP32, expected UINT8", "[{'class_id'",
    "[", ":", "[[", "[[b'0.",
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_every_example_for_clients_works(reader, number):
    """curl, Python, JavaScript and tritonclient: copied, pasted, answered."""
    printed = run_block(reader, blocks("docs/clients.md")[number])
    assert EXPECTED[number] in printed, printed
    assert ("error" in printed) == ("error" in EXPECTED[number])


def test_every_example_is_run():
    """A new block has to be given what it prints."""
    assert len(blocks("docs/clients.md")) == len(EXPECTED)


def test_the_operators_page_works_from_top_to_bottom(reader):
    """Roll back, promote, label and compare, each as it is written, and the service ends where the page says."""
    printed = [run_block(reader, block) for block in blocks("docs/operations.md")[1:]]
    assert len(printed) == 4
    listed, moved, labelled, compared = printed
    assert ["lenet-bn", "2", "READY", "latest"] in [line.split() for line in listed.splitlines()]
    assert '"latest": 1,\n  "pinned": true' in moved
    assert moved.rstrip().count('"latest": 2,\n  "pinned": false') == 1
    assert '"stable": 1' in labelled
    assert '"version": 1,\n    "since"' in compared
    assert '"shadow": null' in compared


def test_a_program_reads_the_document_of_a_command(reader):
    """The line of docs/commands.md, with a picture of its name."""
    (block,) = blocks("docs/commands.md")
    assert "'class_id'" in run_block(reader, block)


# Each page with blocks, and the module whose test runs every one of them that needs no more than a usual machine.
RUN_BY = {
    "README.md": "tests/test_readme.py", "docs/index.md": "tests/test_readme.py",
    "docs/serve.md": "tests/test_readme.py", "docs/fold.md": "tests/test_readme.py",
    "docs/clients.md": "tests/test_documents.py", "docs/operations.md": "tests/test_documents.py",
    "docs/commands.md": "tests/test_documents.py", "docs/lenet.md": "tests/training/test_document.py",
    "docs/training.md": "tests/training/test_document.py", "docs/publish.md": "tests/training/publish/test_document.py",
    "docs/migrate.md": "tests/test_migrate.py", "docs/learn/README.md": "tests/training/studies/learn/test_page.py",
    "docs/learn/README.zh.md": "tests/test_readme.py",
}  # fmt: skip
SHOWN = {"docs/python.md"}  # signatures, made from the code


def pages_of_the_house() -> list[str]:
    """The README and all pages under docs/; those of results say how their figures were made, mostly in hours."""
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    paths = [str(path.relative_to(ROOT)) for path in found]
    return sorted(path for path in paths if not path.startswith(("docs/results/", "docs/adr/")))


def test_every_block_of_every_page_is_run():
    """By a test that reads this page, or, where it needs more, by a target of that name; no command hides in a text."""
    unknown = []
    for page in pages_of_the_house():
        runnable = blocks(page, *pages.RUNNABLE)
        unknown += [(page, block.language) for block in blocks(page) if not block.language.isalpha()]
        unknown += [(page, block.needs) for block in runnable if block.needs and block.needs not in pages.NEEDS]
        if page not in SHOWN and any(not block.needs for block in runnable):
            assert page in RUN_BY, f"{page}: name the module whose test runs its blocks"
            assert Path(page).name in (ROOT / RUN_BY[page]).read_text(), page
        outside = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        commands = r"^ {4}(?:foldserve|curl|make|pip|python3?|docker|docker-compose|kubectl|torchrun) .*"
        unknown += [(page, line) for line in re.findall(commands, outside, re.MULTILINE)]
    assert unknown == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(pages.NEEDS.values()) <= targets


@pytest.mark.parametrize("page", ["docs/operations.md", "SECURITY.md", "README.md"])
def test_pages_name_metrics_and_flags_that_exist(page):
    """An operator who looks for what a page names finds it."""
    text = (ROOT / page).read_text()
    metrics = json.loads((ROOT / "tests/surface.json").read_text())["metrics"]
    known = {name + ("_total" if kind == "counter" else "") for name, (kind, _) in metrics.items()}
    named = set(re.findall(r"`(foldserve_\w+)", text))
    assert named <= known, sorted(named - known)
    if page != "README.md":  # which shows the other commands too
        flags = set(re.findall(r"`(--[a-z-]+)", text))
        settings = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
        assert flags <= settings | {"--no-promote-new"}, sorted(flags - settings)
