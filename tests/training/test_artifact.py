"""Artifact: a version appears whole or not at all, is never overwritten, and says what it consists of."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from foldserve.training import artifact
from foldserve.training.artifact import publish, read, versions
from foldserve.training.errors import ArtifactError

ROOT = Path(__file__).parents[2]

# Publishes once in a fork for each file operation and is killed, as by kill -9, at exactly that operation.
KILLED_AT_EVERY_OPERATION = """
import json, os, signal, sys
from pathlib import Path
from foldserve.training.artifact import publish, read, versions
models, model = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
WATCHED = {"open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "os.listdir", "os.scandir",
           "tempfile.mkstemp", "tempfile.mkdtemp", "fcntl.flock"}
survived, operations, outcomes = False, 0, []
while not survived:
    operations += 1
    child = os.fork()
    if child == 0:
        left = operations
        def watch(event, arguments):
            global left
            if event in WATCHED:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        publish(models, "lenet", model, {"note": "n"})
        os._exit(0)
    survived = os.waitpid(child, 0)[1] == 0
    folder = models / "lenet"
    found = versions(folder) if folder.exists() else []
    for version in found:
        assert read(folder / str(version))[1]["version"] == version
    others = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    outcomes.append([name for name in others if not name.startswith(".tmp-") and not name.isdigit()])
print(json.dumps({"operations": operations, "outcomes": outcomes}))
"""

FULL_DISK = """
import sys
from pathlib import Path
from foldserve.training.artifact import publish
from foldserve.training.errors import ArtifactError
models, model, limit = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), int(sys.argv[3])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    publish(models, "lenet", model, {"note": "x" * 5000})
except ArtifactError as err:
    print(err)
    print(sorted(str(entry) for entry in models.rglob("*")))
"""


def model_bytes(labels: tuple[str, ...] = ("bag", "boot"), padding: int = 0) -> bytes:
    """Return a small valid graph with labels; `padding` bytes of description make it larger."""
    batch = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 2, 2])
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2]),
        helper.make_tensor_value_info("class_id", TensorProto.INT64, ["batch", 1]),
    ]
    graph = helper.make_graph([], "network", [batch], outputs, doc_string="x" * padding)
    model = helper.make_model(graph)
    model.metadata_props.add(key="foldserve.labels", value=json.dumps(labels))
    content: bytes = model.SerializeToString()
    return content


def run(program: str, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_version_folder_holds_the_model_and_a_manifest_with_its_digest(tmp_path: Path) -> None:
    """The manifest's digest is the one that hashlib computes of the file that lies there."""
    folder = publish(tmp_path, "lenet", model_bytes(), {"accuracy": {"test": 0.9}})
    assert tree(tmp_path) == [
        *("lenet", "lenet/1", "lenet/1/manifest.json", "lenet/1/model.onnx"),
        *("lenet/config.pbtxt", "lenet/labels.txt"),
    ]
    content = (folder / "model.onnx").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {"model.onnx": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    assert (manifest["format"], manifest["name"], manifest["version"]) == (1, "lenet", 1)
    assert manifest["accuracy"] == {"test": 0.9}
    assert read(folder) == (content, manifest)


def test_everyone_may_read_what_was_published(tmp_path: Path) -> None:
    """The service runs under another user: permissions follow the umask, not those of temporary files."""
    mask = os.umask(0o022)
    try:
        folder = publish(tmp_path, "lenet", model_bytes(), {})
    finally:
        os.umask(mask)
    modes = {
        path: path.stat().st_mode & 0o777 for path in (folder, folder / "model.onnx", folder.parent / "labels.txt")
    }
    assert list(modes.values()) == [0o755, 0o644, 0o644]


def test_versions_count_up_from_the_highest(tmp_path: Path) -> None:
    """A gap is not filled: the newest version always has the highest number, also numerically above nine."""
    assert publish(tmp_path, "lenet", model_bytes(), {}, version=9).name == "9"
    assert publish(tmp_path, "lenet", model_bytes(), {}).name == "10"
    assert publish(tmp_path, "lenet", model_bytes(), {}).name == "11"
    assert versions(tmp_path / "lenet") == [9, 10, 11]


def test_an_existing_version_is_never_overwritten(tmp_path: Path) -> None:
    """Asked for by number, an existing version is refused and stays as it was to the byte."""
    folder = publish(tmp_path, "lenet", model_bytes(), {"note": "first"})
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError, match="never overwritten"):
        publish(tmp_path, "lenet", model_bytes(), {"note": "second"}, version=1)
    assert (folder / "manifest.json").read_bytes() == before


def test_racing_publishers_each_get_a_version_of_their_own(tmp_path: Path) -> None:
    """Eight at once end with eight whole versions, each with its own content."""
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        publish(tmp_path, "lenet", model_bytes(), {"note": number})

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    notes = [read(tmp_path / "lenet" / str(version))[1]["note"] for version in range(1, 9)]
    assert sorted(notes) == list(range(8))


