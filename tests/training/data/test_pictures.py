"""A folder of pictures: prepared by the service's own recipe and code, and everything wrong with it said at once."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foldserve.format.image import ImageRecipe
from foldserve.pictures import decode
from foldserve.training.data.cache import mapped
from foldserve.training.data.opening import open_data
from foldserve.training.data.request import DataRequest, picture_recipe
from foldserve.training.dataset import Dataset
from foldserve.training.errors import ConfigError, DatasetError
from tests.support.class_folders import FRUIT, save_classes, save_picture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "foldserve" / "pixels"


def opened(path: Path, **options) -> Dataset:
    return open_data(DataRequest(data=str(path), **{"size": "16x24", **options}))


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.*") if path.is_file())


def pixels(data: Dataset) -> list[tuple[str, bytes]]:
    parts = [(data.train_images, data.train_labels), (data.val_images, data.val_labels)]
    parts.append((data.test_images, data.test_labels))
    return sorted(
        (data.class_names[label], image.tobytes())
        for images, labels in parts
        for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize("resize", ["exact", "crop", "letterbox"])
@pytest.mark.parametrize("colour", ["RGB", "grey"])
def test_the_pixels_are_those_that_the_service_makes(tmp_path: Path, resize: str, colour: str) -> None:
    """Every picture, JPEG or PNG, has the bytes that the recipe in the graph makes of its file."""
    root = save_classes(tmp_path / "fruit", 10)
    data = opened(root, resize=resize, colour=colour)
    assert data.picture == picture_recipe(16, 24, resize=resize, colour=colour)
    expected = sorted((path.parent.name, decode(path.read_bytes(), data.picture).tobytes()) for path in files(root))
    assert pixels(data) == expected
    assert data.class_names == FRUIT


def test_a_stretched_picture_is_pillow_s(tmp_path: Path) -> None:
    """Compared with Pillow alone, written out here."""
    root = save_classes(tmp_path / "fruit", 10)
    for path in files(root):
        with Image.open(path) as image:
            resized = np.asarray(image.convert("RGB").resize((24, 16), Image.Resampling.BILINEAR))
        assert (path.parent.name, resized.transpose(2, 0, 1).tobytes()) in pixels(opened(root))


def test_rows_are_held_out_of_each_class_by_the_seed(tmp_path: Path) -> None:
    """A tenth of each class for each, the same ones again for the same seed, others for another."""
    root = save_classes(tmp_path / "fruit", 20)
    first, again, other = opened(root), opened(root), opened(root, split_seed=1)
    assert np.bincount(first.test_labels).tolist() == np.bincount(first.val_labels).tolist() == [2, 2, 2]
    assert np.array_equal(first.test_images, again.test_images)
    assert not np.array_equal(first.test_images, other.test_images)
    assert pixels(first) == pixels(other)
    assert len(opened(root, val="0.25").val_labels) == 12  # 4.5 of 18, to the even number, of each class


@pytest.mark.parametrize("flag", ["val", "test"])
def test_classes_too_small_to_hold_some_out_are_named(tmp_path: Path, flag: str) -> None:
    """By the names of their folders, not by their numbers, whether nothing is left for the one set or for the other."""
    root = save_classes(tmp_path / "fruit", 3)
    alone = sorted(folder for folder in root.iterdir() if folder.is_dir())[1]
    for path in sorted(alone.iterdir())[1 if flag == "test" else 2 :]:
        path.unlink()
    with pytest.raises(DatasetError, match=rf"--{flag} 0.1: .* of each class \({alone.name}\); add images"):
        opened(root)


def test_folders_of_their_own_are_not_mixed(tmp_path: Path) -> None:
    """train, val and test in one folder, or named by the flags: no picture changes its set."""
    for number, name in enumerate(("train", "val", "test")):
        save_classes(tmp_path / "fruit" / name, 4, seed=number)
    data = opened(tmp_path / "fruit")
    assert [len(labels) for labels in (data.train_labels, data.val_labels, data.test_labels)] == [12, 12, 12]
    expected = {decode(path.read_bytes(), data.picture).tobytes() for path in files(tmp_path / "fruit" / "test")}
    assert {image.tobytes() for image in data.test_images} == expected
    others = {name: str(tmp_path / "fruit" / name) for name in ("val", "test")}
    named = opened(tmp_path / "fruit" / "train", **others)
    assert np.array_equal(named.test_images, data.test_images)
    assert named.digests == data.digests
    with pytest.raises(ConfigError, match="bring a set of their own"):
        opened(tmp_path / "fruit", val="0.1")


def test_all_that_is_wrong_is_listed_at_once(tmp_path: Path, cache: Path) -> None:
    """Broken and unreadable pictures, files that are none, an empty class, classes that differ: one message."""
    root = tmp_path / "fruit"
    for number, name in enumerate(("train", "test")):
        save_classes(root / name, 4, seed=number)
    content = (root / "train/apple/01.jpg").read_bytes()
    (root / "train/apple/01.jpg").write_bytes(content[: len(content) // 2])
    (root / "train/leaf/notes.txt").write_text("not a picture")
    (root / "test/sky/00.png").write_bytes(b"")
    (root / "train/empty").mkdir()
    save_picture(root / "test/unknown/1.png", 0, np.random.default_rng(0))
    shutil.copy(root / "test/leaf/00.png", root / "train/leaf/.hidden.png")
    with pytest.raises(DatasetError) as caught:
        opened(root)
    message = str(caught.value)
    for part in ("train/apple/01.jpg", "notes.txt", "test/sky/00.png", "train/empty: no picture", "'empty'", "unknown"):
        assert part in message, part
    assert message.startswith("6 problems")
    assert not list(cache.rglob("*"))


def test_broken_pictures_alone_are_listed_and_leave_nothing(tmp_path: Path, cache: Path) -> None:
    """Found only when they are decoded, all of them are named, and the next try decodes everything anew."""
    root = save_classes(tmp_path / "fruit", 10)
    broken = [root / "apple/01.jpg", root / "sky/03.png"]
    kept = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-60])
    for _ in range(2):
        with pytest.raises(DatasetError, match="2 problems") as caught:
            opened(root)
        assert all(str(path) in str(caught.value) for path in broken)
    assert not list(cache.glob("*"))
    for path, content in zip(broken, kept, strict=True):
        path.write_bytes(content)
    assert len(pixels(opened(root))) == 30


def test_the_size_is_that_of_the_pictures_or_is_asked_for(tmp_path: Path) -> None:
    """Pictures of one size need no flag; of several, the message names two of them and the flag."""
    generator = np.random.default_rng(0)
    for name in FRUIT:
        for number in range(3):
            save_picture(tmp_path / "same" / name / f"{number}.png", 0, generator, (20, 30))
    assert opened(tmp_path / "same", size="").train_images.shape[1:] == (3, 20, 30)
    root = save_classes(tmp_path / "fruit", 4)
    with pytest.raises(DatasetError, match="give --size HEIGHTxWIDTH"):
        opened(root, size="")
    with pytest.raises(ConfigError, match="--size 16by24"):
        opened(root, size="16by24")


def test_a_camera_s_orientation_and_transparency_are_taken_into_account(tmp_path: Path) -> None:
    """A picture noted as lying on its side, and one that shows nothing, become what the service makes of them."""
    root = save_classes(tmp_path / "fruit", 4)
    lying = Image.new("RGB", (30, 20), (255, 0, 0))
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(root / "apple/lying.jpg", exif=exif)
    Image.new("RGBA", (20, 20), (255, 255, 255, 0)).save(root / "apple/clear.png")
    data = opened(root, resize="letterbox")
    found = {content for name, content in pixels(data) if name == "apple"}
    assert np.zeros((3, 16, 24), np.uint8).tobytes() in found
    assert decode((root / "apple/lying.jpg").read_bytes(), data.picture).tobytes() in found


def test_a_changed_picture_is_noticed_and_a_known_folder_is_not_decoded_again(tmp_path: Path, cache: Path) -> None:
    """The content decides: the same folder is read from the cache, one other picture makes other digests."""
    root = save_classes(tmp_path / "fruit", 10)
    first = opened(root)
    (file,) = cache.glob("*.npy")
    time = file.stat().st_mtime_ns
    shutil.copytree(root, tmp_path / "copy")
    assert opened(tmp_path / "copy").digests == first.digests
    assert file.stat().st_mtime_ns == time
    save_picture(root / "apple/00.png", 2, np.random.default_rng(5))
    assert opened(root).digests != first.digests
    assert len(list(cache.glob("*.npy"))) == 2


def test_a_half_written_file_in_the_cache_is_made_anew(tmp_path: Path, cache: Path) -> None:
    """Cut off by whatever it was, it is no data."""
    root = save_classes(tmp_path / "fruit", 10)
    expected = pixels(opened(root))
    (file,) = cache.glob("*.npy")
    os.truncate(file, 2000)
    assert pixels(opened(root)) == expected


def test_a_disk_that_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is taken before pixels are written, so that a full disk is a message and no signal."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DatasetError, match=r"No space left on device.*XDG_CACHE_HOME"):
        opened(save_classes(tmp_path / "fruit", 4))
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_recipe_of_ones_own_is_followed(tmp_path: Path) -> None:
    """A recipe in the form of the graph's metadata takes the place of size, resize and colour."""
    recipe = ImageRecipe(height=12, width=12, rule="shorter", resize=(14,), crop=(12, 12), filter="bicubic")
    root = save_classes(tmp_path / "fruit", 4)
    data = opened(root, size="", image=recipe.as_dict())
    assert data.picture == recipe
    assert pixels(data)[0][1] in {decode(path.read_bytes(), recipe).tobytes() for path in files(root / "apple")}


