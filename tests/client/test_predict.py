"""`client.predict` and `foldserve predict` against a real service: pictures, arrays and rows."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from foldserve.client import AsyncClient, Client, ClientError, Refused
from foldserve.command import main
from foldserve.format.task import Task
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.client.test_client import Asked
from tests.support import artifacts
from tests.support.live import serve
from tests.support.predict_bodies import png

PIXELS = artifacts.images(3, seed=2)
EXPECTED = artifacts.classify(PIXELS)["probabilities"]
ROW = np.array([0.5, 0.25, 1.5, 2.0], np.float32)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A classifier of images, a regression with named columns, a model of two inputs."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    artifacts.publish_rows(root, "prices", ("values",), Task("regress", columns=("a", "b", "c", "d")).as_metadata())
    artifacts.publish_two_inputs(root)
    with serve(create_app(Settings(models_dir=root, provider="cpu", buckets=(1, 4)))) as address:
        yield address


@pytest.fixture(scope="module")
def only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The classifier alone."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    with serve(create_app(Settings(models_dir=root, provider="cpu", buckets=(1, 4)))) as address:
        yield address


@pytest.fixture(params=["sync", "async"])
def ask(request) -> Asked:
    return Asked(request.param)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "shirt.png"
    path.write_bytes(png(PIXELS[0, 0]))
    return path


def close(prediction: dict, row: int) -> None:
    np.testing.assert_allclose(prediction["probabilities"], EXPECTED[row], atol=1e-5)
    assert prediction["label"] == artifacts.LABELS[EXPECTED[row].argmax()]


def test_a_picture_by_path_or_bytes(url, ask, picture):
    """One picture gets one prediction; `top` and the model go along."""
    for source in (picture, str(picture), picture.read_bytes()):
        close(ask(url, "predict", source, model="fashion"), 0)
    best = ask(url, "predict", picture, model="fashion", top=2)["top"]
    assert [entry["class_id"] for entry in best] == np.argsort(-EXPECTED[0])[:2].tolist()


def test_several_pictures_are_a_list(url, ask, picture):
    """In their order, whatever they are given as."""
    found = ask(url, "predict", [png(PIXELS[1, 0]), picture, png(PIXELS[2, 0])], model="fashion")
    for prediction, row in zip(found, (1, 0, 2), strict=True):
        close(prediction, row)


def test_arrays_are_checked_against_the_model_and_sent_as_bytes(url, only, ask):
    """With and without a batch; where there is one model, it need not be named."""
    for prediction, row in zip(ask(url, "predict", PIXELS, model="fashion"), range(3), strict=True):
        close(prediction, row)
    close(ask(only, "predict", PIXELS[0]), 0)
    assert ask(url, "predict", ROW, model="prices") == {"values": ROW.tolist()}
    with pytest.raises(TypeError, match=r"float64, the model takes FP32: \.astype\(np\.float32\)"):
        ask(url, "predict", ROW.astype(np.float64), model="prices")
    with pytest.raises(ValueError, match=r"shape \(3,\), the model takes \(4,\)"):
        ask(url, "predict", ROW[:3], model="prices")
    with pytest.raises(ValueError, match="expected one input"):
        ask(url, "predict", ROW[:3], model="sum")
    with pytest.raises(ValueError, match="name it with model="):
        ask(url, "predict", ROW)


def test_rows_by_list_and_by_name(url, ask):
    """Lists, columns, several inputs, NumPy's numbers among them."""
    assert ask(url, "predict", [ROW.tolist(), list(ROW)], model="prices") == [{"values": ROW.tolist()}] * 2
    assert ask(url, "predict", dict(zip("abcd", ROW, strict=True)), model="prices") == {"values": ROW.tolist()}
    both = {"left": np.ones(3, np.float32), "right": [1, 2, 3]}
    assert ask(url, "predict", both, model="sum") == {"outputs": {"sum": [2.0, 3.0, 4.0]}}


