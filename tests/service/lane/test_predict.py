"""`/predict` on the fast lane against the application: the same requests on both ways."""

from base64 import b64decode
from pathlib import Path

from PIL import Image

from foldserve.service.bodies import decoder
from tests.support import artifacts
from tests.support.lane import FLAT, JSON, NESTED, OCTETS, ONE, assert_equal, both, instances, of, png, service
from tests.support.pictures import encoded
from tests.support.wire import on_loop

PNG, FILE = b"image/png", b64decode(png(28))
FORMS: dict[str, tuple[bytes, bytes]] = {
    "one image": (ONE, OCTETS),
    "five images": (artifacts.images(5).tobytes(), OCTETS),
    "more than the largest batch": (artifacts.images(9).tobytes(), OCTETS),
    "flat": (instances(FLAT), JSON),
    "nested": (instances(NESTED), JSON),
    "two": (instances(FLAT, NESTED), JSON),
    "more than the largest batch, in JSON": (instances(*[FLAT] * 9), JSON),
    "floats": (instances([float(value) for value in FLAT]), JSON),
    "charset": (instances(FLAT), b"application/json; charset=utf-8"),
    "small file": (instances({"b64": png(28)}), JSON),
    "large file": (instances({"b64": png(60, 250)}), JSON),
    "a bare file": (FILE, PNG),
    "a large bare file": (b64decode(png(900, 250)), PNG),
    "a photograph": (encoded(Image.new("RGB", (1_200, 900), "teal"), "JPEG"), b"image/jpeg"),
}
ERRORS: dict[str, tuple[bytes, bytes]] = {
    "783 bytes": (ONE[:-1], OCTETS),
    "11 images": (artifacts.images(11).tobytes(), OCTETS),
    "11 in JSON": (instances(*[{"b64": png(28)}] * 11), JSON),
    "not JSON": (b"{", JSON),
    "no instances": (b"{}", JSON),
    "empty": (instances(), JSON),
    "785 values": (instances([*FLAT, 0]), JSON),
    "256": (instances([256, *FLAT[1:]]), JSON),
    "true": (instances([True, *FLAT[1:]]), JSON),
    "NaN": (b'{"instances":[[NaN]]}', JSON),
    "not an image": (instances({"b64": "AAAA"}), JSON),
    "a large file that is none": (instances({"b64": "A" * 4000}), JSON),
    "no file": (ONE, PNG),
    "half a file": (FILE[: len(FILE) // 2], PNG),
    "more pixels than one picture may have": (b64decode(png(3_000)), PNG),
    "a format that is not decoded": (ONE, b"image/webp"),
    "media type": (ONE, b"text/plain"),
    "nothing": (b"", OCTETS),
}


@on_loop
async def test_both_ways_give_the_same_answer(fashion: Path) -> None:
    """Byte for byte, in every form that a body may have, and with the same headers."""
    decoder.load()  # the first picture of a process waits for it, in a thread
    async with service(fashion, buckets=(1, 2, 4, 8)) as server:
        for name, (body, media_type) in FORMS.items():
            with of(name):
                on_lane, application = await both(server, body, media_type)
                assert on_lane.status == 200
                assert_equal(on_lane, application)


@on_loop
async def test_both_ways_refuse_in_the_same_words(fashion: Path) -> None:
    """Status, sentence and headers of an error do not depend on the way."""
    async with service(fashion, buckets=(1, 2, 4, 8), max_rows=10, max_image_pixels=1_000_000) as server:
        for name, (body, media_type) in ERRORS.items():
            with of(name):
                on_lane, application = await both(server, body, media_type)
                assert on_lane.error
                assert_equal(on_lane, application)


@on_loop
async def test_a_deadline_that_is_none_is_refused(fashion: Path) -> None:
    """X-Deadline-Ms has to be a whole number above 0, on both ways."""
    async with service(fashion) as server:
        for value in (b"0", b"-1", b"soon", b"1.5", b""):
            with of(value):
                on_lane, application = await both(server, ONE, OCTETS, b"X-Deadline-Ms: " + value)
                assert on_lane.status == 400
                assert_equal(on_lane, application)
