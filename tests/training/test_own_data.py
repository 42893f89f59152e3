"""Data of one's own, from the command line to answers over HTTP in the words of that data, and proved again later."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import torch

import foldserve
from foldserve.format.golden import read_golden
from foldserve.format.metadata import read_image, read_labels
from foldserve.pictures import decode
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from foldserve.training import command as command_line
from foldserve.training.config import Recipe
from foldserve.training.errors import TrainingError
from foldserve.training.parity import run_model
from foldserve.training.pipeline import exported_statistics
from foldserve.training.weights import read_weights
from tests.support.class_folders import FRUIT, save_classes
from tests.support.live import serve

OWN = f"{__name__}:own_network"


def own_network(image_shape, classes):
    return torch.nn.Sequential(
        torch.nn.Conv2d(image_shape[0], 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.LazyLinear(classes)
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """A folder with pictures of fruit, a version trained on it, and the run; with a cache of its own."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("FASHION_MNIST_DIR", str(folder / "nowhere"))  # nothing here may ask for it
        patch.chdir(folder)
        torch.set_num_threads(1)
        save_classes(folder / "fruit", 20)
        save_classes(folder / "more", 2, seed=8)
        (folder / "linked").symlink_to(folder / "fruit")
        options = ["--size", "24x20", "--epochs", "6", "--batch-size", "16", "--keep", "best", "--out", "run"]
        assert command_line.main(["train", "--data", "fruit", *options]) == 0
        yield folder


def test_a_service_answers_in_the_words_of_the_folder(place: Path) -> None:
    """A JPEG of the folder over HTTP has the class of its folder, as the graph has for the pixels of the recipe."""
    version = place / "models/fruit/1"
    model = (version / "model.onnx").read_bytes()
    stated = {entry.key: entry.value for entry in onnx.load_from_string(model).metadata_props}
    assert read_labels(stated) == FRUIT
    recipe = read_image(stated)
    assert recipe.shape == (3, 24, 20)
    settings = Settings(models_dir=place / "models", provider="cpu", buckets=(1, 8))
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as http:
        for name in FRUIT:
            for file in sorted((place / "fruit" / name).iterdir())[:4]:
                kind = "image/jpeg" if file.suffix == ".jpg" else "image/png"
                answer = http.post("/predict", content=file.read_bytes(), headers={"content-type": kind})
                assert answer.status_code == 200, answer.text
                expected = run_model(model, decode(file.read_bytes(), recipe)[np.newaxis])
                found = answer.json()["predictions"][0]
                assert found["label"] == name == FRUIT[int(expected["class_id"][0, 0])]
                np.testing.assert_allclose(found["confidence"], expected["probabilities"].max(), atol=1e-5)


def test_the_manifest_says_how_it_was_judged_and_names_no_path(place: Path) -> None:
    """Shares and seed of the split, accuracy on both sets; where the folder lies is its owner's business."""
    manifest = json.loads((place / "models/fruit/1/manifest.json").read_text())
    assert manifest["training"]["split"] == {"val": "", "test": "", "seed": 0}
    assert manifest["accuracy"]["images"] == manifest["accuracy"]["val_images"] == 6
    assert manifest["accuracy"]["val"] == max(manifest["accuracy"]["val_by_statistics"].values())
    for file in ("manifest.json", "model.onnx"):
        assert str(place).encode() not in (place / "models/fruit/1" / file).read_bytes()
    card = (place / "run/MODEL_CARD.md").read_text()
    assert "one of 3 classes" in card
    assert "apple, leaf, sky" in card
    assert "Fashion" not in card


def test_golden_answers_are_pictures_of_the_folder(place: Path) -> None:
    """Encoded test pictures of the folder stand in the manifest, and the graph answers them as the unfolded network."""
    manifest = json.loads((place / "models/fruit/1/manifest.json").read_text())
    known = read_golden(manifest["golden"])
    assert len(known.files) == 6
    assert known.inputs == {}
    there = {file.read_bytes() for file in (place / "fruit").rglob("*.*")}
    assert all(file.content in there for file in known.files)
    model = (place / "models/fruit/1/model.onnx").read_bytes()
    stated = {entry.key: entry.value for entry in onnx.load_from_string(model).metadata_props}
    pixels = np.stack([decode(file.content, read_image(stated)) for file in known.files])
    weights = read_weights(place / "run/model.safetensors")
    network = weights.network(manifest["accuracy"]["statistics"]).double()
    with torch.no_grad():
        expected = network(torch.as_tensor(pixels).double() / 255).numpy()
    np.testing.assert_allclose(known.outputs["logits"], expected, rtol=1e-5)


def test_the_statistics_that_are_exported_did_better_on_the_images_held_out() -> None:
    """Of equal ones population; nothing held out leaves population too; a recipe that names one gets that one."""
    best = Recipe.from_preset("own-data")
    assert best.statistics == "best"
    assert exported_statistics(best, {"running": 0.9, "population": 0.8}) == "running"
    assert exported_statistics(best, {"running": 0.9, "population": 0.9}) == "population"
    assert exported_statistics(best, {}) == "population"
    assert exported_statistics(Recipe(statistics="running"), {"running": 0.1, "population": 0.9}) == "running"
    assert Recipe.from_preset("own-data", norm="none").statistics == "none"


