"""What is chosen and tested by is not what was trained on; sets that share images are refused, or it is said."""

import numpy as np
import pytest

from foldserve.training.data.opening import open_data
from foldserve.training.data.request import DataRequest
from foldserve.training.errors import DatasetError

RANDOM = np.random.default_rng(0)


def images(count):
    return RANDOM.integers(0, 256, (count, 4, 4), dtype=np.uint8)


def opened(tmp_path, val="", test="", **arrays):
    """Return the data of a .npz file with these arrays; labels alternate."""
    labels = {name.replace("images", "labels"): np.arange(len(array)) % 2 for name, array in arrays.items()}
    np.savez(tmp_path / "data.npz", **arrays, **labels)
    return open_data(DataRequest(data=str(tmp_path / "data.npz"), val=val, test=test), tmp_path / "cache")


def test_sets_without_a_common_image_are_taken(tmp_path):
    """Nothing is warned of."""
    assert opened(tmp_path, train_images=images(40), val_images=images(8), test_images=images(8)).warnings == ()


@pytest.mark.parametrize("kind", ["val", "test"])
def test_a_set_of_training_images_alone_is_refused(tmp_path, kind):
    """Also when only a part of the training images is in it, in another order."""
    train = images(40)
    with pytest.raises(DatasetError, match=f"10 of the 10 images .* of the other sets, .* images by --{kind}$"):
        opened(tmp_path, **{"train_images": train, f"{kind}_images": train[19:9:-1]})


def test_one_image_to_choose_by_in_the_test_set_is_refused(tmp_path):
    """Selection never sees a test image."""
    val, test = images(8), images(8)
    test[5] = val[2]
    with pytest.raises(DatasetError, match="1 of the 8 images to test on are also among those to choose by"):
        opened(tmp_path, train_images=images(40), val_images=val, test_images=test)


def test_a_file_given_twice_is_refused(tmp_path):
    """By two names, too."""
    np.savez(tmp_path / "other.npz", images=images(8), labels=np.arange(8) % 2)
    (tmp_path / "link.npz").symlink_to(tmp_path / "other.npz")
    with pytest.raises(DatasetError, match="8 of the 8 images to choose by are also among those of the other sets"):
        opened(tmp_path, str(tmp_path / "other.npz"), str(tmp_path / "link.npz"), train_images=images(40))


def test_images_that_occur_twice_are_warned_of(tmp_path):
    """What is held out of one set may have its twin left there: it is said how many, and the training goes on."""
    once = images(20)
    warnings = opened(tmp_path, images=np.concatenate([once, once])).warnings
    assert any(" images to test on are also among those to train on" in line for line in warnings)
    train, test = images(40), images(8)
    test[0] = train[3]
    found = opened(tmp_path, train_images=train, test_images=test).warnings
    assert found[0].startswith("1 of the 8 images to test on are also among those to train on")
