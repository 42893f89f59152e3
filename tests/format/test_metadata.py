"""The graph's metadata: what the export states, the service reads."""

import json

import pytest

from foldserve.format import metadata
from foldserve.format.errors import FormatError
from foldserve.format.image import ImageRecipe, first_format_recipe

IMAGE = first_format_recipe(28, 20, 1)
FIRST = {
    "input": "image", "height": 28, "width": 20, "channels": 1, "range": [0, 255], "polarity": "light-on-dark",
    "background": 0, "grey": "ITU-R 601",
}  # fmt: skip


def described(image: ImageRecipe | None = IMAGE) -> dict[str, str]:
    return metadata.describe(
        labels=("a", "ü"), image=image, recipe={"b": 1, "a": 2}, seed=7, data={}, statistics="running", revision="r"
    )


def test_labels_and_image_survive() -> None:
    """Every field comes back as it was."""
    assert metadata.read_labels(described()) == ("a", "ü")
    assert metadata.read_image(described()) == IMAGE


def test_the_text_is_the_one_that_digests_need() -> None:
    """Keys are sorted, nothing is padded, and letters stay letters."""
    assert described()["foldserve.recipe"] == '{"a":2,"b":1}'
    assert described()["foldserve.labels"] == '["a","ü"]'
    assert described()["foldserve.image"] == json.dumps(FIRST, sort_keys=True, separators=(",", ":"))


def test_a_model_may_state_neither() -> None:
    """Somebody else's graph has no labels, and not every model takes images."""
    assert metadata.read_labels({}) is None
    assert metadata.read_image(described(image=None)) is None


@pytest.mark.parametrize("text", ["[", "{}", "[]", "[1]", '"ab"'])
def test_labels_that_are_no_names_are_refused(text: str) -> None:
    """One label for each class, as text."""
    with pytest.raises(FormatError, match=r"foldserve\.labels"):
        metadata.read_labels({"foldserve.labels": text})


@pytest.mark.parametrize("change", [{"height": None}, {"range": [0]}, {"range": None}, {"more": 1}])
def test_an_image_with_a_field_too_few_or_too_many_is_refused(change: dict[str, object]) -> None:
    """A description that is half understood would prepare pictures half right."""
    stated = {key: value for key, value in (FIRST | change).items() if value is not None}
    with pytest.raises(FormatError, match=r"foldserve\.image cannot be read"):
        metadata.read_image({"foldserve.image": json.dumps(stated)})
