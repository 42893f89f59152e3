"""`--image-formats`: what is switched on is read pixel for pixel at every door, what is not is refused as before."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from foldserve.format.picture_types import PICTURE_FORMATS, picture_type
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve

MORE = PICTURE_FORMATS[2:]
PIXELS = (artifacts.images(1, seed=4)[0, 0] // 4 * 4).astype(np.uint8)  # 64 greys: a palette holds them
PREVIEW = "/v2/models/fashion/versions/1/preview"


def file(kind: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    """A picture as a file that loses nothing."""
    lossless = {"webp": {"lossless": True}, "tiff": {"compression": "tiff_lzw"}}.get(kind, {})
    image, held = Image.fromarray(pixels), io.BytesIO()
    image.convert("RGB" if kind == "webp" else image.mode).save(held, kind.upper(), **lossless | options)
    return held.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    return root


def asking(models: Path, **settings: object) -> Iterator[httpx.Client]:
    app = create_app(Settings(models_dir=models, provider="cpu", buckets=(1, 4), **settings))
    with serve(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        yield http


@pytest.fixture(scope="module")
def every(models: Path) -> Iterator[httpx.Client]:
    """A service that decodes all it can."""
    yield from asking(models, image_formats=PICTURE_FORMATS, max_image_pixels=10_000)


@pytest.fixture(scope="module")
def usual(models: Path) -> Iterator[httpx.Client]:
    """A service as it comes."""
    yield from asking(models)


def shown(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


@pytest.mark.parametrize("kind", PICTURE_FORMATS)
def test_every_format_is_read_pixel_for_pixel(every, kind):
    """By its media type, in a form, as base64, on TorchServe's route and by the protocol: as what was written."""
    data = file(kind) if kind != "jpeg" else file("jpeg", quality=100, subsampling=0)
    expected = PIXELS if kind != "jpeg" else np.asarray(Image.open(io.BytesIO(data)))
    headers = {"Content-Type": f"image/{kind}"}
    assert picture_type(data) == f"image/{kind}"
    assert np.array_equal(shown(every.post(PREVIEW, content=data, headers=headers)), expected)
    assert np.array_equal(shown(every.post(PREVIEW, files={"file": data})), expected)
    body = {"instances": [{"b64": base64.b64encode(data).decode()}]}
    assert np.array_equal(shown(every.post(PREVIEW, json=body)), expected)
    said = every.post("/predict", content=data, headers=headers).json()["predictions"]
    raw = every.post("/predict", content=expected.tobytes(), headers={"Content-Type": "application/octet-stream"})
    assert said == raw.json()["predictions"]
    assert every.put("/predictions/fashion", content=data).status_code == 200
    for element in (data, base64.b64encode(data)):
        assert by_protocol(every, element).json()["outputs"] == by_protocol(every, expected).json()["outputs"]


def by_protocol(http: httpx.Client, sent: bytes | np.ndarray) -> httpx.Response:
    """The probabilities of one picture or its pixels, sent behind the JSON."""
    is_file = isinstance(sent, bytes)
    content = len(sent).to_bytes(4, "little") + sent if is_file else sent.tobytes()
    tensor = {"name": "image", "datatype": "BYTES" if is_file else "UINT8", "shape": [1] if is_file else [1, 1, 28, 28]}
    tensor["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return http.post("/v2/models/fashion/infer", content=head + content, headers=headers)


@pytest.mark.parametrize("kind", MORE)
def test_what_is_not_switched_on_is_refused(usual, kind):
    """415 by its media type, 400 by its content; the sentences are those of a service that knows no others."""
    by_type = usual.post("/predict", content=file(kind), headers={"Content-Type": f"image/{kind}"})
    assert by_type.status_code == 415
    assert by_type.json()["error"].startswith(f"Content-Type: 'image/{kind}', expected one of application/json, ")
    by_content = usual.post("/predict", content=file(kind), headers={"Content-Type": "image/png"})
    assert by_content.json() == {"error": "image: not a PNG or JPEG image, expected the bytes of one"}
    assert by_content.status_code == 400
    by_protocol_too = by_protocol(usual, file(kind))
    assert by_protocol_too.json() == {"error": "input 'image'[0]: not a PNG or JPEG image, expected the bytes of one"}


@pytest.mark.parametrize("kind", MORE)
def test_limits_hold_for_every_format(every, kind):
    """Too many pixels are refused before they are decoded; a cut file is named as damaged."""
    large = file(kind, np.zeros((120, 120), np.uint8))
    answer = every.post("/predict", content=large, headers={"Content-Type": f"image/{kind}"})
    assert (answer.status_code, "120x120 pixels" in answer.json()["error"]) == (400, True)
    data = file(kind)
    answer = every.post("/predict", content=data[: len(data) // 2], headers={"Content-Type": f"image/{kind}"})
    assert answer.status_code == 400, answer.text


def test_the_first_frame_of_an_animation_counts(every):
    """Of a GIF and of a WebP; the frames behind it change nothing."""
    frames = [Image.fromarray(pixels).convert("P") for pixels in (PIXELS, 255 - PIXELS)]
    held = io.BytesIO()
    frames[0].save(held, "GIF", save_all=True, append_images=frames[1:])
    answer = every.post(PREVIEW, content=held.getvalue(), headers={"Content-Type": "image/gif"})
    assert np.array_equal(shown(answer), PIXELS)


@pytest.mark.parametrize(
    ("pixels", "options", "sentence"),
    [
        (PIXELS.astype(np.float32), {}, "image: a TIFF file of mode F, expected one of 1, L, LA"),
        (np.stack([PIXELS] * 3, -1), {"compression": "jpeg"}, "image: a TIFF file packed by jpeg, expected one of raw"),
    ],
)
def test_what_a_tiff_may_be_beside_a_picture_is_refused(every, pixels, options, sentence):
    """Floats have no range, and a JPEG inside would pass its own limits by."""
    answer = every.post("/predict", content=file("tiff", pixels, **options), headers={"Content-Type": "image/tiff"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(sentence)


def test_the_library_of_tiff_writes_nothing(every, capfd):
    """It would write to standard error as it stands what it thinks of each file that a stranger damaged."""
    data = bytearray(file("tiff"))
    data[20:40] = b"\xff" * 20
    answer = every.post("/predict", content=bytes(data), headers={"Content-Type": "image/tiff"})
    assert answer.status_code == 400
    assert "tempfile.tif" not in capfd.readouterr().err


def test_the_description_lists_what_is_decoded(every, usual):
    """And the setting refuses what there is no decoder for."""

    def listed(http: httpx.Client) -> set[str]:
        content = http.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
        return {kind for kind in content if kind.startswith("image/")}

    assert listed(every) == {f"image/{name}" for name in PICTURE_FORMATS}
    assert listed(usual) == {"image/png", "image/jpeg"}
    with pytest.raises(ValueError, match="expected formats among png, jpeg, webp"):
        Settings(image_formats=("png", "svg"))
