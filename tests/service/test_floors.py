"""A service does not start on packages that are older than it was tested with."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from foldserve.service.floors import FLOORS, below_floors
from tests.support.processes import failed

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def installed(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / f"{name}.dist-info").mkdir(parents=True)
    return folder


def test_the_floors_are_those_of_the_project():
    """Each lower bound of what the service needs, and of its two extras, stands in the table, and no other of them."""
    extras = PROJECT["optional-dependencies"]
    needed = [*PROJECT["dependencies"], *extras["cpu"], *extras["gpu"], *extras["grpc"]]
    stated = dict(re.match(r"([\w-]+)(?:\[.*?\])?>=([\d.]+)", line).groups() for line in needed)
    assert stated == {name: floor for name, floor in FLOORS.items() if name not in ("starlette", "h11")}


@pytest.mark.parametrize(
    ("folder", "is_old"),
    [
        ("uvicorn-0.50.9", True),
        ("uvicorn-0.51", False),
        ("uvicorn-0.51.0rc1", False),
        ("uvicorn-0.100.0", False),
        ("Python_Multipart-0.0.33", True),
        ("prometheus_client-0.9.1", True),
        ("onnxruntime-1.27.2", True),
        ("onnxruntime_gpu-1.27.2", True),
        ("pillow-9.0.0", True),
        ("other-0.1", False),
    ],
)
def test_versions_are_compared_as_numbers(tmp_path, folder, is_old):
    """0.100 is newer than 0.51, and a name may be written with underscores and capitals."""
    found = below_floors([str(installed(tmp_path, folder))])
    assert (found is not None) == is_old


def test_the_first_one_on_the_path_counts(tmp_path):
    """As for an import; a folder that is not there does not matter."""
    old, new = installed(tmp_path / "old", "numpy-1.20.0"), installed(tmp_path / "new", "numpy-2.4.0")
    assert below_floors(["/nowhere", str(new), str(old)]) is None
    assert "numpy 1.20.0 (expected 1.26 or newer)" in below_floors([str(old), str(new)])


def test_what_is_installed_here_will_do():
    """The check itself does not keep this service from starting."""
    assert below_floors(sys.path) is None


def test_a_start_on_an_old_package_is_refused_in_a_sentence(fashion, tmp_path, monkeypatch):
    """The line names the package, what is expected and what to type; the exit code is that of a mistake to mend."""
    monkeypatch.setenv("PYTHONPATH", str(installed(tmp_path / "old", "onnxruntime-1.20.0")))
    code, (line,) = failed("--models-dir", str(fashion))
    assert code == 2
    assert "onnxruntime 1.20.0 (expected 1.28 or newer); pip install 'onnxruntime>=1.28'" in line
