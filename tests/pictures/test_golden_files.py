"""Golden pictures: packed within their limits, decoded again, and what another decoder or recipe does to them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from foldserve.format.errors import FormatError, GoldenError
from foldserve.format.golden import Golden, read_golden
from foldserve.format.golden_files import MOST_BYTES, GoldenFile, digest_of_pixels
from foldserve.format.image import ImageRecipe
from foldserve.pictures import PictureError, decode
from foldserve.pictures.golden_files import pack, with_pixels
from tests.support import pictures

RECIPE = ImageRecipe(height=24, width=20, rule="shorter", resize=(28,), crop=(24, 20))
LARGE = ImageRecipe(height=512, width=512, rule="shorter", resize=(512,), crop=(512, 512))


def photograph(height: int = 300, width: int = 400, seed: int = 0, quality: int = 90) -> bytes:
    """A JPEG with slopes and edges, as a camera makes them."""
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(x + phase + seed) * np.cos(y * 1.3 - phase) for phase in range(3)]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    file = io.BytesIO()
    pixels = np.clip(np.stack(waves, axis=-1) * 100 + 127 + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def golden(files: tuple[GoldenFile, ...]) -> Golden:
    return Golden({}, {"y": np.arange(len(files), dtype=np.float32)[:, None]}, {"cpu": 1e-5, "cuda": 1e-4}, files)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, layout="HWC", colour="BGR"),
        replace(RECIPE, colour="grey", channels=1),
        replace(RECIPE, colour="grey"),
    ],
)
def test_the_rows_are_those_of_the_files(recipe):
    """Through the manifest and back, for every form of a row."""
    rng = np.random.default_rng(4)
    files = pack([(f"{index}", pictures.drawn(rng)) for index in range(20)], recipe)
    assert len(files) == 16
    read = read_golden(golden(files).as_dict())
    assert read.rows == 16
    decoded, remark = with_pixels(read, recipe)
    assert remark is None
    assert np.array_equal(decoded.inputs["image"], np.stack([decode(file.content, recipe) for file in files]))
    assert all(file.pixels is not None for file in files)


@pytest.mark.parametrize(("recipe", "size"), [(RECIPE, (300, 400)), (LARGE, (300, 400)), (LARGE, (900, 1200))])
def test_they_never_take_more_than_a_megabyte(recipe, size):
    """However large the pictures and the model are; one picture at least stays as it came where it is small enough."""
    offered = [(f"{index}.jpg", photograph(*size, seed=index)) for index in range(18)]
    files = pack(offered, recipe)
    assert 1 <= len(files) <= 16
    assert len(str(golden(files).as_dict()["files"])) <= MOST_BYTES + 200 * len(files)
    if any(len(data) <= 200_000 for _, data in offered):
        assert any(file.content == data for file in files for _, data in offered)
    assert with_pixels(golden(files), recipe)[1] is None


def test_another_decoder_is_told_from_another_graph():
    """A few levels off: the graph is proved on the pixels of the manifest, and the remark says how far it was."""
    files = list(pack([("a.jpg", photograph(seed=1)), ("b.jpg", photograph(seed=2))], RECIPE))
    files[1] = replace(files[1], content=photograph(seed=2, quality=89))
    decoded, remark = with_pixels(golden(tuple(files)), RECIPE)
    assert remark is not None
    assert "1 golden pictures decode to other pixels" in remark
    assert digest_of_pixels(decoded.inputs["image"][1]) == files[1].sha256_pixels


def test_a_row_that_is_not_known_is_left_out():
    """Without its pixels in the manifest nothing can be said of it; the others are proved."""
    files = list(pack([("a.jpg", photograph(seed=1)), ("b.jpg", photograph(seed=2))], RECIPE))
    files[0] = replace(files[0], content=photograph(seed=1, quality=89), pixels=None)
    decoded, remark = with_pixels(golden(tuple(files)), RECIPE)
    assert remark is not None
    assert "proved on 1 rows" in remark
    assert decoded.outputs["y"].tolist() == [[1.0]]
    assert len(decoded.inputs["image"]) == 1
    with pytest.raises(GoldenError, match="every golden picture decodes to other pixels"):
        with_pixels(golden((files[0],)), RECIPE)


@pytest.mark.parametrize("change", [{"colour": "BGR"}, {"crop": (24, 20), "resize": (40,)}, {"filter": "nearest"}])
def test_another_recipe_is_refused(change):
    """A recipe that was changed after the proof decodes to something else than another decoder does."""
    files = pack([("a.jpg", photograph(301, 403, seed=1))], RECIPE)
    with pytest.raises(GoldenError, match=r"differ from those it was published with|are not those of its digest"):
        with_pixels(golden(files), replace(RECIPE, **change))


def test_pixels_that_were_changed_are_refused():
    """The digest holds for them too."""
    (file,) = pack([("a.jpg", photograph())], RECIPE)
    (other,) = pack([("a.jpg", photograph(seed=3))], RECIPE)
    changed = replace(file, content=photograph(quality=89), pixels=other.pixels)
    with pytest.raises(GoldenError, match=r"are not those of its digest|differ from those"):
        with_pixels(golden((changed,)), RECIPE)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"files": {}}, "expected a list"),
        ({"files": [{"name": "a"}]}, "golden file 0 in manifest.json cannot be read"),
        ({"files": [{"name": "a", "content": "?", "sha256_pixels": ""}]}, "golden file 0"),
        ({"files": [{"name": "a", "content": "", "sha256_pixels": ""}] * 17}, "expected at most 16"),
        ({"files": [{"name": "a", "content": "A" * 1_500_000, "sha256_pixels": ""}]}, "1125000|at most 16 of 1048576"),
        ({"files": [{"name": "a", "content": "", "sha256_pixels": ""}] * 2}, "rows, expected one number"),
    ],
)
def test_a_garbled_section_is_refused(section, message):
    """By the number of the file."""
    stated = golden((GoldenFile("a", b"", ""),)).as_dict() | section
    with pytest.raises(FormatError, match=message):
        read_golden(stated)


def test_what_is_no_picture_cannot_be_packed():
    """An example that does not decode is refused where it is given, not where it is proved."""
    with pytest.raises(PictureError, match="not a whole PNG or JPEG"):
        pack([("a.txt", b"text")], RECIPE)
