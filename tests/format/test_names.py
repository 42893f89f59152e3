"""One rule for names: what training publishes is what the service sees."""

from pathlib import Path

import pytest

from foldserve.format.names import is_model_name, is_version
from foldserve.service.artifacts.repository import Repository
from foldserve.training.artifact import publish
from foldserve.training.errors import ArtifactError

MODEL = (Path(__file__).parents[2] / "models/lenet-bn/1/model.onnx").read_bytes()
NAMES = ("lenet-bn", "a", "9", "A.b_c-d", "x" * 64)
OTHERS = ("_lenet", "-a", ".a", "..", "x" * 65, "a b", "ä", "a\n", "a/b", "")


@pytest.mark.parametrize("name", NAMES + OTHERS)
def test_the_halves_agree_on_a_name(tmp_path: Path, name: str) -> None:
    """A name that can be published can be served, and one that cannot be served is refused before anything is made."""
    assert is_model_name(name) == (name in NAMES)
    if name in NAMES:
        publish(tmp_path, name, MODEL, {})
        assert Repository(tmp_path).models() == {name: [1]}
    else:
        with pytest.raises(ArtifactError, match="model name"):
            publish(tmp_path, name, MODEL, {})
        assert list(tmp_path.iterdir()) == []


def test_a_version_is_a_whole_number_as_people_write_it() -> None:
    """Nothing that reads as a number to one program and not to the next: no sign, zero, space or foreign digit."""
    assert all(map(is_version, ("1", "10", "9" * 18)))
    assert not any(map(is_version, ("", "0", "01", "+1", "-1", "1.0", "1 ", "1\n", "٣", "²", "9" * 19, "latest")))
