"""Other images, other classes, other networks and other weights to start from, all the way to a proved version."""

import dataclasses
from datetime import UTC, datetime

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foldserve.format.metadata import read_image, read_labels
from foldserve.training.config import Recipe
from foldserve.training.dataset import Dataset, Interface, scale_pixels
from foldserve.training.errors import ConfigError, GateError
from foldserve.training.fit import EpochRecord
from foldserve.training.initial import read_initial
from foldserve.training.model import build, with_norms_of
from foldserve.training.pipeline import check_worth, kept_epoch, package, train
from foldserve.training.rehearsal import rehearse
from foldserve.training.weights import read_weights, weights_to_bytes

CPU = torch.device("cpu")
NAMES = ("red", "green", "blue")


def coloured(rows: int, seed: int, size: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return images (rows, 3, size, size) whose class is the channel that is bright in the middle."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    images = generator.integers(0, 90, (rows, 3, size, size))
    images[np.arange(rows), labels, 5:-5, 5:-5] += 120
    return images.astype(np.uint8), labels.astype(np.int64)


@pytest.fixture(scope="module")
def colours() -> Dataset:
    val_images, val_labels = coloured(30, 3)
    return Dataset(
        *coloured(150, 1),
        *coloured(9, 2),
        source="made up",
        digests={"train": "0"},
        class_names=NAMES,
        val_images=val_images,
        val_labels=val_labels,
    )


def recipe(network: str, **options) -> Recipe:
    return Recipe.from_preset("own-data", network=network, epochs=2, batch_size=32, **options)


class Small(nn.Module):
    """Somebody's own network, in a form of its own."""

    def __init__(self, image_shape, classes, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], 4, 3)
        self.norm = nn.BatchNorm2d(4) if norm else nn.ReLU()
        self.dense = nn.Linear(4, classes)

    def forward(self, x):
        return self.dense(torch.relu(self.norm(self.conv(x))).amax((2, 3)))


def without_norms(image_shape, num_classes):
    return Small(image_shape, num_classes, norm=False)


def gives_one_logit(image_shape):
    return Small(image_shape, 1)


OWN = f"{__name__}:Small"


@pytest.mark.parametrize("network", ["lenet-bn", "mlp", "resnet-small", OWN])
def test_every_network_goes_the_whole_way(colours: Dataset, network: str) -> None:
    """The exported graph, run by onnxruntime, names the classes of these data as the trained network does."""
    trained = train(recipe(network), colours, CPU)
    packaged = package(trained, colours, revision="abc", environment={}, created=datetime(2026, 1, 1, tzinfo=UTC))
    session = onnxruntime.InferenceSession(packaged.model)
    stated = session.get_modelmeta().custom_metadata_map
    assert read_labels(stated) == NAMES
    assert read_image(stated).shape == (3, 20, 20)
    found = session.run(["logits"], {"image": colours.test_images})[0]
    with torch.no_grad():
        expected = trained.network(scale_pixels(torch.as_tensor(colours.test_images))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert found.shape == (9, 3)
    assert packaged.manifest["golden"]["inputs"]["image"]["shape"] == [9, 3, 20, 20]


def test_weights_remember_what_their_network_is_for(colours: Dataset, tmp_path) -> None:
    """Written and read again, they make a network for three channels and three classes that answers the same."""
    trained = train(dataclasses.replace(recipe("resnet-small"), epochs=1), colours, CPU)
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights_to_bytes(trained.weights))
    network = read_weights(path).network("population")
    images = scale_pixels(torch.as_tensor(colours.test_images))
    assert torch.equal(network(images), trained.network(images))


def test_a_network_of_ones_own_is_refused_before_it_is_trained(colours: Dataset) -> None:
    """One logit for three classes, and a factory that fails, are refused with what was expected."""
    interface, images = colours.interface, colours.train_images[:8]
    with pytest.raises(ConfigError, match=r"gives \(2, 1\), expected logits \(2, 3\)"):
        rehearse("x", build(recipe(f"{__name__}:gives_one_logit"), interface), interface, images)
    with pytest.raises(ConfigError, match="no callable 'nothing'"):
        build(recipe(f"{__name__}:nothing"), interface)
    with pytest.raises(ConfigError, match="--network vgg"):
        recipe("vgg")


def test_a_network_of_ones_own_says_itself_whether_it_has_norms() -> None:
    """Without norms there are no statistics to export."""
    given = recipe(f"{__name__}:without_norms")
    settled = with_norms_of(given, build(given, Interface((3, 20, 20), 3)))
    assert (settled.norm, settled.statistics) == ("none", "none")
    assert with_norms_of(recipe(OWN), build(recipe(OWN), Interface((3, 20, 20), 3))) == recipe(OWN)


