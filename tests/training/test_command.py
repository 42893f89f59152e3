"""The command line, through its own entry: a whole run on little data, its version checked again, and every refusal."""

import dataclasses
import json
import os
import re
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from foldserve.format.tensors import decode_tensor
from foldserve.training import command as command_line
from foldserve.training import train_command
from foldserve.training.config import Recipe
from foldserve.training.dataset import FashionMNIST
from foldserve.training.run_folder import RunFolder
from foldserve.training.weights import read_weights

RECIPE = ["--epochs", "2", "--batch-size", "32", "--lr", "0.5", "--seed", "5"]


@dataclass(frozen=True)
class Made:
    """What one `train-and-export` left: the version folder, the run folder, and what it printed."""

    version: Path
    run: Path
    printed: str


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def small(made_up: FashionMNIST, module_patch: pytest.MonkeyPatch) -> FashionMNIST:
    """Give the command line a small data set in place of the real one, which only its loader could refuse."""
    data = FashionMNIST(
        made_up.train_images,
        made_up.train_labels,
        made_up.test_images,
        made_up.test_labels,
        source="made up",
        digests={"train-images-idx3-ubyte": "0" * 64},
    )
    for module in (command_line, train_command):
        module_patch.setattr(module, "load", lambda folder: data)
    # An edit or a commit while the tests run is no difference between two trainings.
    module_patch.setattr(train_command.provenance, "revision", lambda: "0" * 40)
    return data


