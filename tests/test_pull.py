"""Versions from another place: whole, compared with their digests, and what is there stays."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest

from foldserve.pull import PullError, main, pull
from foldserve.service.artifacts.repository import Repository
from tests.support import artifacts

ROOT = Path(__file__).parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two models somewhere else, one of them in two versions."""
    folder = tmp_path / "bucket/models"
    for version in (1, 2):
        artifacts.publish_classifier(folder, version=version, seed=version)
    artifacts.publish_echo(folder)
    return folder


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """A models folder that is not there yet."""
    return tmp_path / "models"


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(uri: object, to: Path) -> list[str]:
    return [str(error) for _, error in pull(str(uri), to) if error is not None]


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_a_folder_of_models_is_there_byte_by_byte(source, to, scheme):
    """Through fsspec's own readers; the service opens each version."""
    uri = f"{scheme}{source}"
    if scheme == "memory://":
        uri = "memory://bucket/models"
        fsspec.filesystem("memory").put(str(source), "/bucket/models", recursive=True)
    assert refused(uri, to) == []
    assert digests(to) == digests(source)
    repository = Repository(to)
    assert repository.models() == {"echo": [1], "fashion": [1, 2]}
    assert repository.open("fashion", 2).is_verified


@pytest.mark.parametrize(
    ("inner", "expected"),
    [("fashion", {"fashion": [1, 2]}), ("fashion/2", {"fashion": [2]}), ("echo/1", {"echo": [1]})],
)
def test_one_model_or_one_version_is_pulled_too(source, to, inner, expected):
    """Its name is the one in its manifest."""
    assert refused(source / inner, to) == []
    assert Repository(to).models() == expected


def test_the_newest_are_chosen(source, to):
    """One of each model, or all."""
    assert [error for _, error in pull(str(source), to, newest=1) if error] == []
    assert Repository(to).models() == {"echo": [1], "fashion": [2]}


def test_what_is_there_stays(source, to):
    """A second time nothing is copied; other bytes under the same number are refused, and leave what is there."""
    list(pull(str(source), to))
    before = {path: path.stat().st_mtime_ns for path in to.rglob("*")}
    assert [line for line, _ in pull(str(source), to)] == [
        "echo/1 is there",
        "fashion/1 is there",
        "fashion/2 is there",
    ]
    assert {path: path.stat().st_mtime_ns for path in to.rglob("model.onnx")}.items() <= before.items()
    shutil.rmtree(source / "fashion/1")
    artifacts.publish_classifier(source, version=1, seed=9)
    (said,) = refused(source, to)
    assert "holds another content than fashion/1 at the source" in said
    assert Repository(to).open("fashion", 1).is_verified


def cut(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def grow(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(bytes(5 << 20))


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[100] ^= 1
    (folder / "model.onnx").write_bytes(data)


def listed(name: str):
    def change(folder: Path) -> None:
        entry = artifacts.file_entry(folder / "model.onnx")
        artifacts.rewrite_manifest(folder, files={"model.onnx": entry, name: entry})

    return change


DAMAGE = {
    "half": (cut, "half a download"),
    "more": (grow, "has more than the"),
    "other bytes": (flip, "its manifest says"),
    "gone": (lambda folder: (folder / "model.onnx").unlink(), "FileNotFoundError"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read as JSON"),
    "another model": (lambda folder: artifacts.rewrite_manifest(folder, name="other"), "name is 'other'"),
    "another version": (lambda folder: artifacts.rewrite_manifest(folder, version=3), "version is 3, expected 2"),
    "no name": (lambda folder: artifacts.rewrite_manifest(folder, name="../../x"), "names '../../x'"),
    "another format": (lambda folder: artifacts.rewrite_manifest(folder, format=9), "format is 9"),
    "a file elsewhere": (listed("../../../evil"), "expected names of files beside it"),
    "a folder": (listed("a/b"), "expected names of files beside it"),
    "no size": (lambda folder: artifacts.rewrite_manifest(folder, files={"model.onnx": {}}), "without its size"),
    "no files": (lambda folder: artifacts.rewrite_manifest(folder, files=None), "lists no files"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_version_leaves_nothing(source, to, damage, said):
    """It is refused in a sentence; the others are there, and no part of it is, hidden or not."""
    damage(source / "fashion/2")
    (sentence,) = refused(source, to)
    assert said in sentence
    assert Repository(to).models() == {"echo": [1], "fashion": [1]}
    assert sorted(path.name for path in to.iterdir()) == ["echo", "fashion"]
    assert not (to.parent / "evil").exists()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("{}/nowhere", "cannot be read"),
        ("{}/empty", "holds no <model>/<version>/manifest.json"),
        ("nosuch://bucket/models", "cannot be read: Protocol not known: nosuch"),
    ],
)
def test_an_address_that_cannot_be_read_is_one_sentence(source, to, uri, said):
    """And no folder is made for it."""
    (source / "empty").mkdir()
    with pytest.raises(PullError, match=r"nowhere|empty|nosuch") as error:
        list(pull(uri.format(source), to))
    assert said in str(error.value)
    assert not to.exists()


def test_the_command_says_what_it_did(source, to, capsys):
    """A line for each version, and exit code 1 where one was refused or nothing could be read."""
    assert main([str(source / "echo"), "--to", str(to)]) == 0
    assert capsys.readouterr().out.startswith("echo/1 is pulled: ")
    cut(source / "fashion/2")
    assert main([str(source), "--to", str(to)]) == 1
    printed = capsys.readouterr()
    assert [line.split(" is ")[0] for line in printed.out.splitlines()] == ["echo/1", "fashion/1"]
    assert "half a download" in printed.err
    assert main([str(source / "none"), "--to", str(to)]) == 1
    assert capsys.readouterr().err.strip().endswith("what is there stays")


def test_it_goes_on_looking(source, to):
    """`--every`: a new version comes by itself, an address that fails takes nothing away; SIGTERM ends it."""
    command = [sys.executable, "-m", "foldserve", "pull", str(source), "--to", str(to), "--every", "0.1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert {process.stdout.readline().split(" is ")[0] for _ in range(3)} == {
                "echo/1",
                "fashion/1",
                "fashion/2",
            }
            source.rename(source.with_name("gone"))
            assert "cannot be read" in process.stderr.readline()
            source.with_name("gone").rename(source)
            artifacts.publish_classifier(source.parent / "new", version=3).rename(source / "fashion/3")
            assert process.stdout.readline().startswith("fashion/3 is pulled")
            process.send_signal(signal.SIGTERM)
            process.communicate()
            assert process.returncode == 0
        finally:
            watchdog.cancel()
            process.kill()
    assert Repository(to).models() == {"echo": [1], "fashion": [1, 2, 3]}


def test_without_fsspec_it_says_what_to_install(to):
    """One line that names the extra."""
    code = "import sys; sys.modules['fsspec'] = None; from foldserve.command import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "pull", "s3://bucket/models", "--to", str(to)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "foldserve pull: fsspec is not installed: pip install 'foldserve[pull]'"


def test_what_a_killed_pull_left_goes(source, to):
    """Once it is old: a younger one may go on."""
    import os

    for name, age in {".pull-old": 7200, ".pull-young": 10}.items():
        (to / name).mkdir(parents=True)
        (to / name / "part").write_text(json.dumps(name))
        stamp = (to / name).stat().st_mtime - age
        os.utime(to / name, (stamp, stamp))
    list(pull(str(source / "echo"), to))
    assert sorted(path.name for path in to.iterdir()) == [".pull-young", "echo"]
