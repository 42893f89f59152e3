"""Recipes carried out, compared with NumPy and with what Pillow is asked for by hand."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from foldserve.format.image import ImageRecipe, read_recipe
from foldserve.pictures import PictureError, decode, prepare, resized_size

PLAIN = ImageRecipe(height=8, width=10)
CROPPED = ImageRecipe(height=8, width=10, rule="shorter", resize=(12,), crop=(8, 10))


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_the_layout_and_the_order_of_colours_are_the_recipes():
    """The same pixels in all four forms that a graph may want."""
    pixels = noise(8, 10, 3)
    file = encode(Image.fromarray(pixels))
    assert np.array_equal(decode(file, PLAIN), pixels.transpose(2, 0, 1))
    assert np.array_equal(decode(file, replace(PLAIN, layout="HWC")), pixels)
    assert np.array_equal(decode(file, replace(PLAIN, layout="HWC", colour="BGR")), pixels[..., ::-1])
    assert np.array_equal(decode(file, replace(PLAIN, colour="BGR")), pixels[..., ::-1].transpose(2, 0, 1))


def test_a_recipe_without_a_resize_takes_no_other_size():
    """Silently another size would be silently other answers."""
    with pytest.raises(PictureError, match=r"8x10 pixels, expected 10x8 \(width x height\).*no rule"):
        prepare(Image.new("RGB", (8, 10)), PLAIN)


def test_the_middle_is_cut_out_after_the_shorter_side_was_resized():
    """24 x 40 becomes 12 x 20, of which rows 2 to 10 and columns 5 to 15 stay."""
    image = Image.fromarray(noise(24, 40, 3))
    by_hand = np.asarray(image.resize((20, 12), Image.Resampling.BILINEAR))[2:10, 5:15]
    assert np.array_equal(prepare(image, replace(CROPPED, layout="HWC")), by_hand)


@pytest.mark.parametrize(("rounding", "top"), [("even", 2), ("down", 1)])
def test_half_a_pixel_goes_where_the_recipe_says(rounding, top):
    """Of 11 rows 8 are kept: 1.5 is 2 for torchvision, 1 for transformers."""
    image = Image.fromarray(noise(11, 10, 3))
    recipe = replace(CROPPED, rule="none", resize=(), rounding=rounding, layout="HWC")
    assert np.array_equal(prepare(image, recipe), np.asarray(image)[top : top + 8])


def test_what_a_small_picture_does_not_fill_is_padding():
    """A crop beyond the edge shows the padding's colour, in RGB whatever order the graph takes."""
    recipe = replace(CROPPED, rule="none", resize=(), padding=(1, 2, 3), layout="HWC", colour="BGR")
    pixels = prepare(Image.new("RGB", (4, 4), (9, 8, 7)), recipe)
    assert (pixels[2:6, 3:7] == (7, 8, 9)).all()
    assert (pixels[:2] == (3, 2, 1)).all()


@pytest.mark.parametrize(
    ("rule", "resize", "size"),
    [("shorter", (6,), (6, 12)), ("exact", (5, 5), (5, 5)), ("fit", (6, 6), (3, 6)), ("cover", (6, 6), (6, 12)),
     ("letterbox", (8, 10), (5, 10))],
)  # fmt: skip
def test_each_rule_reaches_its_size(rule, resize, size):
    """The five rules on a picture of 20 x 40."""
    crop = None if rule == "letterbox" else (8, 10)
    assert resized_size(replace(PLAIN, rule=rule, resize=resize, crop=crop), 20, 40) == size


def test_without_antialiasing_a_reduction_samples_points():
    """Each pixel of a reduction to a third is the middle one of its nine, not a mean over them."""
    pixels = noise(24, 30, 3)
    recipe = ImageRecipe(height=8, width=10, rule="exact", resize=(8, 10), antialias=False, layout="HWC")
    assert np.array_equal(prepare(Image.fromarray(pixels), recipe), pixels[1::3, 1::3])


def test_transparency_is_dropped_or_laid_over_the_background():
    """The same half transparent red by both rules."""
    file = encode(Image.new("RGBA", (10, 8), (200, 0, 0, 128)))
    assert decode(file, PLAIN)[:, 0, 0].tolist() == [200, 0, 0]
    composite = replace(PLAIN, alpha="composite", background=(0, 0, 100))
    assert np.abs(decode(file, composite)[:, 0, 0].astype(int) - (100, 0, 50)).max() <= 1