@pytest.fixture(scope="module")
def made(small: FashionMNIST, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("main")
    places = ["--models-dir", str(folder / "models"), "--out", str(folder / "run"), "--name", "small"]
    printed = folder / "printed"
    torch.set_num_threads(1)  # as each test has it: another number sums in another order
    with printed.open("w") as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        assert command_line.main(["train-and-export", *RECIPE, *places]) == 0
    return Made(folder / "models" / "small" / "1", folder / "run", printed.read_text())


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def test_it_says_what_it_did_from_the_first_epoch_to_the_version(made: Made) -> None:
    """Progress, both accuracies and which is exported, the fold, the comparison and the place are printed in order."""
    parts = [
        "epoch 1/2",
        "epoch 2/2",
        "with running",
        "with population",
        "<- exported",
        "folded",
        "float64",
        "published",
    ]
    places = [made.printed.index(part) for part in parts]
    assert places == sorted(places)
    assert made.printed.count("<- exported") == 1
    assert str(made.version) in made.printed


def test_the_version_answers_as_the_trained_network_does(made: Made, small: FashionMNIST) -> None:
    """The run's unfolded weights through PyTorch and the published file through onnxruntime give the same logits."""
    network = read_weights(made.run / "model.safetensors").network("population")
    with torch.no_grad():
        expected = network(torch.from_numpy(small.test_images).float() / 255).numpy()
    session = onnxruntime.InferenceSession(str(made.version / "model.onnx"), providers=["CPUExecutionProvider"])
    logits, _, class_id = session.run(None, {"image": small.test_images})
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    manifest = json.loads((made.version / "manifest.json").read_text())
    correct = int((class_id[:, 0] == small.test_labels).sum())
    assert manifest["accuracy"]["correct"] == correct
    assert manifest["accuracy"]["test"] == correct / len(small.test_labels)


def test_the_graph_says_what_made_it_and_nothing_of_the_machine(made: Made) -> None:
    """Recipe, seed, data and statistics come from the flags; the paths of the run do not appear."""
    content = (made.version / "model.onnx").read_bytes()
    stated = metadata(onnx.ModelProto.FromString(content))
    recipe = json.loads(stated["foldserve.recipe"])
    assert (recipe["epochs"], recipe["batch_size"], recipe["learning_rate"]) == (2, 32, 0.5)
    assert (stated["foldserve.seed"], stated["foldserve.statistics"]) == ("5", "population")
    assert json.loads(stated["foldserve.data"]) == {"train-images-idx3-ubyte": "0" * 64}
    assert json.loads(stated["foldserve.labels"])[9] == "Ankle boot"
    manifest = (made.version / "manifest.json").read_bytes()
    for private in (str(made.run), str(Path.home()), str(Path.cwd())):
        assert private.encode() not in content + manifest


def test_the_manifest_keeps_golden_answers_parity_fold_and_environment(made: Made, small: FashionMNIST) -> None:
    """Everything that the contract names is there, and the golden images are real rows of the test set."""
    manifest = json.loads((made.version / "manifest.json").read_text())
    assert list(manifest) == [
        *("format", "name", "version", "created", "golden", "accuracy", "parity", "fold", "training", "environment"),
        "files",
    ]
    images = decode_tensor(manifest["golden"]["inputs"]["image"])
    assert images.shape == (16, 1, 28, 28)
    assert all((small.test_images == image).all(axis=(1, 2, 3)).any() for image in images)
    assert [len(manifest["fold"][key]) for key in ("folded", "refused")] == [4, 0]
    assert len(manifest["parity"]["algebra"]) == 4
    assert len(manifest["training"]["epochs"]) == 2


def test_the_run_folder_holds_configuration_figures_and_weights(made: Made) -> None:
    """config.json says what really ran, metrics.csv has one line for each epoch, the card states the accuracy."""
    assert {path.name for path in made.run.iterdir()} == {
        *("config.json", "metrics.csv", "last.pt", "model.safetensors"),
        *("curves.png", "confusion.png", "MODEL_CARD.md"),
    }
    config = json.loads((made.run / "config.json").read_text())
    assert (config["recipe"]["epochs"], config["device"], config["data"]["source"]) == (2, "cpu", "made up")
    assert config["environment"]["packages"]["torch"] == torch.__version__
    assert len((made.run / "metrics.csv").read_text().splitlines()) == 3
    accuracy = json.loads((made.version / "manifest.json").read_text())["accuracy"]
    assert f"({accuracy['correct']} of {accuracy['images']})" in (made.run / "MODEL_CARD.md").read_text()


def test_the_same_recipe_gives_the_same_model_again(made: Made, small: FashionMNIST, tmp_path: Path) -> None:
    """Trained, folded and exported anew, the file is the same to the byte, under the next version."""
    places = ["--models-dir", str(made.version.parents[1]), "--name", "small", "--out", str(tmp_path / "run")]
    assert command_line.main(["train-and-export", *RECIPE, *places]) == 0
    again = made.version.parent / "2"
    assert (again / "model.onnx").read_bytes() == (made.version / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ["--norm", "none"],
        ["--statistics", "running", "--norm", "scratch"],
        ["--pool", "max", "--norm", "scratch", "--variance", "biased"],
        ["--preset", "book-letter"],
    ],
)
def test_the_other_networks_go_the_whole_way(small: FashionMNIST, tmp_path: Path, options: list[str]) -> None:
    """Without norms, with those by hand, with running statistics and maximum pooling: each is published."""
    places = ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    # Without norms two epochs are too few to be worth serving.
    assert command_line.main(["train-and-export", *RECIPE, *options, *places, "--min-accuracy", "0"]) == 0
    stated = metadata(onnx.load(tmp_path / "models" / "lenet-bn" / "1" / "model.onnx"))
    expected = {"none": "none", "running": "running", "book-letter": "running"}.get(options[1], "population")
    assert stated["foldserve.statistics"] == expected


