"""Class names as people keep them, and folders of examples as they lie on a disk."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foldserve.format.image import ImageRecipe
from foldserve.format.image_options import Normalisation
from foldserve.training.errors import ConfigError
from foldserve.training.publish.examples import Examples, PictureInput, class_folders, picture_examples
from foldserve.training.publish.rows import read_rows
from foldserve.training.publish.texts import read_texts
from foldserve.training.publish.wanted import checked_labels, read_labels_file
from tests.support.vision import library

NAMES = ("tench", "玫 瑰", "c, d")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "tench\n玫 瑰\nc, d\n\n\n"),
        ("a.txt", "\ufefftench\r\n玫 瑰\r\nc, d\r\n"),
        ("a.json", '["tench", "玫 瑰", "c, d"]'),
        ("a.JSON", '{"2": "c, d", "0": "tench", "1": "玫 瑰"}'),
        ("a.json", '{"tench": 0, "c, d": 2, "玫 瑰": 1}'),
        ("a.json", '{"0": ["n01", "tench"], "1": ["n02", "玫 瑰"], "2": ["n03", "c, d"]}'),
        ("config.json", '{"model_type": "vit", "id2label": {"0": "tench", "1": "玫 瑰", "2": "c, d"}, "label2id": {}}'),
        ("a.json", '{"class_to_idx": {"tench": 0, "玫 瑰": 1, "c, d": 2}}'),
        ("a.csv", 'tench\n玫 瑰\n"c, d"\n'),
        ("a.csv", '0,tench\n2,"c, d"\n1,玫 瑰\n'),
        ("a.csv", 'id,name\n0,tench\n1,玫 瑰\n2,"c, d"\n'),
    ],
)
def test_class_names_are_read_in_the_forms_that_people_have(tmp_path: Path, name: str, text: str) -> None:
    """Lines, arrays, names by id, ids by name, a configuration of Hugging Face, CSV with and without headings."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels_file(tmp_path / name) == NAMES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,name,x\n0,a,1\n1,b,2\n", "expected lines of a name, or of a class id and a name"),
        ("a.csv", b"1,a\n2,b\n", "ids 0, 1, 2 and on"),
        ("a.csv", b"0,a\n0,b\n", "ids 0, 1, 2 and on"),
        ("a.json", b'{"a": 0, "b": 0, "c": 1}', "3 names for 2 class ids"),
        ("a.json", b'{"a": 0, "b": 2}', "none for class 1"),
        ("a.json", b"[" * 100_000, "is not JSON: maximum recursion depth"),
        ("a.txt", "a\u2028x\nb\n".encode(), "class 0 is 'a\\\\u2028x'"),
        (
            "a.txt",
            "a\nb\n".encode("utf-16"),
            r"a.txt is no UTF-8 text: byte 0xff at 0, in line 1, .*-f UTF-16 -t UTF-8",
        ),
        ("a.txt", "a\nb\n".encode("utf-32"), "byte 0xff at 0, in line 1, as in UTF-32"),
        ("a.txt", "a\nb\n".encode("utf-16-le"), "byte 0x00 at 1, in line 1, as in UTF-16"),
        ("a.txt", "rose\r\nh\xf6he\r\n\r\n".encode("cp1252"), "byte 0xf6 at 7, in line 2, .*-f WINDOWS-1252"),
        ("a.csv", "0,rose\n1,h\xf6he\n".encode("cp1252"), "byte 0xf6 at 10, in line 2"),
        ("a.json", '["h\xf6he"]'.encode("cp1252"), "byte 0xf6 at 3, in line 1"),
        ("a.txt", b"a\na\nb\n", "'a' stands there twice"),
        ("a.txt", b"\n\n", "no class name"),
    ],
)
def test_what_are_no_class_names_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """One sentence; a line separator within a name would give the classes after it other numbers when it is read."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_labels_file(tmp_path / name)


def test_what_people_write_beside_a_network_has_one_sentence_for_another_encoding(tmp_path: Path) -> None:
    """Rows, the model card, and a folder whose name was no text where it came from: as for the class names."""
    card, rows, folder = tmp_path / "card.md", tmp_path / "rows.csv", os.fsdecode(b"h\xf6he")
    card.write_bytes("H\xf6he".encode("cp1252"))
    rows.write_bytes("h\xf6he,label\n1,a\n".encode("cp1252"))
    with pytest.raises(ConfigError, match=r"--card .*card.md is no UTF-8 text: byte 0xf6 at 1, in line 1"):
        read_texts(card, None)
    with pytest.raises(ConfigError, match=r"examples: .*rows.csv is no UTF-8 text: byte 0xf6 at 1, in line 1"):
        read_rows(rows)
    with pytest.raises(ConfigError, match="class 0 is"):
        checked_labels([folder])


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 256, (9, 9, 3), np.uint8)).save(path, kind)


def examples(root: Path) -> Examples:
    recipe = ImageRecipe(height=8, width=8, rule="exact", resize=(8, 8))
    return picture_examples(root, PictureInput(recipe=recipe, normalisation=Normalisation(), name="x"), None)


def test_folders_of_classes_are_those_of_torchvision(tmp_path: Path) -> None:
    """A class without pictures keeps its number, folders below a class belong to it, endings may be in capitals."""
    for name in ("b rose/1.PNG", "b rose/more/2.Jpg", "玫瑰/x.jpeg"):
        picture(tmp_path / name)
    (tmp_path / "a empty").mkdir()
    folder = library("torchvision.datasets").ImageFolder(tmp_path, allow_empty=True)
    assert class_folders(tmp_path) == folder.classes
    assert examples(tmp_path).truth.tolist() == folder.targets  # type: ignore[union-attr]


def test_what_a_system_leaves_in_a_folder_is_no_example(tmp_path: Path) -> None:
    """Files of macOS beside each picture, and the folder of a notebook, which would move the number of each class."""
    for name in ("a/1.png", "b/1.png", ".ipynb_checkpoints/1-checkpoint.png"):
        picture(tmp_path / name)
    (tmp_path / "a" / "._1.png").write_bytes(b"\0\5\26\7")
    assert class_folders(tmp_path) == ["a", "b"]
    assert examples(tmp_path).truth.tolist() == [0, 1]  # type: ignore[union-attr]
    assert examples(tmp_path / "a").rows == 1


def test_pictures_beside_folders_of_them_are_refused(tmp_path: Path) -> None:
    """One stray picture would otherwise hide every class, and the accuracy with it."""
    for name in ("a/1.png", "b/1.png", "overview.png"):
        picture(tmp_path / name)
    with pytest.raises(ConfigError, match=r"holds pictures \(overview.png\) beside folders of them \(a\)"):
        examples(tmp_path)
