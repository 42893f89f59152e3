"""Encoded pictures by the Open Inference Protocol: BYTES in the place of pixels, over HTTP and gRPC."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from foldserve.format.image import ANY_SIZE, ImageRecipe
from foldserve.pictures import decode
from foldserve.pictures.golden_files import pack
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import picture_models, pictures
from tests.support.live import serve

grpc = pytest.importorskip("grpc", reason="needs the extra grpc")

from tests.support.grpc_calls import MESSAGES, stubs  # noqa: E402

RECIPE = ImageRecipe(height=12, width=10, rule="shorter", resize=(14,), crop=(12, 10), filter="bicubic")
RECIPES = {
    "flowers": RECIPE,
    "free": ImageRecipe(height=ANY_SIZE, width=ANY_SIZE, layout="HWC"),
    "bgr": replace(RECIPE, layout="HWC", colour="BGR", rule="exact", resize=(12, 10), crop=None),
}
ODD = [pictures.drawn(np.random.default_rng(seed)) for seed in range(40, 45)]
EQUAL = [pictures.encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)))
         for seed in range(3)]  # fmt: skip
FILES = {name: EQUAL if recipe.is_free else ODD for name, recipe in RECIPES.items()}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    root = tmp_path_factory.mktemp("models")
    for name, recipe in RECIPES.items():
        picture_models.publish(root, name, recipe, pack([(str(i), f) for i, f in enumerate(FILES[name])], recipe))
    app = create_app(
        Settings(models_dir=root, provider="cpu", buckets=(1, 8), grpc_port=0, max_rows=20, max_image_pixels=40_000)
    )
    with (
        serve(app) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as http,
        grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel,
    ):
        yield SimpleNamespace(http=http, infer=stubs(channel).ModelInfer)


def in_json(http: httpx.Client, name: str, files: list[bytes], headers: dict[str, str], **changes) -> httpx.Response:
    """Base64 in the JSON of the protocol; a header that is unusual keeps it off the lane."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": list(map(text, files)), **changes}
    return http.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}, headers=headers)


