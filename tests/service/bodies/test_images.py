"""Image files of every kind -> the pixels of a model, compared with NumPy, and hostile files refused."""

import io

import numpy as np
import pytest
from PIL import Image

from foldserve.format.image import ImageRecipe, first_format_recipe
from foldserve.service.bodies.images import decode_image
from foldserve.service.bodies.limits import PixelBudget
from foldserve.service.errors import BodyTooLarge, InvalidInput
from tests.support.predict_bodies import bomb

GREY = first_format_recipe(28, 28, 1)
MAX_PIXELS = 50_000_000


def spec(channels: int = 1, background: int = 0) -> ImageRecipe:
    return first_format_recipe(28, 28, channels, background=background)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(image: Image.Image, target: ImageRecipe = GREY, kind: str = "PNG", **options: object) -> np.ndarray:
    return decode_image(encode(image, kind, **options), target, PixelBudget(MAX_PIXELS))


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def test_a_grey_image_of_the_right_size_arrives_byte_for_byte():
    """What needs no change gets none: all 784 bytes are those of the file."""
    pixels = noise(28, 28)
    assert np.array_equal(decode(Image.fromarray(pixels))[0], pixels)


def test_reduction_averages_by_area():
    """Each pixel of a fourfold reduction is the mean of its 16 source pixels; two passes round it twice, up to 1."""
    pixels = noise(112, 112)
    means = pixels.reshape(28, 4, 28, 4).mean(axis=(1, 3))
    assert np.abs(decode(Image.fromarray(pixels))[0] - means).max() <= 1


def test_colour_becomes_grey_after_itu_r_601():
    """Grey is 0.299 R + 0.587 G + 0.114 B."""
    pixels = noise(28, 28, 3)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(Image.fromarray(pixels))[0] - grey).max() <= 0.51


@pytest.mark.parametrize("background", [0, 255, 90])
def test_transparency_is_laid_over_the_models_background(background):
    """Alpha mixes with the background that the model file names, not with black or white by habit."""
    pixels = noise(28, 28, 4)
    alpha = pixels[..., 3] / 255
    expected = (pixels[..., :3] @ np.array([0.299, 0.587, 0.114])) * alpha + background * (1 - alpha)
    assert np.abs(decode(Image.fromarray(pixels, "RGBA"), spec(background=background))[0] - expected).max() <= 1.01


def test_a_transparent_colour_of_a_palette_shows_the_background():
    """A palette with one transparent entry is transparent too."""
    image = Image.new("P", (28, 28), 3)
    image.putpalette([200] * 768)
    image.paste(1, (0, 0, 14, 28))
    pixels = decode(image, spec(background=7), transparency=3)[0]
    assert (pixels[:, :14] == 200).all()
    assert (pixels[:, 14:] == 7).all()


def test_sixteen_bits_are_scaled_not_clipped():
    """65535 becomes 255 and 32896 becomes 128; a clipped image would be white all over."""
    values = np.tile(np.linspace(0, 65535, 28).astype(np.uint16), (28, 1))
    assert np.abs(decode(Image.fromarray(values))[0] - values / 257).max() <= 0.51


@pytest.mark.parametrize(("height", "width"), [(14, 28), (28, 14), (1, 28), (100, 50), (3, 3000), (7, 7)])
def test_the_aspect_is_kept_and_the_rest_padded(height, width):
    """A white image of another aspect stays white in the middle, with background on two sides of equal width."""
    pixels = decode(Image.new("L", (width, height), 255), spec(background=9))[0]
    white = np.argwhere(pixels == 255)
    rows, columns = white.max(axis=0) - white.min(axis=0) + 1
    longest = max(height, width)
    assert (rows, columns) == (max(1, round(28 * height / longest)), max(1, round(28 * width / longest)))
    assert set(np.unique(pixels)) <= {9, 255}
    margins = white.min(axis=0), 27 - white.max(axis=0)
    assert np.abs(margins[0] - margins[1]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """All eight orientations of a camera show the same upright picture."""
    upright = np.zeros((28, 28), np.uint8)
    upright[:6, :17] = 255  # no symmetry that could hide a mistake
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored[orientation]))
    assert np.array_equal(decode(image, exif=exif)[0], upright)