def test_a_number_taken_meanwhile_by_someone_without_the_lock_is_left_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename onto a filled folder fails in the system, and the next number is taken instead."""
    rename, intruder = os.rename, tmp_path / "lenet" / "1"

    def rename_late(source: Path, target: Path) -> None:
        if not intruder.exists():
            intruder.mkdir()
            (intruder / "model.onnx").write_bytes(b"theirs")
        rename(source, target)

    monkeypatch.setattr(artifact.os, "rename", rename_late)
    assert publish(tmp_path, "lenet", model_bytes(), {}).name == "2"
    assert (intruder / "model.onnx").read_bytes() == b"theirs"


def test_a_kill_at_any_file_operation_leaves_only_whole_versions(tmp_path: Path) -> None:
    """Killed at the first, second, ... operation of a publish, nothing half-written is ever visible."""
    (tmp_path / "model.onnx").write_bytes(model_bytes())
    done = run(KILLED_AT_EVERY_OPERATION, tmp_path / "models", tmp_path / "model.onnx")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["operations"] > 15
    assert {name for names in result["outcomes"] for name in names} == {"config.pbtxt", "labels.txt"}
    left = [name for name in tree(tmp_path / "models" / "lenet") if ".tmp-" in name]
    assert left == []  # the last publish, which was let live, swept up behind the killed ones


@pytest.mark.parametrize("limit", [1, 40, 4096])
def test_a_file_size_limit_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """When the system refuses the labels, the manifest or the model, no file and no folder stays behind."""
    (tmp_path / "model.onnx").write_bytes(model_bytes())
    done = run(FULL_DISK, tmp_path / "models", tmp_path / "model.onnx", str(limit))
    message, left = done.stdout.splitlines()
    assert "nothing was published" in message
    assert left == "[]"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A real file system without room for the model stays empty, and the message names the folder."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system; the file size limit is tested beside this")
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "model.onnx").write_bytes(model_bytes(padding=200_000))
    mount = f'mount -t tmpfs -o size=64k tmpfs {models} || exit 77; exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", mount, "sh")
    done = run(FULL_DISK, models, tmp_path / "model.onnx", "0", prefix=prefix)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    message, left = done.stdout.splitlines()
    assert "No space left on device" in message
    assert left == "[]"


def test_a_folder_that_may_not_be_made_is_one_sentence(tmp_path: Path) -> None:
    """A file where the repository should be is said, not shown as a traceback."""
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ArtifactError, match=r"cannot be written \(.*\); nothing was published"):
        publish(tmp_path / "models", "lenet", model_bytes(), {})


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "_lenet", "a/b", "a b", "ü", "x" * 65, "a\n"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    """A name is a folder and a part of an address; what could leave the repository is refused before anything."""
    with pytest.raises(ArtifactError, match="model name"):
        publish(tmp_path, name, model_bytes(), {})
    assert tree(tmp_path) == []


def test_a_number_that_is_no_version_is_refused(tmp_path: Path) -> None:
    """The service would not see such a folder."""
    for version in (0, -1, 10**18):
        with pytest.raises(ArtifactError, match="whole number from 1 up to 18 digits"):
            publish(tmp_path, "lenet", model_bytes(), {}, version=version)
    assert tree(tmp_path) == []


def test_other_labels_under_the_same_name_are_refused(tmp_path: Path) -> None:
    """Earlier versions would be served with the wrong words, so the new one needs a name of its own."""
    publish(tmp_path, "lenet", model_bytes(), {})
    with pytest.raises(ArtifactError, match=r"labels\.txt .*another --name"):
        publish(tmp_path, "lenet", model_bytes(labels=("cat", "dog")), {})
    assert versions(tmp_path / "lenet") == [1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.onnx", b"cut", "its manifest says"),
        ("manifest.json", b"{", "cannot be read as JSON"),
        ("manifest.json", b"[]", "expected an object"),
        ("manifest.json", b'{"format": 2}', "format is 2, expected 1"),
        ("manifest.json", b'{"format": 1}', "lists no model.onnx"),
        ("model.onnx", None, "its manifest lists"),
        ("manifest.json", None, "cannot be read"),
    ],
)
def test_a_damaged_version_is_not_read(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    """Each kind of damage has its own sentence."""
    folder = publish(tmp_path, "lenet", model_bytes(), {})
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read(folder)


def test_triton_reads_the_same_folder(tmp_path: Path) -> None:
    """The configuration says what the graph says, without the batch axis, and runs with or without a GPU."""
    publish(tmp_path, "lenet", model_bytes(), {})
    assert (tmp_path / "lenet" / "labels.txt").read_text() == "bag\nboot\n"
    assert (tmp_path / "lenet" / "config.pbtxt").read_text().splitlines() == [
        'name: "lenet"',
        'backend: "onnxruntime"',
        "max_batch_size: 256",
        "input [",
        '  { name: "image" data_type: TYPE_UINT8 dims: [ 1, 2, 2 ] }',
        "]",
        "output [",
        '  { name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" },',
        '  { name: "class_id" data_type: TYPE_INT64 dims: [ 1 ] }',
        "]",
        "instance_group [ { kind: KIND_AUTO count: 1 } ]",
        "dynamic_batching { max_queue_delay_microseconds: 0 }",
    ]


def test_a_graph_without_labels_has_no_labels_file(tmp_path: Path) -> None:
    """What names no classes is published without them, and not beside versions that do."""
    model = onnx.ModelProto.FromString(model_bytes())
    del model.metadata_props[:]
    folder = publish(tmp_path, "plain", model.SerializeToString(), {})
    assert not (folder.parent / "labels.txt").exists()
    assert "label_filename" not in (folder.parent / "config.pbtxt").read_text()
    publish(tmp_path, "lenet", model_bytes(), {})
    with pytest.raises(ArtifactError, match="this model has none"):
        publish(tmp_path, "lenet", model.SerializeToString(), {})
