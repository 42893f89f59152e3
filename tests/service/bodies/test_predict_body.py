"""The body forms of `/predict`: the same images through each of them, and one clear sentence for everything else."""

import json
import subprocess
import sys
from contextlib import suppress
from itertools import product

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.format.image import ImageRecipe, first_format_recipe
from foldserve.service.bodies import decoder
from foldserve.service.bodies.predict_body import Limits, is_quick, media_type, media_types, read_images
from foldserve.service.errors import BodyTooLarge, DeadlineExceeded, InvalidInput, TooManyRows, UnsupportedMediaType
from tests.support.artifacts import images
from tests.support.predict_bodies import b64, form, png

SPEC = first_format_recipe(28, 28, 1)
COLOUR = first_format_recipe(4, 5, 3)
LIMITS = Limits(rows=20, pixels=1_000_000)


def read_json(document: object, spec: ImageRecipe = SPEC, limits: Limits = LIMITS) -> np.ndarray:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_images(body, "application/json", spec, limits)


def instance(value: object, *, flat: bool) -> list:
    """A zero image with one value changed: row 5, column 7."""
    rows = np.zeros((28, 28), int).tolist()
    rows[5][7] = value
    return [item for row in rows for item in row] if flat else rows


# The same images in every form ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_every_form_of_json_gives_the_same_images(count):
    """Nested, flat, whole floats and encoded files, alone and mixed, arrive as the same bytes."""
    pixels = images(count)
    nested, flat = pixels[:, 0].tolist(), pixels.reshape(count, 784).tolist()
    floats = pixels.reshape(count, 784).astype(float).tolist()
    files = [b64(image[0]) for image in pixels]
    for forms in product(*zip(nested, flat, floats, files, strict=True)):
        assert np.array_equal(read_json({"instances": forms}), pixels)


