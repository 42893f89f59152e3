"""The wheel as users get it: in a project that has packages named `training` and `service` of its own."""

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import foldserve
from foldserve.command import COMMANDS
from foldserve.format.golden import read_golden
from foldserve.format.manifest import read_manifest
from tests.support.processes import FAST, OCTETS, environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SERVE = ("serve", "--demo", "--port", "0", *FAST)


@dataclass(frozen=True)
class Project:
    """An empty project beside an installed wheel.

    Attributes:
        folder: where commands are typed.
        programs: folder of python and the scripts of an environment in which the wheel is installed.
    """

    folder: Path
    programs: Path

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the project's folder."""
        command = [str(self.programs / program), *words]
        return subprocess.run(command, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=300)


def hatchling(folder: Path, target: str, out: Path) -> Path:
    """Build one distribution of the source tree in `folder`, with nothing but what is installed."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel of this checkout, and that of the source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("built")
    with tarfile.open(hatchling(ROOT, "sdist", folder / "sdist")) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return hatchling(ROOT, "wheel", folder / "wheel"), hatchling(source, "wheel", folder / "from-sdist")


@pytest.fixture(scope="module")
def project(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The wheel in a project that has packages named `training` and `service` of its own."""
    project = installed(built[0], tmp_path_factory.mktemp("project"))
    for name in ("training", "service"):
        (project.folder / name).mkdir()
        (project.folder / name / "__init__.py").write_text("OWNER = 'the project'\n")
    return project


