"""Graphs that take text: letters are changed as where they were exported, on a machine without that locale too."""

from locale import LC_ALL, setlocale
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve import publish
from foldserve.service.app import create_app
from foldserve.service.engines.providers import cpu_session
from foldserve.service.errors import ArtifactInvalid
from foldserve.service.settings import Settings
from tests.support.live import serve

WORDS = ["straße", "жук", "été", "cat"]
TEXTS = np.array(["STRASSE", "ЖУК", "ÉTÉ", "Cat", "жук", "dog"], object)
COUNTS = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]])


def counts(locale: str | None) -> onnx.ModelProto:
    """Return a vectorizer as skl2onnx writes one: texts in small letters, and how often each word is there."""
    options = {} if locale is None else {"locale": locale}
    nodes = [
        helper.make_node("StringNormalizer", ["texts"], ["small"], case_change_action="LOWER", **options),
        helper.make_node("Reshape", ["small", "column"], ["words"]),
        helper.make_node(
            "TfIdfVectorizer", ["words"], ["counts"], mode="TF", min_gram_length=1, max_gram_length=1, max_skip_count=0,
            ngram_counts=[0], ngram_indexes=[0, 1, 2, 3], pool_strings=WORDS,
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "counts",
        [helper.make_tensor_value_info("texts", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.array([-1, 1], np.int64), "column")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("locale", [None, "en_US.UTF-8"])
def test_text_is_read_as_where_it_was_exported_without_its_locale(locale: str | None, tmp_path: Path) -> None:
    """Letters beyond ASCII too, which the locale C would leave as they are."""
    before = setlocale(LC_ALL)
    published = publish(counts(locale), name="words", examples=TEXTS, models_dir=tmp_path)
    assert setlocale(LC_ALL) == before  # which ONNX's reference changes for the whole process
    assert "1 text operators take the locale C.UTF-8" in str(published)
    with serve(create_app(Settings(models_dir=tmp_path, provider="cpu", buckets=(1, 8)))) as url:
        answer = httpx.post(f"{url}/predict?model=words", json={"instances": TEXTS.tolist()}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert [row["outputs"]["counts"] for row in answer.json()["predictions"]] == COUNTS.tolist()


def test_a_locale_that_is_not_there_is_named_with_one_that_is(tmp_path: Path) -> None:
    """A language of its own is left alone, and the sentence says what changes letters alike."""
    path = tmp_path / "model.onnx"
    onnx.save(counts("xx_XX.UTF-8"), path)
    with pytest.raises(ArtifactInvalid, match=r"xx_XX\.UTF-8.*set their attribute locale to C\.UTF-8"):
        cpu_session(path, 1)
