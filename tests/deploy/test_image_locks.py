"""What goes into the images is named with its digests, and is what the project asks for and the tests ran with."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGES = pytest.mark.parametrize("image", ["cpu", "gpu"])


def name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def pins(text: str) -> dict[str, str]:
    return {
        name(line): line.partition("==")[2].split()[0] for line in text.splitlines() if re.match(r"[\w.-]+==", line)
    }


def lock(image: str) -> str:
    return (ROOT / "deploy" / "image" / f"{image}.txt").read_text()


@IMAGES
def test_every_package_has_a_digest(image):
    """A file that was swapped on an index or on its way is refused by pip, whatever its version says."""
    entries = re.split(r"^(?=[\w.-]+==)", lock(image), flags=re.MULTILINE)[1:]
    assert len(entries) > 20
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)


@IMAGES
def test_it_holds_what_the_project_asks_for(image):
    """All dependencies of the service, of gRPC and of this image's onnxruntime; no torch, no test tool."""
    extras = PROJECT["optional-dependencies"]
    wanted = {name(line) for line in (*PROJECT["dependencies"], *extras["grpc"], *extras[image])}
    assert wanted <= set(pins(lock(image)))
    assert not {"torch", "pytest", "onnx", "pip"} & set(pins(lock(image)))


@IMAGES
def test_its_versions_are_those_that_the_tests_ran_with(image):
    """constraints.txt and the lock agree wherever both name a package."""
    tested, locked = pins((ROOT / "constraints.txt").read_text()), pins(lock(image))
    assert len(locked.keys() & tested.keys()) > 20
    assert {name: locked[name] for name in locked.keys() & tested.keys()} == {
        name: tested[name] for name in locked.keys() & tested.keys()
    }


@IMAGES
def test_the_image_takes_nothing_else(image):
    """pip is told to refuse a package without its digest, and to run no package's build."""
    (line,) = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if f"-r {image}.txt" in line]
    assert "--require-hashes" in line
    assert "--only-binary=:all:" in line


def test_the_pull_image_is_named_with_digests_too():
    """What the extra asks for, and none of the service; pip refuses the rest."""
    text = lock("pull")
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert {name(line) for line in PROJECT["optional-dependencies"]["pull"]} <= set(pins(text))
    assert not {"onnxruntime", "fastapi", "torch", "uvicorn"} & set(pins(text))
    assert "--require-hashes -r pull.txt" in (ROOT / "Dockerfile").read_text()
