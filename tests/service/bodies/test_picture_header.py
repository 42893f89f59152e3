"""What a picture costs is known and bounded: 16-bit colour, scans, texts, and the end of the wait for it."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from foldserve.format.image import first_format_recipe
from foldserve.service.bodies.images import decode_image
from foldserve.service.bodies.limits import PixelBudget
from foldserve.service.bodies.picture_header import has_more_scans, picture_pixels
from foldserve.service.errors import DeadlineExceeded, InvalidInput

GREY = first_format_recipe(28, 28, 1, background=7)
COLOUR = first_format_recipe(28, 28, 3, background=7)
BUDGET = 50_000_000


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def sixteen_bits(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(6).integers(0, 65536, (height, width, channels), dtype=np.uint16)


def png_of_sixteen_bits(values: np.ndarray, colour_type: int, key: bytes = b"") -> bytes:
    """A PNG file with two bytes a value, written by hand; no library here writes 16-bit colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0))
    middle = chunk(b"tRNS", key) if key else b""
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_is_rounded_as_grey_is():
    """Each value is the nearest of 256; the upper byte alone would be up to 1 less."""
    values = sixteen_bits(28, 28, 3)
    read = decode_image(png_of_sixteen_bits(values, 2), COLOUR, PixelBudget(BUDGET))
    assert np.array_equal(read, np.rint(values / 257).astype(np.uint8).transpose(2, 0, 1))


@pytest.mark.parametrize(("colour_type", "channels"), [(4, 2), (6, 4)])
def test_sixteen_bits_with_alpha_are_rounded_too(colour_type, channels):
    """Opaque grey and colour come out as without alpha."""
    values = sixteen_bits(28, 28, channels)
    values[..., -1] = 65535
    read = decode_image(png_of_sixteen_bits(values, colour_type), COLOUR, PixelBudget(BUDGET))
    expected = np.broadcast_to(np.rint(values[..., :-1] / 257), (28, 28, 3))
    assert np.array_equal(read, expected.astype(np.uint8).transpose(2, 0, 1))