LARGER_THAN_MEMORY = """
import io, resource, sys
from pathlib import Path
import numpy as np, torch
from torch import nn
from foldserve.training.config import Recipe
from foldserve.training.data.opening import open_data
from foldserve.training.data.request import DataRequest
from foldserve.training.pipeline import train

torch.set_num_threads(1)
def used():
    return int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10

recipe = Recipe.from_preset("own-data", network="mlp", epochs=1, batch_size=64, norm="torch")
small = open_data(DataRequest(data=sys.argv[2]))
train(recipe, small, torch.device("cpu"))  # what libraries need once
limit = used() + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
data = open_data(DataRequest(data=sys.argv[1]))
trained = train(recipe, data, torch.device("cpu"))
print(data.train_images.nbytes + data.test_images.nbytes + data.val_images.nbytes, trained.test_accuracy["population"])
try:
    np.ones(3000 * 20_000, np.uint8)  # the images, in memory
except MemoryError:
    print("the limit holds")
"""


def test_a_data_set_may_be_larger_than_memory(tmp_path: Path) -> None:
    """60 MB of images are read, split, trained and tested on with 36 MB, which the system itself enforces."""
    labels = np.arange(20_000) % 2
    for name, rows in (("large", 20_000), ("small", 400)):
        images = np.full((rows, 1, 50, 60), 20, np.uint8)
        images[labels[:rows] == 1, 0, 10:20] = 200
        np.savez_compressed(tmp_path / f"{name}.npz", images=images, labels=labels[:rows])
    command = [sys.executable, "-c", LARGER_THAN_MEMORY, tmp_path / "large.npz", tmp_path / "small.npz", str(36 << 20)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    size, accuracy = done.stdout.splitlines()[0].split()
    assert int(size) == 20_000 * 3000
    assert float(accuracy) == 1.0
    assert "the limit holds" in done.stdout


def test_what_fills_the_cache_may_fail(tmp_path: Path) -> None:
    """Whatever goes wrong while an array is made goes through, and no file is left."""

    def fails(_: np.ndarray) -> None:
        raise io.UnsupportedOperation("broken")

    with pytest.raises(DatasetError):
        mapped("key", (3,), fails, tmp_path / "pixels")
    assert not list((tmp_path / "pixels").iterdir())


KILLED = """
import sys, time
from pathlib import Path
from foldserve.training.data.cache import mapped

def waits(pixels):
    print("filling", flush=True)
    sys.stdin.read()

mapped("key", (3,), waits, Path(sys.argv[1]))
"""


def test_a_process_that_is_killed_leaves_nothing_for_long(tmp_path: Path) -> None:
    """What it had not finished goes when the next file is made; what a living one writes stays until it is done."""
    folder = tmp_path / "pixels"

    def left_after(key: str) -> int:
        mapped(key, (3,), lambda pixels: pixels.fill(7), folder)
        return len(list(folder.glob(".tmp-*")))

    command = [sys.executable, "-c", KILLED, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "filling\n"
        assert left_after("another") == 1
        process.kill()
        process.wait()
        assert len(list(folder.glob(".tmp-*"))) == 1
        assert left_after("a third") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["a third.npy", "another.npy"]


def test_sets_without_one_to_train_on_are_no_classes(tmp_path: Path) -> None:
    """`val` and `test` alone are a forgotten `train`."""
    for name in ("val", "test"):
        save_classes(tmp_path / "fruit" / name, 4)
    with pytest.raises(DatasetError, match="holds test and val but no train; expected train beside them"):
        opened(tmp_path / "fruit")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe among the pictures is named at once."""
    root = save_classes(tmp_path / "fruit", 4)
    os.mkfifo(next(entry for entry in root.iterdir() if entry.is_dir()) / "pipe.png")
    with pytest.raises(DatasetError, match=r"pipe\.png: neither a file nor a folder; take it out"):
        opened(root)


def test_the_name_of_a_class_is_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 could not be written into the model's file; that is said before a training."""
    root = save_classes(tmp_path / "fruit", 4)
    next(entry for entry in root.iterdir() if entry.is_dir()).rename(root / os.fsdecode(b"\xff\xfe"))
    with pytest.raises(DatasetError, match="its name is no UTF-8"):
        opened(root)
