"""What `from foldserve import …` gives: loaded when it is used, typed, and a sentence where an extra is missing."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import foldserve
from foldserve import lazy

ROOT = Path(__file__).parents[1]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_importing_foldserve_loads_nothing() -> None:
    """Neither torch nor onnxruntime nor NumPy."""
    done = python(
        "import sys; import foldserve; print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'onnx', 'onnxruntime', 'numpy', 'httpx', 'pydantic', 'fastapi'}))"
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", foldserve.__all__)
def test_every_public_name_is_what_its_home_holds(name: str) -> None:
    """The lazy table and `__all__` name the same things, and each can be loaded."""
    assert getattr(foldserve, name) is not None
    assert name in dir(foldserve)


def test_three_lists_of_names_agree() -> None:
    """What type checkers see, what `__all__` promises, and what is loaded."""
    tree = ast.parse((ROOT / "foldserve/__init__.py").read_text())
    imported = {
        (f"foldserve.{node.module}", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module not in ("typing", "lazy")
        for alias in node.names
    }
    assert imported == {(module, name) for module, _, names in lazy.HOMES for name in names}
    assert sorted(foldserve.__all__) == sorted({name for _, name in imported} | {"__version__"})


def test_a_misspelt_name_is_an_attribute_error() -> None:
    """As in any module."""
    with pytest.raises(AttributeError, match="module 'foldserve' has no attribute 'flod'"):
        foldserve.flod
    with pytest.raises(ImportError, match="cannot import name 'flod'"):
        from foldserve import flod  # noqa: F401


@pytest.mark.parametrize(
    ("name", "absent", "extras"),
    [
        ("fold", ("torch",), "training"),
        ("fold_onnx", ("onnx",), "training"),
        ("Client", ("httpx",), "client"),
    ],
)
def test_a_missing_extra_is_one_line(name: str, absent: tuple[str, ...], extras: str) -> None:
    """The line is what to type."""
    done = python(f"import sys; sys.modules.update(dict.fromkeys({absent!r})); from foldserve import {name}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: foldserve.{name}: {absent[0]} is not installed: pip install 'foldserve[{extras}]'"


def test_where_no_training_code_lies_the_line_is_the_same(tmp_path: Path) -> None:
    """The service's image holds a link to it that leads nowhere."""
    shutil.copytree(ROOT / "foldserve", tmp_path / "foldserve", symlinks=True)
    for name in ("fold", "FoldError"):
        done = subprocess.run(
            [sys.executable, "-c", f"from foldserve import {name}"], cwd=tmp_path, capture_output=True, text=True
        )
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(f"ImportError: foldserve.{name}: foldserve.training is not installed: pip install")


def test_no_module_bears_the_name_of_a_public_function() -> None:
    """`import foldserve.fold` would put a module where the function was."""
    modules = {path.stem for path in (ROOT / "foldserve").iterdir()}
    assert modules & set(foldserve.__all__) == set()
