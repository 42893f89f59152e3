"""TorchServe's archives, written as torch-model-archiver 0.12 writes them, taken over and asked."""

import gzip
import io
import json
import re
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from foldserve import publish
from foldserve.format.metadata import read_image
from foldserve.pictures import decode
from foldserve.training.command import main
from foldserve.training.errors import VerifyError
from foldserve.training.publish import opened
from foldserve.training.torchserve import archive
from foldserve.training.torchserve.stated import read_stated
from tests.support.migration import archived
from tests.support.vision import library

NETWORK = """
import torch
from torch import nn

def small(classes=4):
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 7, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(16, classes))
"""
NAMES = {"0": ["n01", "tench"], "1": "goldfish", "2": "shark", "3": "ray"}
BOMB = 2**25


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's own code and pictures, which commands are typed in."""
    (tmp_path / "own_small.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(archive, "_SMALL", 3 * 2**23)  # the weight of a bomb, which takes seconds to write
    (tmp_path / "val").mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        noise = Image.fromarray(generator.integers(0, 256, (9, 11, 3), dtype=np.uint8))
        noise.resize((280 + number, 300)).save(tmp_path / f"val/{number}.png")
    return tmp_path


def network() -> nn.Module:
    import own_small

    found = own_small.small().eval()
    found[1].running_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    found[1].running_var.copy_(torch.tensor([0.5, 1.5, 2.0, 0.7]))
    return found


def weights(module: nn.Module) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": module.state_dict()}, out)
    return out.getvalue()


def script(module: nn.Module, tmp_path: Path) -> bytes:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(module).save(tmp_path / "script.pt")
    return (tmp_path / "script.pt").read_bytes()


def files(**model: Any) -> dict[str, bytes]:
    """The files of an eager archive, its model.py a trap for whoever runs it."""
    stated = {
        "modelName": "fish", "serializedFile": "w.pth", "handler": "image_classifier", "modelFile": "model.py",
        "modelVersion": "1.0",
    } | model  # fmt: skip
    content = {
        "model.py": b"raise SystemExit('the code of an archive was run')\n",
        "w.pth": weights(network()),
        "index_to_name.json": json.dumps(NAMES).encode(),
    }
    return archived(content, **{key: value for key, value in stated.items() if value})


def mar(content: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def tar_gz(content: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, data in content.items():
            entry = tarfile.TarInfo(f"fish/{name}")
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return path


def folder(content: dict[str, bytes], path: Path) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def answers(folder: Path, paths: list[Path]) -> np.ndarray:
    """Probabilities that the published graph gives for pictures by the recipe in its metadata."""
    model = onnx.load(folder / "model.onnx")
    recipe = read_image({entry.key: entry.value for entry in model.metadata_props})
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    pixels = np.stack([decode(path.read_bytes(), recipe) for path in paths])
    return session.run(["probabilities"], {recipe.input: pixels})[0]


def as_torchserve(module: nn.Module, paths: list[Path]) -> np.ndarray:
    """What TorchServe's image_classifier answers: its own lines, with torchvision."""
    transforms = library("torchvision.transforms")
    steps = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    with torch.inference_mode():
        images = torch.stack([steps(Image.open(io.BytesIO(path.read_bytes()))) for path in paths])
        return torch.softmax(module(images), dim=1).numpy()


@pytest.mark.parametrize("pack", [mar, tar_gz, folder])
def test_an_eager_archive_answers_as_torchserve_did(pack: Any, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its form: same pictures, same probabilities, same names; and its own code is never run."""
    path = pack(files(), here / "fish.mar")
    words = ["import", str(path), "--network", "own_small:small", "--examples", "val", "--models-dir", "models"]
    assert main(words) == 0, capsys.readouterr().err
    assert "taken over from fish.mar: fish 1.0" in capsys.readouterr().out
    pictures = sorted((here / "val").iterdir())
    version = here / "models/fish/1"
    assert np.abs(answers(version, pictures) - as_torchserve(network(), pictures)).max() < 2e-5
    assert (here / "models/fish/labels.txt").read_text().split() == ["tench", "goldfish", "shark", "ray"]
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["source"]["network"] == "own_small:small"
    assert "/tmp" not in json.dumps(manifest["source"])


def test_torchscript_is_run_only_where_its_user_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the word it is converted, folded and answers as the program does; without it nothing is loaded."""
    content = files(modelFile=None, serializedFile="fish.pt")
    path = mar({**content, "fish.pt": script(network(), here)}, here / "fish.mar")
    words = ["import", str(path), "--examples", "val"]
    assert main(words) == 2
    assert "add --run-torchscript" in capsys.readouterr().err
    assert main([*words, "--run-torchscript"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "give the same bits on every example" in printed
    pictures = sorted((here / "val").iterdir())
    assert np.abs(answers(here / "models/fish/1", pictures) - as_torchserve(network(), pictures)).max() < 2e-5
    operators = {node.op_type for node in onnx.load(here / "models/fish/1/model.onnx").graph.node}
    assert "BatchNormalization" not in operators


def test_a_conversion_that_answers_otherwise_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program itself is asked on every example, so that a wrong conversion cannot be published."""
    (here / "script.pt").write_bytes(script(network(), here))
    changed = network()
    changed[-1].bias.data[0] += 1e-3
    monkeypatch.setattr(opened, "converted", lambda program, example: changed)
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        program = torch.jit.load(here / "script.pt").eval()
    with pytest.raises(VerifyError, match="converted TorchScript"):
        publish(program, name="fish", image="imagenet", task="classify", examples="val", models_dir=here / "models")
    assert not (here / "models").exists()


def without(name: str) -> dict[str, bytes]:
    content = files()
    del content[name]
    return content


REFUSED = {
    "no manifest": (lambda: without("MAR-INF/MANIFEST.json"), "holds no MAR-INF/MANIFEST.json"),
    "no weights": (lambda: without("w.pth"), "names 'w.pth', which is not among its files"),
    "nothing serialised": (lambda: files(serializedFile=None), "no serializedFile"),
    "own handler": (lambda: files(handler="handler.py:run"), "code of its own, which is never run here"),
    "own code under a stock name": (
        lambda: {**files(), "image_classifier.py": b"import os"},
        "code of its own, which is never run here",
    ),
    "segmenter": (lambda: files(handler="image_segmenter"), "'image_segmenter' is not taken over; .*--task tensors"),
    "detector": (lambda: files(handler="object_detector"), "'object_detector' is not taken over"),
    "text": (lambda: files(handler="text_classifier"), "'text_classifier' is not taken over; .*--input"),
    "workflow": (lambda: {"MAR-INF/MANIFEST.json": b'{"workflow": {}}'}, "workflow of several models"),
    "two models": (lambda: {"MAR-INF/MANIFEST.json": b'{"model": [{}, {}]}'}, "list as its model, expected one"),
    "manifest of junk": (lambda: {"MAR-INF/MANIFEST.json": b"{"}, "is not JSON"),
    "a path that leads out": (lambda: {**files(), "../evil.py": b""}, "'../evil.py' would lie outside"),
    "a path from the root": (lambda: {**files(), "/etc/evil": b""}, "'/etc/evil' would lie outside"),
    "labels with a gap": (lambda: {**files(), "index_to_name.json": b'{"0": "a", "2": "b"}'}, "none for class 1"),
    "labels of junk": (lambda: {**files(), "index_to_name.json": b"3"}, "got int, expected an array"),
    "other weights": (lambda: {**files(), "w.pth": weights(nn.Linear(2, 2))}, "fish.mar: w.pth does not fit the model"),
    "weights of junk": (lambda: {**files(), "w.pth": b"junk"}, "fish.mar: w.pth cannot be read"),
    "a bomb": (lambda: {**files(), "w.pth": bytes(BOMB)}, "times its own size; nothing of it is taken"),
    "a long manifest": (
        lambda: {**files(), "MAR-INF/MANIFEST.json": b" " * (2**24 + 1)},
        "has 16777217 bytes, expected 16777216 at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_taken_over_is_said_in_a_line(what: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line that names the archive, and nothing written."""
    content, message = REFUSED[what]
    path = mar(content(), here / "fish.mar")
    assert main(["import", str(path), "--network", "own_small:small", "--examples", "val"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "fish.mar" in said
    assert said.count("\n") == 1
    assert not (here / "models").exists()


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("w.pth", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("w.pth", b"")


def zip_link(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        entry = zipfile.ZipInfo("w.pth")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(entry, "/etc/passwd")


def tar_link(path: Path) -> None:
    with tarfile.open(path, "w:gz") as file:
        entry = tarfile.TarInfo("fish/w.pth")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(entry)


def tar_bomb(path: Path) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(bytes(BOMB))


def folder_link(path: Path) -> None:
    path.mkdir()
    (path / "w.pth").symlink_to("/etc/passwd")


def damaged(path: Path) -> None:
    data = bytearray(mar(files(), path).read_bytes())
    place = data.index(b"MAR-INF/MANIFEST.json") + 40
    data[place : place + 20] = bytes(20)
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(tar_gz(files(), path).read_bytes()[:2000])


def junk(path: Path) -> None:
    path.write_bytes(b"hello")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (twice, "stands there twice"),
        (zip_link, "is a link"),
        (tar_link, "is a link"),
        (folder_link, "is a link"),
        (tar_bomb, "times its own size"),
        (damaged, "is damaged"),
        (cut_off, "cannot be read as an archive"),
        (junk, "neither a zip nor a .tar.gz"),
        (lambda path: None, "does not exist"),
    ],
)
def test_archives_made_to_harm_are_refused(
    make: Any, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links, doubled names, bombs, cut and damaged files: one line, and nothing is unpacked."""
    make(here / "x.mar")
    assert main(["import", str(here / "x.mar"), "--network", "own_small:small"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_network_in_python_has_to_be_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The archive's own code is a copy away, which its user makes and not we."""
    path = mar(files(), here / "fish.mar")
    assert main(["import", str(path)]) == 2
    assert "--network package.module:factory" in capsys.readouterr().err


def test_names_are_read_as_torchserve_reads_them(here: Path) -> None:
    """Older archives keep the names in an array; the last of several names is the one for people."""
    content = {**files(), "index_to_name.json": b'{"object_type_names": ["a", "b"]}'}
    with archive.open_archive(mar(content, here / "fish.mar")) as found:
        assert read_stated(found).labels == ("a", "b")