def test_a_transparent_colour_of_sixteen_bits_shows_the_background():
    """The one colour that the file names is compared with both of its bytes."""
    values = sixteen_bits(28, 28, 3)
    values[:14] = (0x1234, 0x5678, 0x9ABC)
    values[14] = (0x1234, 0x5678, 0x9ABD)
    file = png_of_sixteen_bits(values, 2, struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    read = decode_image(file, COLOUR, PixelBudget(BUDGET))
    assert (read[:, :14] == 7).all()
    assert np.array_equal(read[:, 14:], np.rint(values[14:] / 257).astype(np.uint8).transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_take_no_copies_of_eight_bytes(channels):
    """What NumPy makes of a picture is a strip at a time, not 8 bytes for each of its 1.5 million pixels."""
    file = png_of_sixteen_bits(np.zeros((1000, 1500, channels), np.uint16), {1: 0, 3: 2, 4: 6}[channels])
    tracemalloc.start()
    try:
        decode_image(file, GREY, PixelBudget(BUDGET))
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


def with_scans(count: int) -> bytes:
    """A progressive JPEG file whose last scan is repeated until it has so many."""
    data = encode(noise(64, 64), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * (count - data.count(b"\xff\xda")) + data[end:]


def test_scans_are_counted_before_a_file_is_decoded():
    """Each of them goes over the whole picture: 219 KB with 8,000 of them took minutes."""
    usual = encode(noise(64, 64), "JPEG", progressive=True)
    scans = usual.count(b"\xff\xda")
    assert decode_image(usual, GREY, PixelBudget(BUDGET, scans)).shape == (1, 28, 28)
    with pytest.raises(InvalidInput, match=f"more than {scans - 1} scans"):
        decode_image(usual, GREY, PixelBudget(BUDGET, scans - 1))
    with pytest.raises(InvalidInput, match="more than 64 scans"):
        decode_image(with_scans(8_000), GREY, PixelBudget(BUDGET))


def test_what_looks_like_a_scan_behind_the_end_is_none():
    """Phones put a film behind a photograph."""
    data = encode(noise(64, 64), "JPEG") + b"\xff\xda" * 1_000
    assert decode_image(data, GREY, PixelBudget(BUDGET, 1)).shape == (1, 28, 28)


def test_texts_that_inflate_are_refused():
    """Thirty kilobytes of a small picture cannot hold 30 MB of texts."""
    texts = PngInfo()
    for index in range(30):
        texts.add_text(f"text{index}", "a" * 1_000_000, zip=True)
    with pytest.raises(InvalidInput):
        decode_image(encode(noise(28, 28), pnginfo=texts), GREY, PixelBudget(BUDGET))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_is_given_up_when_nobody_waits_for_it(kind):
    """Decoding says every few kilobytes that it goes on, and ends where that raises."""
    beats: list[int] = []

    def beat() -> None:
        beats.append(1)
        if len(beats) > 50:
            raise DeadlineExceeded("nobody waits")

    with pytest.raises(DeadlineExceeded):
        decode_image(encode(noise(2000, 2000, 3), kind), GREY, PixelBudget(BUDGET, beat=beat))
    assert len(beats) == 51


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_pixels_that_a_file_states_are_read_without_a_decoder(kind):
    """Width times height, also behind much EXIF; nothing for what is neither."""
    exif = Image.Exif()
    exif[0x010E] = "x" * 30_000
    assert picture_pixels(encode(noise(30, 50, 3), kind)) == 1500
    assert picture_pixels(encode(noise(30, 50, 3), kind, exif=exif)) == 1500
    for data in (b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8" + b"\xff\xe0\0\2" * 1_000, b"GIF89a" * 9):
        assert picture_pixels(data) is None


def with_segments(kind: str, count: int) -> bytes:
    """A picture behind or in so many parts that say nothing: chunks, segments, fill bytes."""
    if kind == "text chunks":
        whole = encode(noise(28, 28))
        text = b"\0\0\0\3tEXtk\0v" + struct.pack(">I", zlib.crc32(b"tEXtk\0v"))
        return whole[:33] + text * count + whole[33:]
    if kind == "empty IDAT":
        whole = encode(noise(28, 28))
        return whole[:33] + (b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))) * count + whole[33:]
    whole = encode(noise(28, 28), "JPEG")
    part = {"comments": b"\xff\xfe\0\2", "fill bytes": b"\xff", "restarts": b"\xff\xd0"}[kind]
    return whole[:2] + part * count + whole[2:]


@pytest.mark.parametrize("kind", ["text chunks", "empty IDAT", "comments", "fill bytes", "restarts"])
def test_a_file_in_a_great_many_parts_is_refused(kind):
    """A decoder looks at each in Python: megabytes of them held it for as long as anybody waited."""
    watched = []
    budget = PixelBudget(BUDGET, beat=lambda: watched.append(0))
    with pytest.raises(InvalidInput, match="chunks or segments"):
        decode_image(with_segments(kind, 1_000_000), GREY, budget, "instances[3]")
    assert len(watched) < 80_000
    assert decode_image(with_segments(kind, 200), GREY, PixelBudget(BUDGET)).shape == GREY.shape


@pytest.mark.parametrize("count", [300_000, 1_000_000])
def test_segments_between_scans_are_not_followed_without_end(count):
    """Those that stand behind the first scan the decoder never shows to Python; the count of scans has its own end."""
    whole = encode(noise(64, 64, 3), "JPEG", progressive=True)
    end = b"\xff\xfe\0\2" * count + b"\xff\xda\0\2" * 200
    assert has_more_scans(whole[:-2] + end, 100, 10_000)
    assert not has_more_scans(whole, 100, 10_000)


ASK = """
import sys
from foldserve.format.image import first_format_recipe
from foldserve.service.bodies.images import decode_image
from foldserve.service.bodies.limits import PixelBudget
print(decode_image(sys.stdin.buffer.read(), first_format_recipe(28, 28, 1), PixelBudget(784)).shape)
"""


def test_what_a_decoder_warns_of_is_not_written():
    """Lines that are no events, and as many texts as strangers think of."""
    tag = b"\xff\xff\1\x12\0\3\0\0\0\1\0\6\0\0"
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + tag
    whole = encode(noise(28, 28), "JPEG")
    file = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        Image.open(io.BytesIO(file)).getexif()
    done = subprocess.run([sys.executable, "-c", ASK], input=file, capture_output=True, check=True)
    assert done.stdout.strip().endswith(b"28, 28)")
    assert done.stderr == b""