def test_the_test_images_are_not_looked_at_before_the_end(colours: Dataset) -> None:
    """With images held out the same weights come out whatever the test set is, and no epoch is judged by it."""
    other = dataclasses.replace(colours, test_images=255 - colours.test_images, test_labels=2 - colours.test_labels)
    runs = [train(recipe("mlp", keep="best"), data, CPU) for data in (colours, other)]
    assert all(record.test_accuracy is None for run in runs for record in run.history.epochs)
    first, second = (weights_to_bytes(run.weights) for run in runs)
    assert first == second
    assert runs[0].test_accuracy != runs[1].test_accuracy


def test_worth_is_judged_by_the_images_held_out(colours: Dataset, tmp_path) -> None:
    """Perfect on the test images and poor on the others, a network is not published; the other way round it is."""
    with pytest.raises(GateError, match=r"validation accuracy 0\.4000"):
        check_worth({"accuracy": {"test": 1.0, "val": 0.4}}, colours, None, tmp_path)
    check_worth({"accuracy": {"test": 0.0, "val": 1.0}}, colours, None, tmp_path)
    without = dataclasses.replace(colours, val_images=None, val_labels=None)
    with pytest.raises(GateError, match=r"test accuracy 0\.0000"):
        check_worth({"accuracy": {"test": 0.0}}, without, None, tmp_path)


def epochs(*accuracies: float | None) -> list[EpochRecord]:
    values = {"loss": 1.0, "train_accuracy": 1.0, "train_seconds": 1.0, "test_accuracy": None}
    speeds = {"examples_per_second": 1.0, "wall_examples_per_second": 1.0}
    return [EpochRecord(epoch=n, val_accuracy=a, **values, **speeds) for n, a in enumerate(accuracies, start=1)]


def test_the_best_epoch_is_the_later_of_equal_ones() -> None:
    """By the images held out; without them there is no best one."""
    best = Recipe(keep="best")
    assert kept_epoch(best, epochs(0.5, 0.8, 0.8, 0.7)) == 3
    assert kept_epoch(Recipe(), epochs(0.5, 0.8, 0.7)) == 3
    with pytest.raises(ConfigError, match="--val"):
        kept_epoch(best, epochs(None, None))


def test_the_weights_of_the_best_epoch_are_kept_over_a_stop(colours: Dataset) -> None:
    """Stopped after the best epoch and resumed, a run exports that epoch's weights as an uninterrupted one does."""
    settings = dataclasses.replace(recipe("mlp", keep="best", learning_rate=0.05, schedule="constant"), epochs=4)
    snapshots = []
    whole = train(settings, colours, CPU, on_snapshot=lambda snapshot: snapshots.append(_copied(snapshot)))
    stopped = next(each for each in snapshots if len(each.epochs) == max(1, min(whole.epoch, 3)))
    resumed = train(settings, colours, CPU, resumed=stopped)
    assert resumed.epoch == whole.epoch
    assert weights_to_bytes(resumed.weights) == weights_to_bytes(whole.weights)


def _copied(snapshot):
    def copied(tensors):
        return {name: tensor.clone() for name, tensor in tensors.items()}

    optimizer = {"state": {k: copied(v) for k, v in snapshot.optimizer["state"].items()}}
    optimizer["param_groups"] = [dict(group) for group in snapshot.optimizer["param_groups"]]
    best = None if snapshot.best is None else copied(snapshot.best)
    return dataclasses.replace(snapshot, model=copied(snapshot.model), optimizer=optimizer, best=best)


def test_fine_tuning_says_what_was_left_out(colours: Dataset, tmp_path) -> None:
    """From five classes to three all but the last layer is taken, bit for bit, and the last layer is named."""
    source = build(Recipe(seed=9), Interface((3, 20, 20), 5))
    path = tmp_path / "five.safetensors"
    save_file(source.state_dict(), path)
    initial = read_initial(path, build(Recipe(), colours.interface))
    assert initial.left_out == (
        "dense3.bias (5,), the network has (3,)",
        "dense3.weight (5, 84), the network has (3, 84)",
    )
    assert initial.drawn == ("dense3.weight", "dense3.bias")
    assert torch.equal(initial.tensors["conv1.weight"], source.state_dict()["conv1.weight"])
    start = train(Recipe(learning_rate=1e-12, epochs=1), colours, CPU, initial=initial.tensors)
    assert torch.allclose(start.weights.parameters["conv1.weight"], source.state_dict()["conv1.weight"], atol=1e-9)


def test_a_runs_own_weights_can_be_started_from(colours: Dataset, tmp_path) -> None:
    """Their statistics, which the file names once for each kind, are taken too."""
    trained = train(dataclasses.replace(recipe("lenet-bn"), epochs=1), colours, CPU)
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights_to_bytes(trained.weights))
    initial = read_initial(path, build(Recipe(), colours.interface))
    assert initial.left_out == initial.drawn == ()
    assert torch.equal(
        initial.tensors["norm1.running_mean"], trained.weights.statistics["population"]["norm1.running_mean"]
    )


def test_weights_of_another_network_are_no_start(tmp_path) -> None:
    """Where no tensor fits, nothing would be left of the file."""
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match="none of its 1 tensors fits"):
        read_initial(path, build(Recipe()))
