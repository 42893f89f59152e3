"""`--json`: whatever becomes of a command, its standard output is one JSON object."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from foldserve.command import COMMANDS, main
from foldserve.json_document import answering, complain, fill
from foldserve.service.app import create_app
from foldserve.service.keys import new_key
from foldserve.service.settings import Settings
from tests.support import onnx_cases
from tests.support.live import serve

ROOT = Path(__file__).resolve().parents[1]
VERSION = ROOT / "models/lenet-bn/1"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service whose operator needs no key."""
    root = tmp_path_factory.mktemp("served")
    shutil.copytree(VERSION, root / "models/lenet-bn/1")
    with serve(create_app(Settings(models_dir=root / "models", provider="cpu", buckets=(1,)))) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where commands are typed: a picture, an ONNX file, keys."""
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "shirt.png")
    onnx.save(onnx_cases.cases()[0].build(), tmp_path / "in.onnx")
    (tmp_path / "keys").write_text(new_key("me", ["infer", "read"])[1] + "\n")
    return tmp_path


Typed = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def typed(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command in the folder; gives exit code, document and standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("API_KEY", raising=False)

    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        try:
            code: Any = main([*words, "--json"])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        document: dict[str, Any] = json.loads(said.out)
        assert document["ok"] is (code == 0)
        return code, document, said.err

    return run


WORKING: dict[str, tuple[str, set[str]]] = {
    "verify": (f"verify {VERSION} --data-dir nowhere", {"folder", "checks"}),
    "fold": ("fold in.onnx", {"folded", "refused", "wrote"}),
    "publish": ("publish in.onnx --name one --dry-run", {"folder", "proof", "ask"}),
    "doctor": ("doctor --quick --provider cpu --port 0 --demo", {"findings"}),
    "predict": ("predict shirt.png --url URL", {"answers"}),
    "bench": ("bench URL --connections 1 --seconds 0.1", {"url", "loads"}),
    "pull": (f"pull file://{VERSION.parent}", {"versions"}),
    "models list": ("models --url URL list", {"models"}),
    "models show": ("models --url URL show lenet-bn", {"name", "versions"}),
    "keys new": ("keys new --name you --scopes infer", {"key", "line"}),
    "keys list": ("keys list --file keys", {"keys"}),
    "keys revoke": ("keys revoke --name me --file keys", {"name"}),
}


@pytest.mark.parametrize("name", WORKING)
def test_a_command_answers_with_one_document(name: str, typed: Typed, url: str) -> None:
    """With the command's own keys, and no word beside it."""
    words, keys = WORKING[name]
    code, document, _ = typed(*words.replace("URL", url).split())
    assert code == 0, document
    assert keys <= document.keys()
    assert "error" not in document


FAILING: dict[str, tuple[str, int, str]] = {
    "a word that nobody knows": ("fold --nonsense x", 2, "unrecognized arguments"),
    "a command that has no such flag": ("inspect runs/1", 2, "unrecognized arguments: --json"),
    "no command": ("nonsense", 2, "invalid choice"),
    "a file that is not there": ("fold none.onnx", 2, "none.onnx"),
    "a folder that is none": ("verify nowhere", 1, "no manifest.json there"),
    "nobody who answers": ("models --url http://127.0.0.1:9 list", 1, "no answer from"),
    "nothing to pull": ("pull file:///nowhere", 1, "what is there stays"),
    "a document without end": ("pull file:///nowhere --every 5", 2, "leave one out"),
    "a load on another machine": ("bench http://10.0.0.7", 2, "of this machine"),
    "a picture that is none": ("predict keys --url URL", 2, "neither PNG"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_failure_is_a_document_too(name: str, typed: Typed, url: str) -> None:
    """The sentence of standard error stands in it."""
    words, expected, sentence = FAILING[name]
    code, document, said = typed(*words.replace("URL", url).split())
    assert code == expected, document
    assert sentence in document["error"]
    assert document["error"] in said


@pytest.mark.slow
def test_a_training_ends_with_one_document(folder: Path, typed: Typed) -> None:
    """Its lines about epochs go to standard error."""
    rng = np.random.default_rng(0)
    for name, shade in (("dark", 40), ("light", 200)):
        for number in range(40):
            (folder / "data" / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.normal(shade, 10, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{number}.png")
    code, document, said = typed(
        "train", "--data", "data", "--size", "28", "--name", "shade", "--epochs", "2", "--batch-size", "16"
    )
    assert code == 0, said
    assert document["folder"] == str(folder / "models/shade/1")
    assert document["accuracy"]["images"] > 0
    assert "epoch 2/2" in said


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command's help prints."""
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
    return capsys.readouterr().out


def test_every_command_that_knows_the_flag_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    """What the help of a command promises is held above; `import` goes the way of `publish`."""
    known = {name for name in COMMANDS if name != "gpu-check" and "--json" in help_of(name, capsys)}
    groups = {words.split()[0] for words, _ in WORKING.values()}
    assert known - {"import", "train"} == groups - {"models", "keys"}


def document_of(command: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What one prints."""
    answering(["--json"], command)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_numbers_that_json_does_not_know_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    """Every reader of JSON reads the document."""

    def command() -> int:
        fill(low=float("-inf"), rows=[float("nan"), 1.0], none={"inside": float("inf")})
        return 0

    expected = {"ok": True, "low": None, "rows": [None, 1.0], "none": {"inside": None}}
    assert document_of(command, capsys) == expected


def test_one_command_inside_another_adds_to_its_document(capsys: pytest.CaptureFixture[str]) -> None:
    """There is one, not two; and without the flag there is none."""

    def inner() -> int:
        print("for people")
        complain("no")
        return 1

    assert document_of(lambda: answering(["--json"], inner), capsys) == {"ok": False, "error": "no"}
    assert answering([], inner) == 1
    assert capsys.readouterr() == ("for people\n", "no\n")


def test_a_crash_leaves_a_document_that_is_not_ok(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads it is not told that all is well."""

    def command() -> int:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        answering(["--json"], command)
    assert json.loads(capsys.readouterr().out) == {"ok": False, "error": "RuntimeError: boom"}