def test_what_cannot_be_sent_is_said_before(url, ask, tmp_path):
    """A file of another kind, an empty list, a file that is not there; the service's own refusals come as before."""
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt: neither PNG, JPEG nor a JSON object"):
        ask(url, "predict", text, model="fashion")
    with pytest.raises(ValueError, match="an empty list"):
        ask(url, "predict", [], model="fashion")
    with pytest.raises(FileNotFoundError):
        ask(url, "predict", tmp_path / "none.png", model="fashion")
    with pytest.raises(TypeError, match="got a set in a row"):
        ask(url, "predict", [[{1}]], model="prices")
    with pytest.raises(Refused, match="'nowhere' is not served"):
        ask(url, "predict", png(PIXELS[0, 0]), model="nowhere")


def test_an_answer_of_another_server_is_an_error():
    """Not a KeyError from within."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={}))
    with Client("http://x", transport=transport) as client, pytest.raises(ClientError, match="not one of /predict"):
        client.predict([[1]])


def test_the_command_prints_the_best_classes(url, picture, tmp_path, capsys):
    """For people, for programs, and for rows in a JSON file."""
    jpeg = tmp_path / "shirt.jpg"
    Image.fromarray(PIXELS[0, 0]).save(jpeg, quality=95)
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps({"instances": [ROW.tolist()]}))
    assert main(["predict", str(picture), str(jpeg), "--model", "fashion", "--top", "2", "--url", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    best = np.argsort(-EXPECTED[0])[:2]
    assert lines[0] == str(picture)
    assert lines[1:3] == [f"  {EXPECTED[0][c]:.4f}  {artifacts.LABELS[c]}" for c in best]
    assert lines[3] == str(jpeg)
    assert main(["predict", str(rows), "--model", "prices", "--json", "--url", url]) == 0
    answers = [{"file": str(rows), "answer": [{"values": ROW.tolist()}]}]
    assert json.loads(capsys.readouterr().out) == {"ok": True, "answers": answers}


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["none.png"], 2, "none.png cannot be read: No such file or directory"),
        (["{picture}", "--model", "nowhere"], 1, "'nowhere' is not served"),
        (["{picture}", "--model", "fashion", "--url", "http://127.0.0.1:9", "--deadline", "1"], 1, ""),
    ],
)
def test_the_command_ends_with_one_line(url, picture, capsys, words, code, expected):
    """And the exit code of its kind."""
    words = [word.format(picture=picture) for word in words]
    assert main(["predict", *words, *([] if "--url" in words else ["--url", url])]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert captured.out == ""


def test_what_is_no_key_is_neither_sent_nor_shown(url, picture, tmp_path, capsys, monkeypatch):
    """The whole output of `keys new`, an empty file, bytes, a key with a line break: one sentence, without the key."""
    for content, said in (
        (b"the key, shown this once: secret-key\nthe line for the keys file: x infer 0\n", "holds 2 lines"),
        (b"\n", "holds nothing"),
        (b"secret-key and more", "not all of them of a key"),
        (b"\xff\xfesecret-key", "cannot be read: it is no text"),
    ):
        (tmp_path / "key").write_bytes(content)
        words = ["--url", url, "--key-file", str(tmp_path / "key")]
        for command in (["predict", str(picture), "--model", "fashion", *words], ["models", "list", *words]):
            assert main(command) in (1, 2)
            printed = capsys.readouterr()
            assert printed.out == ""
            assert said in printed.err
            assert "secret-key" not in printed.err
            assert printed.err.count("\n") == 1
    monkeypatch.setenv("API_KEY", "secret-key\nmore")
    assert main(["bench", url, "--seconds", "0.1"]) in (1, 2)
    assert "$API_KEY holds 2 lines" in capsys.readouterr().err
    for make in (Client, AsyncClient):
        with pytest.raises(ValueError, match=r"api_key holds 2 lines; expected one key") as caught:
            make(url, api_key="secret-key\nmore")
        assert "secret-key" not in str(caught.value)
