"""Readers of arrays, each on files made in the form of the originals by code that is not ours."""

import contextlib
import gzip
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from foldserve.training.data.arrays_pickle import read_pickle
from foldserve.training.data.objects import dataset_of
from foldserve.training.data.opening import open_data
from foldserve.training.data.request import DataRequest
from foldserve.training.dataset import Dataset
from foldserve.training.errors import ConfigError, DatasetError

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "foldserve" / "pixels"


def made(rows: int, shape: tuple[int, ...], classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (rows, *shape)).astype(np.uint8), np.arange(rows) % classes


def opened(path: Path, **options) -> Dataset:
    return open_data(DataRequest(data=str(path), **options))


def rows_of(images: np.ndarray, labels: np.ndarray) -> set[tuple[int, bytes]]:
    return {(int(label), image.tobytes()) for image, label in zip(images, labels, strict=True)}


def all_rows(data: Dataset) -> set[tuple[int, bytes]]:
    parts = [(data.train_images, data.train_labels), (data.test_images, data.test_labels)]
    if data.val_images is not None:
        parts.append((data.val_images, data.val_labels))
    return set.union(*(rows_of(*part) for part in parts))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, train=(60, 10), test=(20, 10), prefix: str = "", suffix: str = "") -> tuple:
    sets = {"train": made(train[0], (28, 28), train[1], 1), "t10k": made(test[0], (28, 28), test[1], 2)}
    for name, (images, labels) in sets.items():
        write_idx(folder / f"{prefix}{name}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}{name}-labels-idx1-ubyte{suffix}", labels)
    return sets["train"], sets["t10k"]


@pytest.mark.parametrize(("place", "suffix"), [(".", ""), (".", ".gz"), ("MNIST/raw", ""), ("raw", ".gz")])
def test_mnist_s_files_are_digits(tmp_path: Path, place: str, suffix: str) -> None:
    """As they are or packed, in the folder or where torchvision puts them: each image once, names that are digits."""
    (images, labels), test = write_mnist(tmp_path / "data" / place, suffix=suffix)
    data = opened(tmp_path / "data")
    assert data.class_names == tuple("0123456789")
    assert data.train_images.shape[1:] == (1, 28, 28)
    assert rows_of(data.test_images, data.test_labels) == rows_of(test[0], test[1])
    assert all_rows(data) == rows_of(images, labels) | rows_of(*test)
    assert set(data.digests) == {
        f"{n}-{kind}-ubyte" for n in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    }


def test_classes_that_the_test_set_lacks_keep_their_number(tmp_path: Path) -> None:
    """Five classes to train on and four to test on are five: names and numbers do not shift."""
    _, test = write_mnist(tmp_path / "data", train=(50, 5), test=(20, 4))
    data = opened(tmp_path / "data")
    assert data.class_names == tuple("01234")
    assert rows_of(data.test_images, data.test_labels) == rows_of(*test)


def test_a_file_beside_idx_files_names_their_classes(tmp_path: Path) -> None:
    """One name a line, in the order of the class ids."""
    write_mnist(tmp_path / "data", train=(30, 3), test=(9, 3), prefix="letters-")
    (tmp_path / "data" / "classes.txt").write_text("alpha\nbeta\ngamma\n")
    assert opened(tmp_path / "data").class_names == ("alpha", "beta", "gamma")


@pytest.mark.parametrize("what", ["cut", "header", "labels", "gzip"])
def test_broken_idx_files_are_named(tmp_path: Path, what: str) -> None:
    """A file that is cut off, is of another type, has too few labels, or is a broken archive."""
    suffix = ".gz" if what == "gzip" else ""
    write_mnist(tmp_path / "data", suffix=suffix)
    images = tmp_path / "data" / f"train-images-idx3-ubyte{suffix}"
    if what == "labels":
        write_idx(tmp_path / "data" / "train-labels-idx1-ubyte", np.arange(59) % 10)
    else:
        content = images.read_bytes()
        images.write_bytes(b"\0\0\x0d" + content[3:] if what == "header" else content[:-100])
    with pytest.raises(DatasetError, match="train-"):
        opened(tmp_path / "data")