def behind_json(http: httpx.Client, name: str, elements: list[bytes], shape: list[int]) -> httpx.Response:
    """Files behind the JSON, each after its length."""
    content = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    tensor = {"name": "image", "datatype": "BYTES", "shape": shape}
    tensor["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return http.post(f"/v2/models/{name}/infer", content=head + content, headers=headers)


def message(name: str, elements: list[bytes], *, is_raw: bool, shape: list[int]) -> object:
    request = MESSAGES["ModelInferRequest"](model_name=name)
    entry = request.inputs.add(name="image", datatype="BYTES", shape=shape)
    if is_raw:
        content = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
        request.raw_input_contents.append(content)
    else:
        entry.contents.bytes_contents.extend(elements)
    return request


def text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def of_http(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    (output,) = [output for output in answer.json()["outputs"] if output["name"] == "probabilities"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def of_grpc(answer: object) -> np.ndarray:
    position = [output.name for output in answer.outputs].index("probabilities")
    flat = np.frombuffer(answer.raw_output_contents[position], "<f4")
    return flat.reshape(answer.outputs[position].shape)


@pytest.mark.parametrize("name", RECIPES)
def test_every_door_decodes_by_the_models_own_recipe(service, name):
    """JSON on the lane and at the application, binary tensors, gRPC raw and typed: the answer to the same pixels."""
    recipe, files = RECIPES[name], FILES[name]
    rows = np.stack([decode(file, recipe) for file in files])
    expected = picture_models.classify(rows, recipe)["probabilities"]
    n, http = len(files), service.http
    texts = [text(file).encode() for file in files]
    answers = {
        "lane": of_http(in_json(http, name, files, {})),
        "again": of_http(in_json(http, name, files, {})),
        "application": of_http(in_json(http, name, files, {"Content-Encoding": "identity"})),
        "column": of_http(in_json(http, name, files, {}, shape=[n, 1])),
        "binary": of_http(behind_json(http, name, files, [n])),
        "binary base64": of_http(behind_json(http, name, texts, [n, 1])),
        "raw": of_grpc(service.infer(message(name, files, is_raw=True, shape=[n]))),
        "typed": of_grpc(service.infer(message(name, files, is_raw=False, shape=[n, 1]))),
        "typed base64": of_grpc(service.infer(message(name, texts, is_raw=False, shape=[n]))),
    }
    for door, answer in answers.items():
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6, err_msg=door)


def test_pixels_are_taken_as_before_between_pictures(service):
    """What is remembered of one request never answers the other kind."""
    rows = np.stack([decode(file, RECIPE) for file in ODD[:1]])
    pixels = {"datatype": "UINT8", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    expected = picture_models.classify(rows, RECIPE)["probabilities"]
    for _ in range(3):
        for changes in ({}, pixels):
            given = of_http(in_json(service.http, "flowers", ODD[:1], {}, **changes))
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)
    numbers = in_json(service.http, "flowers", ODD[:1], {}, data=rows.ravel().tolist(), shape=[rows.size])
    assert numbers.status_code in (400, 413)


def test_the_metadata_says_so(service):
    """The type of the graph stays, and how files are sent stands beside it."""
    metadata = service.http.get("/v2/models/flowers").json()
    assert metadata["inputs"][0]["datatype"] == "UINT8"
    assert (
        metadata["properties"]["pictures"] == "PNG or JPEG files as BYTES [N] in place of the pixels, in JSON as base64"
    )


LARGE = pictures.encoded(Image.new("L", (300, 200)))


@pytest.mark.parametrize(
    ("elements", "shape", "expected"),
    [
        ([b"hello"], [1], "input 'image'[0]: not base64"),
        ([ODD[0], ODD[1][:-30]], [2], "input 'image'[1]: "),
        ([base64.b64encode(b"hello, world")], [1], "input 'image'[0]: not a PNG or JPEG image"),
        ([b""], [1], "input 'image'[0]: 0 bytes"),
        ([LARGE], [1], "input 'image'[0]: 300x200 pixels, expected at most 40000"),
        ([ODD[0]], [1, 1, 1], "shape [1, 1, 1], expected [N]"),
        ([ODD[0]] * 2, [1, 2], "shape [1, 2], expected [N, 1]"),
        ([ODD[0]] * 21, [21], "21 rows, expected at most 20"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_place(service, elements, shape, expected):
    """With the same sentence over HTTP and gRPC; the neighbours are told nothing of it."""
    answer = behind_json(service.http, "flowers", elements, shape)
    assert answer.status_code in (400, 413), answer.text
    assert expected in answer.json()["error"]
    with pytest.raises(grpc.RpcError) as refused:
        service.infer(message("flowers", elements, is_raw=True, shape=shape))
    assert refused.value.code().name in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
    assert expected in refused.value.details()


def test_pictures_of_one_request_have_one_size_where_it_is_free(service):
    """By their place, as in a form."""
    answer = in_json(service.http, "free", [EQUAL[0], ODD[0]], {})
    assert answer.status_code == 400
    assert "as input 'image'[0]: send pictures of different sizes in different requests" in answer.json()["error"]


def test_numbers_under_the_cover_of_a_file_are_counted_first(service):
    """A body that says BYTES has few values, however long they are."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [0] * 200_000}
    answer = service.http.post("/v2/models/flowers/infer", json={"inputs": [tensor]})
    assert answer.status_code in (400, 413)
    assert "more values or lists than 20 rows have" in answer.json()["error"]
    escaped = json.dumps({"inputs": [tensor | {"data": [text(ODD[0])]}]}).replace("BYTES", "\\u0042YTES")
    assert of_http(service.http.post("/v2/models/flowers/infer", content=escaped)).shape == (1, 4)


def test_a_long_file_goes_through_json(service):
    """Longer than what is parsed in one go of a list of numbers."""
    noise = np.random.default_rng(0).integers(0, 256, (195, 200, 3), np.uint8)
    file = pictures.encoded(Image.fromarray(noise))
    assert len(text(file)) > 100_000
    expected = picture_models.classify(decode(file, RECIPE)[None].repeat(12, 0), RECIPE)["probabilities"]
    budget_is_8 = in_json(service.http, "flowers", [file] * 12, {})
    assert budget_is_8.status_code == 413
    np.testing.assert_allclose(of_http(in_json(service.http, "flowers", [file] * 8, {})), expected[:8], atol=1e-6)