def test_nothing_is_inverted():
    """A white image stays white, whatever the model prefers."""
    assert (decode(Image.new("L", (28, 28), 255)) == 255).all()


def test_a_model_of_three_channels_gets_colour_planes():
    """Channels come first, red before green before blue."""
    pixels = noise(28, 28, 3)
    assert np.array_equal(decode(Image.fromarray(pixels), spec(channels=3)), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_every_kind_of_png_is_read(mode):
    """A white image of any mode arrives white."""
    image = Image.new("L", (40, 40), 255).convert(mode) if mode != "I;16" else Image.new(mode, (40, 40), 65535)
    assert (decode(image) == 255).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_kind_of_jpeg_is_read(mode):
    """A grey JPEG arrives as that grey, to the accuracy of JPEG."""
    pixels = decode(Image.new("RGB", (40, 40), (90, 90, 90)).convert(mode), kind="JPEG", quality=95)
    assert np.abs(pixels.astype(int) - 90).max() <= 2


@pytest.mark.parametrize(
    "data", [b"hello, this is a text", b"<svg/>", b"GIF89a" + bytes(90), b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_not_a_png_or_jpeg_is_refused(data):
    """The content decides, so a text called .png is a text."""
    with pytest.raises(InvalidInput, match=r"^image: not a PNG or JPEG image"):
        decode_image(data, GREY, PixelBudget(MAX_PIXELS))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(kind, part):
    """Half an image is no image; it is not filled up with grey."""
    data = encode(Image.fromarray(noise(200, 200)), kind)
    with pytest.raises(InvalidInput, match="truncated or damaged"):
        decode_image(data[: int(len(data) * part)], GREY, PixelBudget(MAX_PIXELS))


@pytest.mark.parametrize("side", [13_000, 14_000, 9_000, 7_100])
def test_a_bomb_is_refused_before_it_is_decoded(side):
    """20 KB that hold 169 million pixels are refused by their header alone, at every size beyond the limit."""
    data = bomb(side)
    assert len(data) < 25_000
    with pytest.raises(InvalidInput, match="pixels, expected at most 50000000"):
        decode_image(data, GREY, PixelBudget(MAX_PIXELS))


def test_the_pixel_limit_is_exact():
    """An image of exactly the limit is read, one pixel more is not."""
    data = encode(Image.new("L", (100, 50)))
    assert decode_image(data, GREY, PixelBudget(5_000)).shape == (1, 28, 28)
    with pytest.raises(InvalidInput, match="100x50 pixels"):
        decode_image(data, GREY, PixelBudget(4_999))


def test_the_pixels_of_a_request_are_bounded_in_their_sum():
    """Eight images of the limit are read, the ninth refused: ten thousand small files cannot hold a thread long."""
    data = encode(Image.new("L", (100, 50)))
    budget = PixelBudget(5_000)
    for _ in range(8):
        decode_image(data, GREY, budget)
    with pytest.raises(BodyTooLarge, match="more than 40000 pixels in one request"):
        decode_image(data, GREY, budget)


def test_an_empty_file_is_refused():
    """Nothing is named as nothing."""
    with pytest.raises(InvalidInput, match="0 bytes"):
        decode_image(b"", GREY, PixelBudget(MAX_PIXELS))


def test_the_message_names_the_image():
    """With many images in a request, the sentence says which one it is."""
    with pytest.raises(InvalidInput, match=r"^instances\[3\]\.b64: "):
        decode_image(b"text", GREY, PixelBudget(MAX_PIXELS), "instances[3].b64")