def write_cifar_pickle(path: Path, images: np.ndarray, content: dict, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = images.reshape(len(images), -1)
    path.write_bytes(pickle.dumps({b"data": data, b"batch_label": b"a batch", **content}, protocol=protocol))


def cifar(folder: Path, form: str, protocol: int = 2) -> tuple[set, tuple]:
    """Write CIFAR in one of its forms and return its training rows and its test set."""
    batches = [made(10, (3, 32, 32), 10, seed) for seed in range(5)]
    test = made(10, (3, 32, 32), 10, 9)
    if form == "python":
        for number, (images, labels) in enumerate(batches, start=1):
            name = folder / f"cifar-10-batches-py/data_batch_{number}"
            write_cifar_pickle(name, images, {b"labels": labels.tolist()}, protocol)
        write_cifar_pickle(folder / "cifar-10-batches-py/test_batch", test[0], {b"labels": test[1].tolist()}, protocol)
        meta = {b"label_names": [name.encode() for name in TEN], b"num_vis": 3072}
        (folder / "cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))
    elif form == "binary":
        place = folder / "cifar-10-batches-bin"
        place.mkdir(parents=True)
        files = {f"data_batch_{number}.bin": batch for number, batch in enumerate(batches, start=1)}
        for name, (images, labels) in (files | {"test_batch.bin": test}).items():
            records = [bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)]
            (place / name).write_bytes(b"".join(records))
        (place / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    else:
        batches = batches[:1]
        for name, (images, labels) in (("train", batches[0]), ("test", test)):
            content = {b"fine_labels": labels.tolist(), b"coarse_labels": [0] * len(labels)}
            write_cifar_pickle(folder / f"cifar-100-python/{name}", images, content)
        meta = {b"fine_label_names": [name.encode() for name in TEN], b"coarse_label_names": [b"all"]}
        (folder / "cifar-100-python/meta").write_bytes(pickle.dumps(meta, protocol=2))
    return set.union(*(rows_of(*batch) for batch in batches)), test


@pytest.mark.parametrize(("form", "protocol"), [("python", 2), ("python", 5), ("binary", 0), ("hundred", 2)])
def test_cifar_is_read_in_each_of_its_forms(tmp_path: Path, form: str, protocol: int) -> None:
    """All batches, the test set as such, the names from its own file, colour planes where they belong."""
    rows, test = cifar(tmp_path / "data", form, protocol)
    data = opened(tmp_path / "data", val="0" if form == "hundred" else "")
    assert data.class_names == tuple(TEN)
    assert data.train_images.shape[1:] == (3, 32, 32)
    assert rows_of(data.test_images, data.test_labels) == rows_of(*test)
    assert all_rows(data) == rows | rows_of(*test)


class Evil:
    """Runs a command when it is unpickled by a loader that trusts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    """What `pickle.load` would have run is refused, whatever it asks for, and the message names it."""
    cifar(tmp_path / "data", "python")
    batch, trace = tmp_path / "data/cifar-10-batches-py/data_batch_3", tmp_path / "trace"
    batch.write_bytes(pickle.dumps({b"data": Evil(trace), b"labels": [1]}, protocol=2))
    pickle.loads(batch.read_bytes())
    assert trace.exists()  # the attack is one
    trace.unlink()
    with pytest.raises(DatasetError, match=r"data_batch_3.*asks for __builtin__\.getattr"):
        opened(tmp_path / "data")
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        np.arange(4),  # of other types than bytes
        np.array([{}], dtype=object),
        np.zeros((2, 2), np.uint8, order="F")[:, ::-1].copy(order="F"),
        print,
        np.dtype("O"),
    ],
    ids=["int64", "object", "fortran", "builtin", "dtype"],
)
def test_other_things_in_a_pickle_are_refused(tmp_path: Path, content: object) -> None:
    """Arrays of anything but bytes, and names of anything but arrays, are a refusal or no value, never a crash."""
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": content}, protocol=2))
    with contextlib.suppress(DatasetError):
        assert not isinstance(read_pickle(path)["data"], np.ndarray | np.dtype)


@pytest.mark.parametrize("names", [("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels")])
def test_npz_files_are_read_under_the_usual_names(tmp_path: Path, names: tuple[str, str]) -> None:
    """MedMNIST's, Keras's and plain ones; colours last or first; labels in a column as MedMNIST has them."""
    images, labels = made(40, (16, 18, 3), 4, 1)
    np.savez_compressed(tmp_path / "a.npz", **{names[0]: images, names[1]: labels[:, None]})
    data = opened(tmp_path / "a.npz")
    assert data.train_images.shape[1:] == (3, 16, 18)
    assert data.class_names == ("0", "1", "2", "3")
    assert all_rows(data) == rows_of(images.transpose(0, 3, 1, 2), labels)
    assert len(data.train_labels) == 32
    assert np.bincount(data.test_labels).tolist() == np.bincount(data.val_labels).tolist() == [1, 1, 1, 1]


def test_labels_may_be_names_or_have_gaps(tmp_path: Path) -> None:
    """Names are class names in alphabetical order; the numbers 3 and 7 are classes of these names."""
    images, labels = made(20, (8, 8), 2, 1)
    np.savez(tmp_path / "names.npz", x=images, y=np.array(["pear", "fig"])[labels])
    assert opened(tmp_path / "names.npz").class_names == ("fig", "pear")
    np.savez(tmp_path / "gaps.npz", x=images, y=np.array([3, 7])[labels])
    data = opened(tmp_path / "gaps.npz")
    assert data.class_names == ("3", "7")
    assert set(data.train_labels.tolist()) == {0, 1}
    np.savez(tmp_path / "both.npz", x=images, y=labels, class_names=np.array(["fig", "pear"]))
    assert opened(tmp_path / "both.npz").class_names == ("fig", "pear")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 8, 8)), "y": np.arange(4) % 2}, "float64, expected uint8"),
        ({"x": np.zeros((4, 8, 8, 7), np.uint8), "y": np.arange(4) % 2}, "1 or 3 channels"),
        ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.arange(3)}, "expected one"),
        ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.arange(4) / 2}, "whole numbers or names"),
        ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.array([{}] * 4, object)}, "object"),
        ({"x": np.zeros((9, 8, 8), np.uint8), "y": np.zeros(9, int)}, "one class only"),
        ({"x": np.zeros((9, 8, 8), np.uint8), "y": np.arange(9) // 8}, "too few images"),
        (
            {"x": np.zeros((9, 8, 8), np.uint8), "y": np.arange(9) % 3, "class_names": np.array(["a", "b"])},
            "2 class names",
        ),
        ({"a": np.zeros(3)}, "expected train_images and train_labels"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    """Another type, form or number, with what was expected; and nothing is left in the cache."""
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path / "a.npz")
    assert not list(tmp_path.rglob("*.npy"))


def test_flags_that_contradict_the_data_are_refused(tmp_path: Path) -> None:
    """A size for images that have theirs, a share where the data bring a set, a path that is not there."""
    write_mnist(tmp_path / "data")
    with pytest.raises(ConfigError, match="--size"):
        opened(tmp_path / "data", size="20x20")
    with pytest.raises(ConfigError, match=r"--test 0\.2: the data bring"):
        opened(tmp_path / "data", test="0.2")
    with pytest.raises(DatasetError, match="--val /nowhere: no such"):
        opened(tmp_path / "data", val="/nowhere")
    with pytest.raises(DatasetError, match="no known form"):
        opened(Path(__file__))


def test_sets_of_their_own_are_taken_by_path(tmp_path: Path) -> None:
    """Each image of the file named by --val is one to choose by, and none of them is trained on."""
    val = made(12, (8, 8), 3, 5)
    np.savez(tmp_path / "val.npz", x=val[0], y=val[1])
    images, labels = made(60, (8, 8), 3, 1)
    np.savez(tmp_path / "all.npz", x=images, y=labels)
    data = opened(tmp_path / "all.npz", val=str(tmp_path / "val.npz"))
    assert rows_of(data.val_images, data.val_labels) == rows_of(*val)
    assert len(data.train_labels) + len(data.test_labels) == 60


def test_objects_like_torchvision_s_are_taken() -> None:
    """Grey as a tensor, colour as an array with colours last, SVHN's with colours first and `labels`."""
    grey, numbers = made(30, (12, 12), 3, 1)
    mnist = SimpleNamespace(data=grey, targets=numbers.tolist(), classes=["0 - zero", "1 - one", "2 - two"])
    data = dataset_of(mnist)
    assert data.class_names == ("0 - zero", "1 - one", "2 - two")
    assert all_rows(data) == rows_of(grey, numbers)
    colour, ids = made(30, (3, 12, 12), 3, 2)
    test, test_ids = made(9, (3, 12, 12), 3, 3)
    svhn = dataset_of(
        SimpleNamespace(data=colour, labels=ids), SimpleNamespace(data=test, labels=test_ids), val_share=0
    )
    assert rows_of(svhn.test_images, svhn.test_labels) == rows_of(test, test_ids)
    assert svhn.val_images is None
    last = dataset_of(SimpleNamespace(data=colour.transpose(0, 2, 3, 1), targets=ids, classes=list("abc")))
    assert all_rows(last) == rows_of(colour, ids)
    with pytest.raises(DatasetError, match="SimpleNamespace has no data"):
        dataset_of(SimpleNamespace(x=1))


def test_torchvision_s_own_datasets_are_taken(tmp_path: Path) -> None:
    """Where it is installed, its reading of the same files gives the same images and names as ours."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as err:  # not installed, or made for another PyTorch
        pytest.skip(str(err))
    rows, test = cifar(tmp_path / "data", "python")
    patched = type("CIFAR10", (datasets.CIFAR10,), {"_check_integrity": lambda self: True})
    patched.meta = {**datasets.CIFAR10.meta, "md5": None}
    theirs = dataset_of(*(patched(tmp_path / "data", train=train) for train in (True, False)))
    assert theirs.class_names == tuple(TEN)
    assert all_rows(theirs) == rows | rows_of(*test)


@pytest.mark.parametrize("shape", [(0, 16, 16, 3), (6, 0, 16, 3), (6, 16, 0)])
def test_arrays_without_a_pixel_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """No rows, no height, no width: one sentence."""
    path = tmp_path / "empty.npz"
    np.savez(path, x_train=np.zeros(shape, np.uint8), y_train=np.zeros(shape[0], np.int64))
    with pytest.raises(DatasetError, match="not one pixel"):
        opened(path)
