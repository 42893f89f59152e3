"""`/docs` and the description behind it: every example works as it stands, and nothing is loaded from elsewhere."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from foldserve.service.app import create_app
from foldserve.service.bodies.predict_body import media_types
from foldserve.service.errors import RequestError, ServerError
from foldserve.service.settings import Settings
from foldserve.service.v2.repository_schemas import IndexRow, ModelState
from tests.support import artifacts
from tests.support.error_classes import tree
from tests.support.live import serve
from tests.support.routes import routes_of

STATIC = Path("service/static")
SENT = {error.status for base in (RequestError, ServerError) for error in tree(base)}
METHODS = {"get", "post", "put", "delete", "patch"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    app = create_app(Settings(models_dir=root, provider="cpu", buckets=(1, 4)))
    with serve(app) as url, httpx.Client(base_url=url) as http:
        yield http


@pytest.fixture(scope="module")
def document(service: httpx.Client) -> dict:
    return service.get("/openapi.json").json()


def operations(document: dict) -> Iterator[tuple[str, str, dict]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                yield path, method, operation


def test_the_page_asks_no_other_host(service):
    """Whatever the page and its script load is a path of this service, and its policy forbids the browser the rest."""
    page = service.get("/docs")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    assert not [target for target in loaded if "//" in target]
    for target in loaded:
        assert service.get(f"/{target}").status_code == 200
    assert "<script>" not in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy
    script = service.get("/static/docs.js").text
    assert "validatorUrl: null" in script
    assert '"http' not in script


def test_the_shipped_scripts_are_the_published_ones():
    """The digests in VERSION.md are those of the files that are served."""
    listed = dict(re.findall(r"\| (\S+) \| ([0-9a-f]{64}) \|", (STATIC / "swagger-ui/VERSION.md").read_text()))
    assert set(listed) == {"swagger-ui-bundle.js", "swagger-ui.css"}
    for name, digest in listed.items():
        assert hashlib.sha256((STATIC / "swagger-ui" / name).read_bytes()).hexdigest() == digest


def test_every_json_example_works(service, document):
    """Each example of a request body is sent as it stands and answered with predictions."""
    examples = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert set(examples) == {"file", "rows", "flat"}
    answers = {}
    for name, example in examples.items():
        answer = service.post("/predict", json=example["value"])
        assert answer.status_code == 200, answer.text
        answers[name] = answer.json()["predictions"]
    assert answers["file"] == answers["rows"] == answers["flat"][:1] == answers["flat"][1:]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command_of_the_description_works(service, document, tmp_path):
    """Each curl line is run as it stands, against files of the names that it uses."""
    text = document["paths"]["/predict"]["post"]["description"]
    commands = [
        line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.strip().splitlines()
    ]
    assert len(commands) == 3
    pixels = artifacts.images(2)
    Image.fromarray(pixels[0, 0]).save(tmp_path / "image.png")
    Image.fromarray(np.zeros((300, 200, 3), np.uint8)).save(tmp_path / "photo.jpg")
    pixels.tofile(tmp_path / "pixels.bin")
    counts = []
    for command in commands:
        local = command.replace("localhost:8000", f"127.0.0.1:{service.base_url.port}")
        done = subprocess.run(local, shell=True, cwd=tmp_path, capture_output=True, check=True)
        counts.append(len(json.loads(done.stdout)["predictions"]))
    assert counts == [1, 2, 2]


def test_every_route_is_described(document, tmp_path):
    """Whatever the application answers, and with it the lane, is in the description; pages for people are not."""
    listed = {(method.upper(), path) for path, method, _ in operations(document)}
    pages = {("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/v2/")}
    assert routes_of(create_app(Settings(models_dir=tmp_path))) == listed | pages
    assert listed >= {("POST", "/predict"), ("POST", "/v2/models/{model}/infer")}


def test_every_operation_describes_its_answers_and_its_errors(document):
    """Summary, description and success everywhere; every error is an `ErrorResponse`; 422 is none of them."""
    assert len({operation["operationId"] for _, _, operation in operations(document)}) == len(
        list(operations(document))
    )
    for path, method, operation in operations(document):
        assert operation["summary"], (path, method)
        assert operation["description"], (path, method)
        assert {"200", "400", "500"} <= set(operation["responses"])
        for status, response in operation["responses"].items():
            assert {"X-Request-ID", "Server-Timing"} <= set(response["headers"])
            if status != "200":
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}


def test_every_error_class_is_described_where_it_can_happen(document):
    """Each status that the service has is that of some operation; 405 is of the methods that a path has not."""
    described = {int(status) for _, _, operation in operations(document) for status in operation["responses"]}
    assert described == SENT - {405} | {200}


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("post", "/predict", {401, 403, 404, 413, 415, 429, 503, 504}),
        ("post", "/v2/models/{model}/versions/{version}/infer", {401, 403, 404, 413, 415, 429, 503, 504}),
        ("get", "/v2/models/{model}", {401, 403, 404, 429, 503}),
        ("post", "/v2/repository/models/{model}/promote", {401, 403, 404, 413, 415, 429, 501, 503}),
        ("delete", "/v2/repository/models/{model}/shadow", {401, 403, 404, 429, 503}),
        ("get", "/v2/health/ready", {408, 431, 503}),
    ],
)
def test_a_route_describes_each_status_that_it_can_answer(document, method, path, statuses):
    """What the access, the connection, the body and the models refuse."""
    assert {str(status) for status in statuses} <= set(document["paths"][path][method]["responses"])


def test_a_route_asks_for_the_keys_that_its_scope_needs(document):
    """Changes to models need a key whatever the settings say, health needs none, the rest may."""
    keys = [{"bearer": []}, {"api_key": []}]
    assert set(document["components"]["securitySchemes"]) == {"bearer", "api_key"}
    assert document["paths"]["/v2/repository/models/{model}/load"]["post"]["security"] == keys
    assert document["paths"]["/v2/health/live"]["get"]["security"] == []
    assert document["paths"]["/predict"]["post"]["security"] == [{}, *keys]


def test_the_bodies_of_the_repository_are_those_that_are_read(service, document):
    """Each control call describes a body, and what index and the model's state hold fits their schemas."""
    for path, method, operation in operations(document):
        assert ("requestBody" in operation) == (method in ("post", "put")), path
    rows = service.post("/v2/repository/index").json()
    assert rows
    for row in rows:
        IndexRow.model_validate(row, strict=True)
    ModelState.model_validate(service.get("/v2/repository/models/fashion").json(), strict=True)


def test_every_reference_leads_somewhere(document):
    """No `$ref` of the document points at something that it does not hold."""
    references = set(re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        node = document
        for part in reference.split("/"):
            node = node[part]


def test_the_body_lists_every_form(document):
    """The media types in the description are those that the service reads."""
    body = document["paths"]["/predict"]["post"]["requestBody"]
    assert set(body["content"]) == set(media_types())


def test_with_several_models_the_name_is_required(fashion_and_echo):
    """The description follows what is served: `?model=` is required exactly where leaving it out is an error."""
    app = create_app(Settings(models_dir=fashion_and_echo, provider="cpu", buckets=(1, 4)))
    artifacts.publish_classifier(fashion_and_echo, "second")
    with serve(app) as url:
        document = httpx.get(f"{url}/openapi.json").json()
    parameter = document["paths"]["/predict"]["post"]["parameters"][0]
    assert (parameter["name"], parameter["required"], parameter["example"]) == ("model", True, "fashion")