@pytest.mark.parametrize(("rule", "values"), [("scale", [0, 1, 128, 255]), ("clip", [0, 255, 255, 255])])
def test_sixteen_bits_are_scaled_or_clipped(rule, values):
    """Clipped as Pillow's convert does, which is what a training by torchvision saw."""
    image = Image.fromarray(np.array([[0, 256, 32896, 65535]], np.uint16))
    recipe = ImageRecipe(height=1, width=4, sixteen_bit=rule)
    assert decode(encode(image), recipe)[0, 0].tolist() == values


@pytest.mark.parametrize(("rule", "shape"), [("apply", (8, 10)), ("ignore", (10, 8))])
def test_the_orientation_is_applied_or_ignored(rule, shape):
    """A photograph taken upright stays lying for those who ignore the camera's note."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode(Image.new("RGB", (8, 10)), exif=exif)
    assert decode(file, ImageRecipe(height=shape[0], width=shape[1], exif=rule)).shape == (3, *shape)


def test_three_channels_of_a_grey_picture_are_equal():
    """For a network of three channels that was trained on grey, before or after the resize."""
    image = Image.fromarray(noise(16, 20, 3))
    for order in ("before", "after"):
        recipe = ImageRecipe(height=8, width=10, rule="exact", resize=(8, 10), colour="grey", grey=order)
        pixels = prepare(image, recipe)
        assert (pixels == pixels[:1]).all()
    resized = image.resize((10, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels[0], np.asarray(resized.convert("L")))


def test_a_picture_of_one_pixel_height_does_not_grow_without_end():
    """Its shorter side at 256 would make gigabytes of the longer one."""
    recipe = ImageRecipe(height=224, width=224, rule="shorter", resize=(256,), crop=(224, 224))
    with pytest.raises(PictureError, match="resized to 2560000x256 pixels"):
        prepare(Image.new("RGB", (10_000, 1)), recipe)


@pytest.mark.parametrize("data", [b"", b"no picture", encode(Image.new("RGB", (99, 99)))[:-40]])
def test_what_is_no_whole_picture_is_refused(data):
    """Half a file is no example."""
    with pytest.raises(PictureError, match="not a whole PNG or JPEG"):
        decode(data, PLAIN)


def photograph(height: int, width: int, **options: object) -> bytes:
    """A JPEG file of smooth colours."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 100, width // 100, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def grain(height: int, width: int, **options: object) -> bytes:
    """A JPEG file of nothing but noise: the finest detail that there is."""
    pixels = np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92, **options)
    return file.getvalue()


SCALED = {
    "shorter": {"rule": "shorter", "resize": (64,), "crop": (56, 56)},
    "exact": {"rule": "exact", "resize": (56, 56)},
    "letterbox": {"rule": "letterbox", "resize": (56, 56)},
    "cover": {"rule": "cover", "resize": (60, 60), "crop": (56, 56)},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("values", SCALED.values(), ids=SCALED)
def test_a_large_photograph_may_be_decoded_at_a_part_of_its_size(values, exif, orientation, monkeypatch):
    """Values move by a few, whichever way the photograph lies: its sides are not multiples of eight, nor its edges."""
    drafts = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def noted(image, mode, size):
        found = draft(image, mode, size)
        drafts.append(image.size)
        return found

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", noted)
    exact = ImageRecipe(height=56, width=56, exif=exif, **values)
    scaled = replace(exact, decoding="scaled")
    tag = Image.Exif()
    tag[0x0112] = orientation
    for data in (photograph(601, 804, exif=tag.tobytes()), grain(645, 803, exif=tag.tobytes())):
        drafts.clear()
        expected = decode(data, exact).astype(int)
        assert drafts == []
        difference = np.abs(decode(data, scaled).astype(int) - expected)
        assert min(drafts[0]) < 600
        assert difference.max() <= 6
        assert difference.mean() < 1.2


@pytest.mark.parametrize("values", SCALED.values(), ids=SCALED)
def test_what_is_small_or_no_jpeg_is_decoded_in_whole(values):
    """Less than two and three quarters of the resize would be left, or there is no transform to use."""
    exact = ImageRecipe(height=56, width=56, **values)
    scaled = replace(exact, decoding="scaled")
    for small in (photograph(200, 300), encode(Image.fromarray(np.zeros((600, 800, 3), np.uint8)))):
        assert np.array_equal(decode(small, scaled), decode(small, exact))


def test_a_recipe_without_it_reads_as_before():
    """The usual decoding is not written, since a release before would refuse the key."""
    recipe = ImageRecipe(height=56, width=56, rule="exact", resize=(56, 56))
    assert "decoding" not in recipe.as_dict()
    scaled = replace(recipe, decoding="scaled")
    assert scaled.as_dict()["decoding"] == "scaled"
    assert read_recipe(scaled.as_dict()) == scaled