def installed(wheel: Path, folder: Path) -> Project:
    """The wheel in an environment of its own, which borrows the packages that are installed here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = (folder / "venv/lib").glob("python3*/site-packages")
    borrowed = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return Project(folder, python.parent)


def test_the_wheel_holds_one_package_and_version_1(built: tuple[Path, Path]) -> None:
    """No module called `service` or `training`, and no version that was trained on this machine."""
    assert built[0].stat().st_size <= 2_000_000
    names = zipfile.ZipFile(built[0]).namelist()
    assert {name.split("/")[0] for name in names} == {"foldserve", f"foldserve-{foldserve.__version__}.dist-info"}
    models = {name for name in names if name.startswith("foldserve/models/")}
    assert models == {f"foldserve/models/lenet-bn/1/{name}" for name in ("model.onnx", "manifest.json")}
    for needed in (
        "py.typed",
        "format/names.py",
        "client/sync.py",
        "training/command.py",
        "service/static/docs.html",
        "service/page/static/index.html",
    ):
        assert f"foldserve/{needed}" in names


def test_the_source_distribution_builds_the_same_wheel(built: tuple[Path, Path]) -> None:
    """File by file, byte by byte."""
    ours, theirs = (zipfile.ZipFile(wheel) for wheel in built)
    assert ours.namelist() == theirs.namelist()
    assert [name for name in ours.namelist() if ours.read(name) != theirs.read(name)] == []


def test_imports_do_not_meet_those_of_the_project(project: Project) -> None:
    """Every public name is the wheel's, and the project's own packages stay its own."""
    code = (
        "import json, sys, foldserve, training, service\n"
        "names = {name: getattr(foldserve, name) for name in foldserve.__all__}\n"
        "print(json.dumps([foldserve.__file__, training.OWNER, service.OWNER, foldserve.fold.__module__,\n"
        "    sorted(m for m in sys.modules if m.startswith(('training.', 'service.')))]))"
    )
    done = project.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    home, *rest = json.loads(done.stdout)
    assert Path(home).is_relative_to(project.folder / "venv")
    assert rest == ["the project", "the project", "foldserve.training.fold.api", []]


def test_every_command_explains_itself(project: Project) -> None:
    """All of them in one process, from the wheel's own modules."""
    code = (
        "import contextlib, sys\nfrom foldserve.command import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit):\n        main([name, '--help'])\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('training', 'service')])"
    )
    done = project.run("python", "-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    explained = re.findall(r"^usage: foldserve ([a-z-]+)", done.stdout, re.MULTILINE)
    assert explained == [name for name in COMMANDS if name != "gpu-check"]
    assert done.stderr.strip() == (
        "foldserve gpu-check needs a checkout of the repository: it runs the tests and benchmarks there"
    )


def test_the_installed_commands_run(project: Project) -> None:
    """Where somebody else's `training` lies in the working directory."""
    (model,) = project.folder.glob("venv/lib/*/site-packages/foldserve/models/lenet-bn/1/model.onnx")
    done = project.run("foldserve", "fold", str(model))
    assert done.returncode == 0, done.stderr
    assert "0 folded, 0 refused" in done.stdout
    done = project.run("python", "-m", "foldserve", "keys", "new", "--name", "me", "--scopes", "infer")
    assert done.returncode == 0, done.stderr
    for script, usage in (("train-and-export", "foldserve train"), ("foldserve", "foldserve")):
        assert project.run(script, "--help").stdout.startswith(f"usage: {usage} ")


@contextlib.contextmanager
def serving(command: list[str], folder: Path) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """The address of a service that was started in `folder`, and a list that holds its log once it has ended."""
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    events: list[dict[str, object]] = []
    too_long = threading.Timer(60, process.kill)  # a service that never says that it is ready
    too_long.start()
    try:
        for line in process.stderr:
            events.append(json.loads(line))
            if events[-1]["event"] == "ready":
                break
        else:
            pytest.fail(f"the service ended, or was ended, before it said that it is ready: {events}")
        yield next(str(event["address"]) for event in events if "address" in event), events
        process.send_signal(signal.SIGTERM)
        events += map(json.loads, process.stderr)
        assert process.wait(60) == 0
    finally:
        too_long.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


def told(events: list[dict[str, object]]) -> list[tuple[object, object, str]]:
    """Level, logger and first words of each line; what follows a colon is measured anew in each run."""
    return [(event["level"], event["logger"], str(event["event"]).partition(":")[0]) for event in events]


def test_the_wheel_serves_and_logs_as_the_checkout_does(project: Project) -> None:
    """Golden classes from an empty folder; line by line the same log: no logger of the wheel is silent."""
    golden = read_golden(read_manifest(ROOT / "models/lenet-bn/1")["golden"])
    logs = []
    for command, folder in (
        ([str(project.programs / "foldserve"), *SERVE], project.folder),
        ([sys.executable, "-m", "service", *SERVE[1:]], ROOT),
    ):
        with serving(command, folder) as (address, events):
            answer = httpx.post(f"{address}/predict", content=golden.inputs["image"].tobytes(), headers=OCTETS)
            named = [prediction["class_id"] for prediction in answer.json()["predictions"]]
            assert named == golden.outputs["class_id"][:, 0].tolist()
        logs.append(told(events))
    assert logs[0] == logs[1]
    assert {level for level, _, _ in logs[0]} == {"info"}
    loggers = {logger for _, logger, _ in logs[0]}
    assert {
        "foldserve",
        *(f"foldserve.service.{room}" for room in ("app", "engines.engine", "live.loading")),
    } <= loggers


ENTRANCES = {
    "python -m service": ("service", SERVE[1:]),
    "python -m training": ("training", ("fold", "models/lenet-bn/1/model.onnx")),
    "python -m foldserve": ("foldserve", SERVE),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_no_module_runs_under_a_second_name(entrance: str, tmp_path: Path) -> None:
    """A class that exists twice is two classes: after each entrance of the checkout everything is foldserve's."""
    module, words = ENTRANCES[entrance]
    seen = tmp_path / "modules"
    code = f"from tests.test_wheel import leave_modules; leave_modules({module!r}, {list(words)!r}, {str(seen)!r})"
    command = [sys.executable, "-c", code]
    if module == "training":
        assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300).returncode == 0
    else:
        with serving(command, ROOT):
            pass
    modules = json.loads(seen.read_text())
    assert any(
        name.startswith("foldserve.training.fold." if module == "training" else "foldserve.service.lane.")
        for name in modules
    )
    assert [name for name in modules if name.startswith(("service.", "training."))] == []


def leave_modules(module: str, words: list[str], path: str) -> None:
    """Run `python -m module words` here, and write the names of all modules to `path` at the end."""
    import runpy

    atexit.register(lambda: Path(path).write_text(json.dumps(list(sys.modules))))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def test_a_strict_type_checker_sees_every_public_name(project: Project) -> None:
    """`mypy --strict` on a user's file: no public name is Any, none returns Any, and a misspelt one is an error."""
    names = [name for name in foldserve.__all__ if name != "__version__"]
    (project.folder / "user.py").write_text(
        "import foldserve\n" + "".join(f"reveal_type(foldserve.{name})\n" for name in names) + "foldserve.flod\n"
    )
    command = [
        sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--python-executable",
        str(project.programs / "python"), "--cache-dir", str(ROOT / ".mypy_cache/wheel"), "user.py",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
    revealed = re.findall(r'Revealed type is "(.*)"$', done.stdout, re.MULTILINE)
    assert len(revealed) == len(names), done.stdout
    assert [text for text in revealed if text == "Any" or text.endswith("-> Any")] == []
    assert [line for line in done.stdout.splitlines() if ": error: " in line] == [
        line for line in done.stdout.splitlines() if 'has no attribute "flod"' in line
    ]
    assert 'Module has no attribute "flod"' in done.stdout