def test_verify_repeats_the_whole_proof(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """With data and weights at hand all six checks pass, for the folder as for the file in it."""
    for model in (made.version, made.version / "model.onnx"):
        assert command_line.main(["verify", str(model), "--weights", str(made.run / "model.safetensors")]) == 0
        assert "6 of 6 checks passed, 0 not checked" in capsys.readouterr().out


def test_verify_says_what_it_could_not_check(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the weights the chain is said to be unchecked, not passed."""
    assert command_line.main(["verify", str(made.version)]) == 0
    printed = capsys.readouterr().out
    assert "not checked  whole chain" in printed
    assert "5 of 6 checks passed, 1 not checked" in printed


def test_verify_does_not_judge_by_other_data(
    made: Made, made_up: FashionMNIST, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An accuracy on other images than the model's own says nothing."""
    monkeypatch.setattr(command_line, "load", lambda folder: made_up)
    assert command_line.main(["verify", str(made.version)]) == 0
    assert "not checked  test accuracy" in capsys.readouterr().out


def copy_of(made: Made, folder: Path) -> Path:
    """Return a copy of the version whose files a test may spoil."""
    copied = folder / "small" / "1"
    copied.mkdir(parents=True)
    for path in made.version.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    return copied


def spoil(version: Path, change) -> None:
    """Change the graph of `version` and make its digest right again, as someone who means harm would."""
    import hashlib

    model = onnx.load(version / "model.onnx")
    change(model)
    content = model.SerializeToString()
    (version / "model.onnx").write_bytes(content)
    manifest = json.loads((version / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (version / "manifest.json").write_text(json.dumps(manifest))


def test_verify_finds_one_changed_byte(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit in the file ends the check with exit code 1 before anything is run."""
    version = copy_of(made, tmp_path)
    content = bytearray((version / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (version / "model.onnx").write_bytes(bytes(content))
    assert command_line.main(["verify", str(version)]) == 1
    assert "its manifest says" in capsys.readouterr().err


def test_verify_finds_changed_weights_behind_a_right_digest(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Digest of the weights, golden answers and the chain each notice on their own."""

    def shift_bias(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "dense3.bias")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.5), tensor.name))

    version = copy_of(made, tmp_path)
    spoil(version, shift_bias)
    assert command_line.main(["verify", str(version), "--weights", str(made.run / "model.safetensors")]) == 1
    printed, message = capsys.readouterr()
    for what in ("graph", "golden answers", "whole chain"):
        assert f"FAILED       {what}" in printed
        assert what in message


def test_verify_finds_a_wrong_accuracy(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manifest that promises more than the model keeps is refused."""
    version = copy_of(made, tmp_path)
    manifest = json.loads((version / "manifest.json").read_text())
    manifest["accuracy"]["correct"] += 5
    (version / "manifest.json").write_text(json.dumps(manifest))
    assert command_line.main(["verify", str(version)]) == 1
    assert "FAILED       test accuracy" in capsys.readouterr().out


def test_verify_of_something_else_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a manifest is not a version."""
    assert command_line.main(["verify", str(tmp_path)]) == 1
    assert "expected a version folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "nan"], "--lr nan"),
        (["--epochs", "0"], "--epochs 0"),
        (["--batch-size", "1"], "--batch-size 1"),
        (["--batch-size", "351"], "batch of 1"),
        (["--seed", "-1"], "--seed -1"),
        (["--norm", "none", "--statistics", "running"], "--statistics running with --norm none"),
    ],
)
def test_flags_that_cannot_be_used_end_with_2_and_one_sentence(
    small: FashionMNIST, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """The message stands alone on stderr and names the flag; nothing is published."""
    places = ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    assert command_line.main(["train-and-export", *places, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_a_gpu_that_is_not_there_ends_with_2(
    small: FashionMNIST, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--device cuda` never falls back in silence."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert command_line.main(["train-and-export", "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert "--device cuda" in capsys.readouterr().err


def test_no_data_ends_with_2_and_every_place_that_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real loader, given an empty folder, says so; no run folder is left."""
    from foldserve.training.dataset import load

    monkeypatch.setattr(train_command, "load", load)
    options = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    assert command_line.main(["train-and-export", *options]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_existing_run_ends_with_2(small: FashionMNIST, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before anything is trained."""
    assert command_line.main(["train-and-export", "--out", str(made.run)]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_a_name_that_cannot_be_a_model_is_refused_before_training(
    small: FashionMNIST, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A minute of training is not lost to a slash."""
    for name in ("a/b", "_lenet"):
        assert command_line.main(["train-and-export", "--name", name, "--out", str(tmp_path / "run")]) == 2
        assert f"--name: model name {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_diverging_training_publishes_nothing(
    small: FashionMNIST, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that is no number ends the run with exit code 1 and the step at which it happened."""
    options = [
        "--network",
        "mlp",
        "--norm",
        "none",
        "--lr",
        "1e30",
        "--models-dir",
        str(tmp_path / "models"),
        "--out",
        str(tmp_path / "run"),
    ]
    assert command_line.main(["train-and-export", *options]) == 1
    error = capsys.readouterr().err
    assert "at step" in error
    assert "no epoch was finished" in error
    assert not (tmp_path / "models").exists()


def test_pictures_that_the_disk_refuses_leave_nothing_published(
    small: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Published first and resumed after, the run would publish the same model twice."""
    write, (soft, hard) = RunFolder.write, resource.getrlimit(resource.RLIMIT_FSIZE)

    def refuse_pictures(run: RunFolder, name: str, content: bytes) -> Path:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if name == "confusion.png" else soft, hard))
        try:
            return write(run, name, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(RunFolder, "write", refuse_pictures)
    options = ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    assert command_line.main(["train-and-export", *RECIPE, *options]) == 1
    error = capsys.readouterr().err
    assert "confusion.png cannot be written (File too large); free the disk and go on with --resume " in error
    assert not (tmp_path / "models").exists()


def test_a_run_whose_end_could_not_be_written_publishes_once(
    small: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full between version and card: resumed, the run ends with it; trained on, it has another."""
    write, (soft, hard) = RunFolder.write, resource.getrlimit(resource.RLIMIT_FSIZE)
    models, run = tmp_path / "models", tmp_path / "run"

    def refuse_card(folder: RunFolder, name: str, content: bytes) -> Path:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 if name == "MODEL_CARD.md" else soft, hard))
        try:
            return write(folder, name, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", refuse_card)
        places = ["--models-dir", str(models), "--name", "small", "--out", str(run)]
        assert command_line.main(["train", *RECIPE, *places]) == 1
    assert "free the disk and go on with --resume " in capsys.readouterr().err
    version = models / "small" / "1"
    before = {path.name: path.read_bytes() for path in version.iterdir()}
    assert command_line.main(["train", "--resume", str(run)]) == 0
    assert f"published {version} " in capsys.readouterr().out
    assert (run / "MODEL_CARD.md").is_file()
    assert {path.name: path.read_bytes() for path in version.iterdir()} == before
    assert not (models / "small" / "2").exists()
    assert command_line.main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    assert (models / "small" / "2" / "model.onnx").is_file()


def test_ctrl_c_ends_with_130_and_publishes_nothing(
    small: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real SIGINT after the first epoch: a clear line, the shell's exit code, what was measured is kept."""
    append = RunFolder.append

    def interrupted(run: RunFolder, record) -> None:
        append(run, record)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "append", interrupted)
    options = ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    assert command_line.main(["train-and-export", *RECIPE, *options]) == 130
    assert f"no unfinished model was published; go on with --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2


def test_an_interrupted_run_goes_on_to_the_same_model(
    small: FashionMNIST, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after its first epoch and resumed, it publishes the very bytes of the run that was left alone."""
    places = ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "run"), "--name", "small"]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", lambda run, record: os.kill(os.getpid(), signal.SIGINT))
        assert command_line.main(["train-and-export", *RECIPE, *places]) == 130
    resume = ["train-and-export", "--resume", str(tmp_path / "run")]
    assert command_line.main(resume) == 0
    assert "epoch 1 done" in capsys.readouterr().out
    model = (tmp_path / "models" / "small" / "1" / "model.onnx").read_bytes()
    assert model == (made.version / "model.onnx").read_bytes()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
    assert command_line.main(resume) == 2
    assert "this run is finished" in capsys.readouterr().err


def test_a_stopped_run_publishes_where_it_was_started_for(
    small: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--resume RUN` alone, typed in another folder, publishes to the models folder and the name of the start."""
    monkeypatch.chdir(tmp_path)
    places = ["--models-dir", "served/models", "--name", "mine", "--out", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", lambda run, record: os.kill(os.getpid(), signal.SIGTERM))
        assert command_line.main(["train", *RECIPE, *places]) == 130
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command_line.main(["train", "--resume", "../run"]) == 0
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("model.onnx")] == [
        Path("served/models/mine/1/model.onnx")
    ]


def test_a_training_that_cannot_be_published_is_kept(
    small: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it trained somebody published other classes under its name: the sentence says how to publish it, and it is.

    Elsewhere or under another name, without a step of training; what the flags of the resumed run say holds from then.
    """
    models, run, append = tmp_path / "models", tmp_path / "run", RunFolder.append

    def meanwhile(folder: RunFolder, record) -> None:
        append(folder, record)
        (models / "small").mkdir(parents=True, exist_ok=True)
        (models / "small" / "labels.txt").write_text("cat\ndog\n")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", meanwhile)
        places = ["--models-dir", str(models), "--name", "small", "--out", str(run)]
        assert command_line.main(["train", *RECIPE, *places]) == 1
    error = capsys.readouterr().err
    assert "publish under another --name" in error
    assert f"what was trained is kept: publish it with --resume {run}" in error
    assert error.count("\n") == 1
    resume = ["train", "--resume", str(run)]
    assert command_line.main(resume) == 2
    assert "names other classes; publish under another --name" in capsys.readouterr().err
    assert command_line.main([*resume, "--name", "mine", "--models-dir", str(tmp_path / "file" / "x")]) == 0
    printed = capsys.readouterr().out
    assert "epoch 2 done" in printed
    assert "epoch 2/2" not in printed
    assert (tmp_path / "file/x/mine/1/model.onnx").is_file()
    assert command_line.main([*resume, "--epochs", "3"]) == 0
    assert (tmp_path / "file/x/mine/2/model.onnx").is_file()


def test_a_signal_while_a_version_is_published_leaves_nothing_in_its_middle(
    small: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the version and the end of its run: resumed, the run would publish the same once more."""
    publish = train_command.publish

    def interrupted(*arguments, **options):
        folder = publish(*arguments, **options)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return folder

    monkeypatch.setattr(train_command, "publish", interrupted)
    places = ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert command_line.main(["train", *RECIPE, *places]) == 0
    assert (tmp_path / "run" / "MODEL_CARD.md").is_file()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_published_run_trains_on_and_publishes_the_next_version(
    small: FashionMNIST, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--epochs` beside `--resume`: the epochs after the last one, and a version of its own."""
    places = ["--models-dir", str(tmp_path / "models"), "--name", "small", "--out", str(tmp_path / "run")]
    assert command_line.main(["train", *RECIPE, *places]) == 0
    assert command_line.main(["train", "--resume", str(tmp_path / "run"), "--epochs", "2"]) == 2
    assert "the run has 2 epochs; expected more" in capsys.readouterr().err
    assert command_line.main(["train", "--resume", str(tmp_path / "run"), "--epochs", "3"]) == 0
    printed = capsys.readouterr().out
    assert "epoch 2 done" in printed
    assert "epoch 3/3" in printed
    assert "epoch 2/3" not in printed
    stated = metadata(onnx.load(tmp_path / "models" / "small" / "2" / "model.onnx"))
    assert json.loads(stated["foldserve.recipe"])["epochs"] == 3


def test_a_network_that_has_learnt_nothing_does_not_go_live(
    small: FashionMNIST, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default it must be clearly better than naming one class always; --min-accuracy says another bound."""
    places = ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    assert command_line.main(["train", *RECIPE, "--norm", "none", *places]) == 1
    error = capsys.readouterr().err
    assert "since naming one class always gives" in error
    assert "nothing is published" in error
    assert not (tmp_path / "models").exists()
    resume = ["train", "--resume", str(tmp_path / "run")]
    assert command_line.main([*resume, "--min-accuracy", "0.99"]) == 1
    assert "expected at least 0.9900; nothing is published" in capsys.readouterr().err
    assert command_line.main([*resume, "--min-accuracy", "0"]) == 0
    assert (tmp_path / "models/lenet-bn/1/model.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", ""], "--name: model name ''"),
        (["--batch-size", "351"], "would leave a batch of 1"),
        (["--models-dir", "file"], "--models-dir file: .*file is no folder that can be written"),
        (["--models-dir", "others"], "names other classes; publish under another --name"),
        (["--min-accuracy", "90"], "--min-accuracy 90.0: expected a number from 0 to 1"),
    ],
)
def test_what_can_be_refused_is_refused_before_a_folder_is_made(
    small: FashionMNIST,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    """A minute of training is not lost, and no run lies about."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "others" / "lenet-bn").mkdir(parents=True)
    (tmp_path / "others" / "lenet-bn" / "labels.txt").write_text("cat\ndog\n")
    assert command_line.main(["train", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "0.1"], "--lr with --resume"),
        (["--preset", "book"], "--preset with --resume"),
        (["--out", "elsewhere"], "--out with --resume"),
        (["--compile"], "--compile with --resume"),
        (["--batch-size", "8"], "--batch-size with --resume"),
        ([], "holds no config.json"),
    ],
)
def test_what_contradicts_a_resumed_run_ends_with_2(
    small: FashionMNIST, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """A run goes on as it was begun, or not at all; a folder without a run is none."""
    assert command_line.main(["train-and-export", "--resume", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_compiled_run_says_so_and_goes_on_compiled(
    small: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled steps round otherwise: config.json keeps the choice, and a resumed run follows it."""
    calls: list[int] = []
    monkeypatch.setattr(
        "foldserve.training.epoch.compiled", lambda network: lambda x: calls.append(len(x)) or network(x)
    )
    places = ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", lambda run, record: os.kill(os.getpid(), signal.SIGINT))
        assert command_line.main(["train-and-export", *RECIPE, "--compile", *places]) == 130
    assert json.loads((tmp_path / "run" / "config.json").read_text())["compiled"] is True
    before = len(calls)
    assert before > 0
    resume = ["train-and-export", "--resume", str(tmp_path / "run")]
    assert command_line.main(resume) == 0
    assert len(calls) == 2 * before


def test_tensorboard_that_is_not_installed_is_said_before_training(
    small: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package is named, and no run folder is left."""
    from foldserve.training import events

    monkeypatch.setattr(events.importlib.util, "find_spec", lambda name: None)
    assert command_line.main(["train-and-export", "--tensorboard", "--out", str(tmp_path / "run")]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fold_is_a_subcommand(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """A published model has no norm left to fold, and the report says so."""
    assert command_line.main(["fold", str(made.version / "model.onnx")]) == 0
    assert "0 folded, 0 refused" in capsys.readouterr().out


def test_train_and_export_is_the_older_name_of_train(tmp_path: Path) -> None:
    """What people have in their scripts goes on working."""
    for name in ("train", "train-and-export"):
        assert command_line.main([name, "--lr", "nan", "--out", str(tmp_path / "run")]) == 2


def test_every_value_of_a_recipe_has_a_flag():
    """A hyperparameter that the command line cannot set could not be repeated with it."""
    flags = {"learning_rate": "--lr"}
    for field in dataclasses.fields(Recipe):
        flag = flags.get(field.name, f"--{field.name.replace('_', '-')}")
        value = getattr(Recipe(), field.name)
        arguments = command_line._parser().parse_args(["train-and-export", flag, str(value)])
        assert getattr(arguments, field.name) == value
    arguments = command_line._parser().parse_args(["train-and-export", "--preset", "best", "--optimizer", "adam"])
    recipe = train_command.recipe_of(arguments)
    assert (recipe.optimizer, recipe.augment, recipe.schedule) == ("adam", "mirror", "linear")
