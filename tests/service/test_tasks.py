"""`/predict` for every task and every form of rows, of models whose answers are known: they are the rows themselves."""

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from foldserve.format.task import OUTPUTS, Task
from foldserve.service.app import create_app
from foldserve.service.schemas import PredictResponse, RowsRequest
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve

ROWS = np.random.default_rng(8).random((5, 4)).astype(np.float32)
COLUMNS = ("sepal length", "sepal width", "petal length", "petal width")
OCTETS = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A model for each task, one whose columns have names, one of two inputs, one of a value a row."""
    root = tmp_path_factory.mktemp("models")
    for name, outputs in OUTPUTS.items():
        artifacts.publish_rows(root, name, outputs or ("first", "second"), Task(name, 0.6).as_metadata())
    named = Task("classify", columns=COLUMNS).as_metadata() | {"foldserve.labels": json.dumps(["a", "b", "c", "d"])}
    artifacts.publish_rows(root, "named", OUTPUTS["classify"], named)
    artifacts.publish_rows(root, "single", OUTPUTS["regress"], Task("regress").as_metadata(), width=1)
    artifacts.publish_two_inputs(root)
    artifacts.publish_echo(root)
    settings = Settings(models_dir=root, provider="cpu", buckets=(1, 8), max_rows=100_000, max_queue_rows=100_000)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        yield http


def predictions(service: httpx.Client, query: str, **body: object) -> list:
    answer = service.post(f"/predict?model={query}", **body)
    assert answer.status_code == 200, answer.text
    PredictResponse.model_validate(answer.json(), strict=True)
    return answer.json()["predictions"]


def floats(values: object) -> np.ndarray:
    return np.asarray(values, np.float32)


def rows(*instances: object) -> dict:
    RowsRequest.model_validate({"instances": list(instances)})
    return {"json": {"instances": list(instances)}}


# Forms of answers -----------------------------------------------------------------------------------------------------


def test_classes_come_with_all_probabilities_or_the_best_few(service):
    """As for pictures; a model without labels gives null in their place."""
    for row, found in zip(ROWS, predictions(service, "classify", **rows(*ROWS.tolist())), strict=True):
        assert (found["class_id"], found["label"]) == (row.argmax(), None)
        assert np.array_equal(floats(found["probabilities"]), row)
    for row, found in zip(ROWS, predictions(service, "named&top=2", **rows(*ROWS.tolist())), strict=True):
        best = np.argsort(-row)[:2]
        assert [entry["class_id"] for entry in found["top"]] == best.tolist()
        assert [entry["label"] for entry in found["top"]] == ["abcd"[class_id] for class_id in best]
        assert np.array_equal(floats([entry["probability"] for entry in found["top"]]), row[best])
        assert "probabilities" not in found
    (found,) = predictions(service, "named&top=99", **rows(ROWS[0].tolist()))
    assert len(found["top"]) == 4


def test_labels_are_those_whose_probability_reaches_the_threshold(service):
    """Best first; none at all is an answer too."""
    for row, found in zip(ROWS, predictions(service, "multilabel", **rows(*ROWS.tolist())), strict=True):
        expected = [class_id for class_id in np.argsort(-row) if row[class_id] >= 0.6]
        assert [entry["class_id"] for entry in found["labels"]] == expected
    assert predictions(service, "multilabel", **rows([0, 0.1, 0.2, 0.3])) == [{"labels": []}]
    (found,) = predictions(service, "multilabel&top=1", **rows([0.9, 0.8, 0.7, 1]))
    assert [entry["class_id"] for entry in found["labels"]] == [3]


@pytest.mark.parametrize(("model", "key"), [("regress", "values"), ("embed", "embedding")])
def test_values_and_embeddings_are_the_row_bit_for_bit(service, model, key):
    """Every float32 can be read back exactly."""
    found = [prediction[key] for prediction in predictions(service, model, **rows(*ROWS.tolist()))]
    assert np.array_equal(floats(found), ROWS)


def test_other_outputs_are_given_as_they_are(service):
    """Under their names, a row of each; integers stay integers."""
    for row, found in zip(ROWS, predictions(service, "tensors", **rows(*ROWS.tolist())), strict=True):
        assert list(found["outputs"]) == ["first", "second"]
        assert np.array_equal(floats(found["outputs"]["second"]), row)
    assert predictions(service, "echo", **rows([1, 2, 3, 2**40])) == [{"outputs": {"echo": [1, 2, 3, 2**40]}}]


# Forms of rows --------------------------------------------------------------------------------------------------------


def test_rows_are_lists_columns_inputs_or_bytes(service):
    """The same rows in each form get the same answers."""
    expected = predictions(service, "named", **rows(*ROWS.tolist()))
    by_column = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS.tolist()]
    assert predictions(service, "named", **rows(*by_column)) == expected
    by_input = [{"row": row} for row in ROWS.tolist()]
    assert predictions(service, "named", **rows(*by_input)) == expected
    assert predictions(service, "named", content=ROWS.tobytes(), headers=OCTETS) == expected


def test_a_row_of_one_value_may_be_the_value(service):
    """Bare, in a list, or by name."""
    for instances in ([0.5, 0.25], [[0.5], [0.25]], [{"row": 0.5}, {"row": [0.25]}]):
        assert predictions(service, "single", **rows(*instances)) == [{"values": [0.5]}, {"values": [0.25]}]


def test_several_inputs_come_by_name(service):
    """An object for each row, in any order of its keys."""
    left, right = ROWS[:2, :3], ROWS[2:4, 1:]
    instances = [{"right": b, "left": a} for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    found = [prediction["outputs"]["sum"] for prediction in predictions(service, "sum", **rows(*instances))]
    assert np.array_equal(floats(found), left + right)


@pytest.mark.parametrize("form", ["lists", "columns"])
def test_long_bodies_are_read_whole(service, form):
    """A megabyte and more, read in slices: as many rows, in their order."""
    many = np.random.default_rng(1).random((20_000, 4)).astype(np.float32)
    instances = many.tolist() if form == "lists" else [dict(zip(COLUMNS, row, strict=True)) for row in many.tolist()]
    body = json.dumps({"instances": instances}).encode()
    assert len(body) > 1_000_000
    found = predictions(service, "named&top=1", content=body, headers=JSON)
    assert [entry["class_id"] for entry in found] == many.argmax(axis=1).tolist()


# Bad input ------------------------------------------------------------------------------------------------------------

GOOD = ROWS[0].tolist()
LONG = [GOOD] * 20_000


@pytest.mark.parametrize(
    ("query", "document", "expected"),
    [
        ("regress", {"instances": []}, "an empty list"),
        ("regress", {"rows": [GOOD]}, "unknown key 'rows'"),
        ("regress", {"instances": [GOOD, [1, 2, 3]]}, "instances[1]: 3 values, expected 4"),
        ("regress", {"instances": [GOOD, [1, "2", 3, 4]]}, 'instances[1][1]: "2", expected a number'),
        ("regress", {"instances": [GOOD, [1, True, 3, 4]]}, "instances[1][1]: true, expected a number"),
        ("regress", {"instances": [GOOD, [1, None, 3, 4]]}, "instances[1][1]: null, expected a number"),
        ("regress", {"instances": [GOOD, 7]}, "instances[1]: 7, expected a list of 4 values"),
        ("regress", {"instances": [1, 2, 3, 4]}, "instances[0]: 1, expected a list of 4 values"),
        ("regress", {"instances": [GOOD, {"row": GOOD}]}, "instances[1]: an object"),
        ("regress", {"instances": [{"row": GOOD}, GOOD]}, "instances[1]: a list, expected an object of 'row'"),
        ("regress", {"instances": [{"rwo": GOOD}]}, "instances[0]: no 'row'"),
        ("named", {"instances": [dict.fromkeys(COLUMNS[:3], 1)]}, "instances[0]: no 'petal width'"),
        ("named", {"instances": [dict.fromkeys((*COLUMNS, "x"), 1)]}, "instances[0]: unknown 'x'"),
        ("named", {"instances": [dict.fromkeys(COLUMNS, "x")]}, 'instances[0][0]: "x", expected a number'),
        ("sum", {"instances": [[1, 2, 3]]}, "instances[0]: a list, expected an object of 'left', 'right'"),
        ("sum", {"instances": [{"left": [1, 2, 3], "right": [1, 2]}]}, "instances[0].right: 2 values, expected 3"),
        ("echo", {"instances": [[1, 2, 3, 4.5]]}, "instances[0][3]: 4.5, expected an integer"),
        ("regress", {"instances": [*LONG, [1, 2, 3, "x"]]}, 'instances[20000][3]: "x", expected a number'),
        ("named&top=0", {"instances": [GOOD]}, "query: top is '0', expected a whole number from 1 up"),
        ("named&top=2.5", {"instances": [GOOD]}, "query: top is '2.5'"),
        ("regress&top=2", {"instances": [GOOD]}, "gives no classes; its task is regress"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_place(service, query, document, expected):
    """The first instance that will not do, and what was expected of it."""
    answer = service.post(f"/predict?model={query}", content=json.dumps(document).encode(), headers=JSON)
    assert answer.status_code == 400, answer.text
    assert expected in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "content", "content_type", "status"),
    [
        ("regress", b"\0" * 15, "application/octet-stream", 400),
        ("regress", b"", "application/octet-stream", 400),
        ("sum", b"\0" * 12, "application/octet-stream", 415),
        ("regress", b"\x89PNG", "image/png", 415),
        ("regress", b"{}", "text/plain", 415),
        ("regress", b"[" * 500_000, "application/json", 400),
        ("regress", b'{"instances": [[' + b"1," * 400_000 + b"1]]}", "application/json", 400),
        ("named", b'{"instances": [{"row": "' + b"x" * 400_000 + b'"}]}', "application/json", 400),
    ],
)
def test_other_bodies_are_refused_too(service, query, content, content_type, status):
    """A clear sentence each, and the service goes on."""
    headers = {"Content-Type": content_type}
    answer = service.post(f"/predict?model={query}", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert predictions(service, "regress", **rows(GOOD))


def test_the_server_names_each_model_s_task(service):
    """In `/v2`, where the form of an answer can be looked up before a request."""
    served = {model["name"]: model["task"] for model in service.get("/v2").json()["models"]}
    assert served == {**{name: name for name in OUTPUTS}, "named": "classify", "single": "regress",
                      "sum": "tensors", "echo": "tensors"}  # fmt: skip