def test_the_better_statistics_need_images_to_judge_by(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for by name, and nothing is held out: refused before anything is made."""
    words = ["train", "--data", "fruit", "--size", "24x20", "--val", "0", "--statistics", "best", "--out", "none"]
    assert command_line.main(words) == 2
    assert "--statistics best: no images are held out" in capsys.readouterr().err
    assert not (place / "none").exists()


def test_a_function_does_what_the_command_does(place: Path, tmp_path: Path) -> None:
    """The same flags as arguments give the same weights, bit for bit, and the folder of the version comes back."""
    folder = foldserve.train(
        "fruit", name="again", models_dir=tmp_path, out=tmp_path / "run", size=(24, 20), epochs=6, batch_size=16,
        keep="best",
    )  # fmt: skip
    assert folder == tmp_path / "again/1"
    mine, theirs = (read_weights(run / "model.safetensors").parameters for run in (tmp_path / "run", place / "run"))
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epoch": 3}, "no argument epoch; did you mean epochs"),
        ({"optimizer": "adm"}, "invalid choice: 'adm'"),
        ({"data": "nowhere"}, "nowhere"),
        ({"min_accuracy": 7}, "--min-accuracy 7.0"),
        ({"size": 16.5}, "size is 16.5; expected"),
        ({"size": (16,)}, r"size is \(16,\); expected"),
        ({"size": True}, "size is True; expected"),
        ({"promote": "no"}, "promote is 'no', a str; expected True or False"),
        ({"compile": 1}, "compile is 1, a int; expected True or False"),
        ({"epochs": True}, "epochs is True, a bool; expected a number"),
        ({"val": True}, "val is True, a bool; expected a path or a number"),
        ({"network": torch.nn.Linear}, "network is .*; expected text or a path"),
        ({"data": b"fruit"}, "data is b'fruit', a bytes"),
        ({"models_dir": ""}, "--models-dir: is empty"),
        ({"out": ""}, "--out: is empty"),
        ({"init": ""}, "--init is empty"),
        ({"device": ""}, "--device : expected"),
        ({"models_dir": "a\0b"}, "null character"),
        ({"resume": "run"}, "--data with --resume"),
    ],
)
def test_a_function_raises_where_the_command_would_end(place: Path, wrong: dict[str, object], message: str) -> None:
    """An error of ours, and the process of the caller goes on."""
    with pytest.raises(TrainingError, match=message):
        foldserve.train(**{"data": "fruit", "size": (24, 20), **wrong})
    assert not (place / "runs").exists()


def test_a_function_resumes_what_the_command_would(place: Path, tmp_path: Path) -> None:
    """Begun and trained on in a thread, as a notebook's server may: two versions, the second of two epochs."""
    given = {"models_dir": tmp_path, "name": "on", "out": tmp_path / "run", "size": 20, "batch_size": 16, "seed": None}
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(foldserve.train, "fruit", epochs=1, min_accuracy=0, **given).result()
        second = thread.submit(foldserve.train, resume=tmp_path / "run", epochs=2).result()
    assert (first, second) == (tmp_path / "on/1", tmp_path / "on/2")
    assert len(json.loads((second / "manifest.json").read_text())["training"]["epochs"]) == 2


def test_a_function_is_no_rank(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that torchrun started several times would train and publish as often."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match="start it without torchrun"):
        foldserve.train("fruit", size=20)


PIXELS, UNCLEAR = 20, 7


def by_pixel(classes):
    """Logits that are the first pixels of an image, whatever a tiny step of training does."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(classes, 64) + 0.01)
    return network


@pytest.mark.parametrize("unclear", [{UNCLEAR}, set(range(PIXELS))])
def test_classes_without_a_clear_picture_are_named_and_published(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], unclear: set[int]
) -> None:
    """A tie among the logits is no golden answer; one class of such images, or all, throws no training away."""
    labels = np.repeat(np.arange(PIXELS), 10)
    images = np.zeros((len(labels), 8, 8), np.uint8)
    for row, label in enumerate(labels):
        images[row, label // 8, label % 8] = 0 if label in unclear else 255 - row % 10
        images[row, 7, row % 8] = row % 251  # of no class
    np.savez(tmp_path / "dots.npz", images=images, labels=labels)
    words = ["--network", f"{__name__}:by_pixel", "--epochs", "1", "--lr", "1e-30", "--min-accuracy", "0"]
    places = ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    assert command_line.main(["train", "--data", str(tmp_path / "dots.npz"), *words, *places]) == 0
    known = read_golden(json.loads((tmp_path / "models/dots/1/manifest.json").read_text())["golden"])
    printed = capsys.readouterr().out
    if len(unclear) == PIXELS:
        assert "no test image has a clear class: the golden answers hold scores and no classes" in printed
        assert set(known.outputs) == {"logits", "probabilities"}
    else:
        assert "no golden answer for 1 of 20 classes, of which no test image has a clear answer: 7\n" in printed
        assert UNCLEAR not in known.outputs["class_id"]
    assert known.rows == 16
    settings = Settings(models_dir=tmp_path / "models", provider="cpu", buckets=(1, 8))
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.get("/v2/models/dots/ready").status_code == 200
        samples = http.get("/v2/models/dots/versions/1/samples").json()["samples"]
        assert len(samples) == 16
        assert all("label" in sample["expected"] for sample in samples)


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = command_line.main(["verify", "models/fruit/1", *arguments])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_version_can_be_proved_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the folder and the run's weights every check passes, and without them nobody asks for Fashion-MNIST."""
    code, printed = verify(capsys, "--data", "fruit", "--weights", "run/model.safetensors")
    assert code == 0, printed
    assert "6 of 6 checks passed" in printed
    code, printed = verify(capsys)
    assert code == 0
    assert "4 of 6 checks passed, 2 not checked" in printed
    assert "name them by --data" in printed
    assert "Fashion" not in printed


def test_other_pictures_are_noticed_when_it_is_proved_again(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with the same classes and other pictures is not what the version was made from."""
    code, printed = verify(capsys, "--data", str(save_classes(tmp_path / "fruit", 20, seed=9)))
    assert code == 0
    assert "is not what the model was trained on" in printed


def test_a_run_on_own_data_is_trained_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed by its folder alone, it finds its data again, keeps their split and publishes the next version."""
    assert command_line.main(["train", "--resume", "run", "--epochs", "7"]) == 0
    assert (place / "models/fruit/2/manifest.json").is_file()
    first, second = (json.loads((place / f"models/fruit/{n}/manifest.json").read_text()) for n in (1, 2))
    assert second["training"]["split"] == first["training"]["split"]
    assert len(second["training"]["epochs"]) == 7
    assert "train-and" not in capsys.readouterr().out


def test_another_number_of_classes_is_started_from_its_weights(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fine-tuned on two of the classes: what was left out is printed, and the version has its two names."""
    root = save_classes(tmp_path / "pair", 20, seed=3)
    for file in (root / "sky").iterdir():
        file.unlink()
    (root / "sky").rmdir()
    places = [
        "--data",
        str(root),
        "--size",
        "24x20",
        "--epochs",
        "2",
        "--out",
        str(tmp_path / "run"),
        "--batch-size",
        "16",
    ]
    assert command_line.main(["train", *places, "--init", "run/model.safetensors"]) == 0
    assert "left out: dense3.weight (3, 84), the network has (2, 84)" in capsys.readouterr().out
    assert (place / "models/pair/labels.txt").read_text().splitlines() == ["apple", "leaf"]
    assert re.fullmatch("[0-9a-f]{64}", read_weights(tmp_path / "run/model.safetensors").recipe.init)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "fruit"], "give --size"),
        (["--data", "fruit", "--size", "8x8"], "16 x 16"),
        (["--data", "fruit", "--size", "24x20", "--network", "vgg"], "package.module:factory"),
        (["--data", "fruit", "--size", "24x20", "--network", OWN, "--norm", "torch"], "leave --norm out"),
        (["--data", "fruit", "--size", "24x20", "--data-dir", "x"], "leave one out"),
        (["--data", "missing", "--size", "24x20"], "no such file"),
        (["--data", "fruit", "--size", "24x20", "--out", "fruit/run"], "whose folders are the classes"),
        (["--data", "fruit", "--size", "24x20", "--models-dir", "fruit"], "whose folders are the classes"),
        (["--data", "fruit", "--size", "24x20", "--lr", "3e38"], "--lr 3e+38: expected a number above 0 and at most"),
        (["--data", "fruit", "--size", "24x20", "--lr", "inf"], "--lr inf"),
        (["--data", "fruit", "--size", "24x20", "--test", "fruit"], "images by --test"),
        (["--data", "fruit", "--size", "24x20", "--val", "linked"], "images by --val"),
        (["--data", "fruit", "--size", "24x20", "--val", "more", "--test", "more"], "images by --val"),
        (["--test", "0.2"], "--test without --data"),
        (["--data", ""], "--data is empty: expected a path; was it a variable that is not set?"),
        (["--data", "fruit", "--size", "24x20", "--val", ""], "--val is empty"),
        (["--val", "fruit"], "expected a share"),
        (["--data", "fruit", "--size", "24x20", "--val", "1.5"], "above 0 and below 1"),
        (["--data", "fruit", "--size", "24x20", "--keep", "best", "--val", "0"], "--keep best"),
        (["--data", "fruit", "--size", "24x20", "--name", "pair2", "--init", "run/config.json"], "not a readable"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """With exit code 2 and what to do; no run is left behind."""
    assert command_line.main(["train", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (place / "runs").exists()