def test_octets_are_the_pixels_themselves():
    """n x 784 bytes are n images, without a copy."""
    pixels = images(5)
    body = pixels.tobytes()
    read = read_images(body, "application/octet-stream", SPEC, LIMITS)
    assert np.array_equal(read, pixels)
    assert np.shares_memory(read, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("content_type", ["image/png", "IMAGE/PNG", "image/jpeg", "image/png; name=x"])
def test_an_image_body_is_one_image_whatever_its_name(content_type):
    """The content decides: a PNG that calls itself a JPEG is read all the same."""
    pixels = images(1)
    assert np.array_equal(read_images(png(pixels[0, 0]), content_type, SPEC, LIMITS), pixels)


def test_a_form_is_one_image_for_each_part():
    """Several files under any field name arrive in their order."""
    pixels = images(3)
    body, content_type = form(*(png(image[0]) for image in pixels))
    assert np.array_equal(read_images(body, content_type, SPEC, LIMITS), pixels)


def test_a_model_with_channels_takes_planes():
    """Another model, another shape: nothing about 28 x 28 is known here."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    assert np.array_equal(read_json({"instances": pixels.tolist()}, COLOUR), pixels)
    assert np.array_equal(read_json({"instances": pixels.reshape(2, 60).tolist()}, COLOUR), pixels)
    assert np.array_equal(read_images(pixels.tobytes(), "application/octet-stream", COLOUR, LIMITS), pixels)
    with pytest.raises(InvalidInput, match=r"shape \(2, 4, 5\), expected \(3, 4, 5\) or 60 values"):
        read_json({"instances": [pixels[0, :2].tolist()]}, COLOUR)


@given(
    st.lists(
        st.one_of(st.integers(-2, 258), st.sampled_from([0.0, 3.0, 255.0, 3.5, -0.0, True, None, "7"])),
        min_size=60,
        max_size=60,
    )
)
def test_any_list_is_read_right_or_refused(values):
    """Whole numbers 0-255 arrive as they are; a list with anything else in it is refused, whichever path reads it."""
    whole = all(type(value) in (int, float) and 0 <= value <= 255 and value == int(value) for value in values)
    if whole:
        assert read_json({"instances": [values]}, COLOUR).ravel().tolist() == values
    else:
        with pytest.raises(InvalidInput, match=r"^instances\[0\]\[\d+\]: .*, expected an integer 0-255$"):
            read_json({"instances": [values]}, COLOUR)


# What is refused ----------------------------------------------------------------------------------------------------

ZEROS = np.zeros((28, 28), int).tolist()


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "nested"])
@pytest.mark.parametrize(
    ("value", "got"),
    [(256, "256"), (-1, "-1"), (3.5, "3.5"), (True, "true"), (False, "false"), (None, "null"), ("3", '"3"'),
     (2**63, "9223372036854775808"), (1e300, "1e+300"), ({}, "an object"), ("x" * 5000, '"' + "x" * 79 + "...")],
)  # fmt: skip
def test_a_value_that_is_no_pixel_is_named_with_its_place(value, got, flat):
    """The sentence says where the value stands and what it is, shortened."""
    place = "instances[1][147]" if flat else "instances[1][5][7]"
    with pytest.raises(InvalidInput) as refusal:
        read_json({"instances": [ZEROS, instance(value, flat=flat)]})
    assert str(refusal.value) == f"{place}: {got}, expected an integer 0-255"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (ZEROS[:27], "instances[0]: shape (27, 28), expected (28, 28) or 784 values"),
        ([0] * 785, "instances[0]: shape (785,), expected (28, 28) or 784 values"),
        ([], "instances[0]: shape (0,), expected (28, 28) or 784 values"),
        ([ZEROS], "instances[0]: shape (1, 28, 28), expected (28, 28) or 784 values"),
        ([*ZEROS[:5], [0] * 27, *ZEROS[6:]], "instances[0][5]: 27 values, expected 28"),
        ([*ZEROS[:5], 0, *ZEROS[6:]], "instances[0][5]: 0, expected a row of 28 values"),
        ([*([0] * 783), [0]], "instances[0][783]: a list, expected an integer 0-255"),
        (["a"], 'instances[0][0]: "a", expected an integer 0-255'),
        (7, 'instances[0]: 7, expected (28, 28) or 784 values or {"b64": "<PNG or JPEG>"}'),
        (None, 'instances[0]: null, expected (28, 28) or 784 values or {"b64": "<PNG or JPEG>"}'),
        ({}, 'instances[0]: expected exactly {"b64": "<PNG or JPEG in base64>"}'),
        ({"b64": 3}, 'instances[0]: expected exactly {"b64": "<PNG or JPEG in base64>"}'),
        ({"b64": "a", "x": 1}, 'instances[0]: expected exactly {"b64": "<PNG or JPEG in base64>"}'),
        ({"b64": "é"}, "instances[0].b64: not base64 (standard alphabet, padded, no line breaks)"),
        ({"b64": "abc"}, "instances[0].b64: not base64 (standard alphabet, padded, no line breaks)"),
        ({"b64": ""}, "instances[0].b64: 0 bytes, expected a PNG or JPEG file"),
        ({"b64": "aGVsbG8="}, "instances[0].b64: not a PNG or JPEG image, expected the bytes of one"),
    ],
)  # fmt: skip
def test_an_instance_of_the_wrong_form_is_named(wrong, sentence):
    """What was sent, what was expected, and where."""
    with pytest.raises(InvalidInput) as refusal:
        read_json({"instances": [wrong]})
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "body: 0 bytes, expected at least one instance"),
        (b"hello", "body: not JSON, "),
        (b'{"instances": [[NaN]]}', "body: not JSON, "),
        (b'{"instances": [[Infinity]]}', "body: not JSON, "),
        (b'{"instances": [[1e999]]}', "body: not JSON, "),
        (b"\xff\xfe", "body: not JSON, "),
        (b'{"instances": ["\\ud800"]}', "body: not JSON, "),
        (b"[" * 250_000, "body: not JSON, "),
        (b'{"instances":' * 250_000, "body: not JSON, "),
        (b"[]", 'body: a list, expected an object {"instances": [...]}'),
        (b"null", 'body: null, expected an object {"instances": [...]}'),
        (b"{}", "body: no key 'instances', expected {\"instances\": [...]}"),
        (b'{"instances": [], "' + b"k" * 90 + b'": 1}', f"body: unknown key '{'k' * 80}...', expected "),
        (b'{"instances": []}', "instances: an empty list, expected at least one instance"),
        (b'{"instances": {}}', "instances: an object, expected a list"),
        (b'{"instances": [' + b"[" * 900 + b"]" * 900 + b"]}", "instances[0]: shape (1, 1, 1, 1, 1, 1, ...), "),
    ],
)  # fmt: skip
def test_a_body_that_is_not_the_document_is_named(body, sentence):
    """NaN, bombs of depth and the wrong document each get their sentence, and a short one."""
    with pytest.raises(InvalidInput) as refusal:
        read_json(body)
    assert str(refusal.value).startswith(sentence)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("size", [1, 783, 785, 1567])
def test_bytes_that_are_no_whole_images_are_refused(size):
    """The sentence names the size of one image."""
    with pytest.raises(InvalidInput, match=f"body: {size} bytes, expected a multiple of 784"):
        read_images(bytes(size), "application/octet-stream", SPEC, LIMITS)


GOOD_FORM = form(png(images(1)[0, 0]))


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (*form(), "form: no parts"),
        (*form(b""), "form file 0: 0 bytes"),
        (*form(png(images(1)[0, 0]), b"text"), "form file 1: not a PNG or JPEG image"),
        (GOOD_FORM[0], "multipart/form-data", "Content-Type: multipart/form-data without a boundary"),
        (GOOD_FORM[0], "multipart/form-data; boundary=other", "form: not valid multipart/form-data"),
        (GOOD_FORM[0], f"multipart/form-data; boundary={'b' * 5000}", "form: not valid multipart/form-data"),
        (GOOD_FORM[0][:-20], GOOD_FORM[1], "form: it ends before its closing boundary"),
        (b"not a form at all", GOOD_FORM[1], "form: not valid multipart/form-data"),
    ],
    ids=["no-parts", "empty", "text", "no-boundary", "other-boundary", "long-boundary", "cut", "no-form"],
)
def test_a_form_that_cannot_be_read_is_refused(body, content_type, sentence):
    """Each way in which a form can be broken has its sentence."""
    with pytest.raises(InvalidInput) as refusal:
        read_images(body, content_type, SPEC, LIMITS)
    assert str(refusal.value).startswith(sentence)


def test_a_form_is_given_up_when_nobody_waits_for_it():
    """Taking a form apart is slow where it is full of line ends; it ends when nobody waits."""
    beats = []

    def beat() -> None:
        beats.append(1)
        if len(beats) > 3:
            raise DeadlineExceeded("nobody waits")

    body, content_type = form(b"\r\n" * 500_000)
    with pytest.raises(DeadlineExceeded):
        read_images(body, content_type, SPEC, Limits(20, 1_000_000, beat=beat))
    assert len(beats) == 4


def test_the_row_limit_is_exact_in_every_form():
    """Twenty images are read and twenty-one refused, in JSON, raw bytes and a form alike."""
    pixels = images(21)
    for count, fits in ((20, True), (21, False)):
        file = png(pixels[0, 0])
        bodies = [
            (json.dumps({"instances": [[0] * 784] * count}).encode(), "application/json"),
            (pixels[:count].tobytes(), "application/octet-stream"),
            form(*[file] * count),
        ]
        for body, content_type in bodies:
            if fits:
                assert len(read_images(body, content_type, SPEC, LIMITS)) == count
            else:
                with pytest.raises(TooManyRows, match="21 images, expected at most 20"):
                    read_images(body, content_type, SPEC, LIMITS)


def test_the_images_of_one_request_share_their_pixels():
    """In a form and in JSON alike, the ninth image of the largest size is one too many; a plain row costs none."""
    large = np.zeros((20, 50), np.uint8)
    limits = Limits(rows=20, pixels=1000)
    for count, fits in ((8, True), (9, False)):
        requests = [
            (json.dumps({"instances": [b64(large)] * count + [ZEROS]}).encode(), "application/json"),
            form(*[png(large)] * count),
        ]
        for body, content_type in requests:
            if fits:
                assert len(read_images(body, content_type, SPEC, limits)) >= 8
            else:
                with pytest.raises(BodyTooLarge, match="8000 pixels in one request"):
                    read_images(body, content_type, SPEC, limits)


@pytest.mark.parametrize("filling", [b"[],", b"{},", b"0,", b'"",'])
def test_a_document_that_would_fill_the_memory_is_refused_unparsed(filling, monkeypatch):
    """Parsed, empty lists take twenty times their size: more of them than any right document has are only counted."""
    monkeypatch.setattr(orjson, "loads", lambda _: pytest.fail("it was parsed"))
    body = b'{"instances": [[' + filling * 1_000_000 + b"0]]}"
    with pytest.raises(TooManyRows, match="more values or lists than 20 rows have"):
        read_json(body)


def test_the_heaviest_right_document_is_not_refused():
    """As many images as the limit allows, in the longest writing, with spaces and whole floats."""
    rows = 300  # 1.7 MB
    body = json.dumps({"instances": [[[255.0] * 28] * 28] * rows}, indent=0).encode()
    assert len(body) > 1_048_576
    assert (read_json(body, limits=Limits(rows=rows, pixels=1)) == 255).all()
    files = json.dumps({"instances": [{"b64": "A" * 100_000}] * 20}).encode()
    with pytest.raises(InvalidInput, match="not a PNG or JPEG"):
        read_json(files)


@pytest.mark.parametrize("content_type", [None, "", "text/csv", "application/x-www-form-urlencoded", "x" * 9000])
def test_an_unknown_media_type_is_refused(content_type):
    """The sentence lists what would do."""
    with pytest.raises(UnsupportedMediaType) as refusal:
        media_type(content_type)
    assert all(known in str(refusal.value) for known in media_types())
    assert len(str(refusal.value)) < 300


@given(st.binary(max_size=300), st.sampled_from([*media_types(), "multipart/form-data; boundary=edge"]))
def test_no_bytes_lead_to_anything_but_images_or_a_refusal(body, content_type):
    """Random bytes under any media type are refused with one of our own errors, never with another exception."""
    with suppress(InvalidInput, TooManyRows):
        assert read_images(body, content_type, SPEC, LIMITS).shape[1:] == (1, 28, 28)


def test_only_what_is_surely_quick_stays_on_the_event_loop():
    """A file may hold a thousand times its bytes, so only the smallest are decoded on the loop; pixels always are."""
    decoder.load()
    assert is_quick(bytes(10_000_000), "application/octet-stream")
    assert is_quick(bytes(60_000), "application/json")
    assert not is_quick(bytes(70_000), "application/json")
    assert not is_quick(b'{"instances": [{"b64": "' + bytes(3_000), "application/json")
    assert not is_quick(b'{"instances": [{"\\u0062\\u0036\\u0034": ""}]}', "application/json")
    assert is_quick(png(images(1)[0, 0]), "image/png")
    assert is_quick(json.dumps({"instances": [b64(images(1)[0, 0])]}).encode(), "application/json")
    assert not is_quick(png(np.zeros((900, 900), np.uint8)), "image/png")  # 2 KB
    assert not is_quick(json.dumps({"instances": [b64(np.zeros((300, 300), np.uint8))]}).encode(), "application/json")
    assert not is_quick(bytes(900), "image/png")
    assert not is_quick(bytes(3_000), "image/png")


def test_the_first_image_is_left_to_a_thread_which_imports_the_library():
    """The application starts without the library for image files, and the event loop never waits for its import."""
    program = (
        "import sys, foldserve.service.app\n"
        "from foldserve.service.bodies.predict_body import is_quick\n"
        "from foldserve.service.bodies import decoder\n"
        f"file = {png(images(1)[0, 0])!r}\n"
        "print('PIL' in sys.modules, is_quick(file, 'image/png'), is_quick(bytes(9), 'application/json'))\n"
        "decoder.load()\n"
        "print('PIL' in sys.modules, is_quick(file, 'image/png'))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "True", "True", "True"]
