"""Every module, name and file that a docstring or a document puts between backticks exists."""

import ast
import builtins
import importlib.util
import keyword
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HALVES = ("service", "training", "foldserve")
SOURCES = sorted(path for folder in HALVES for path in (ROOT / folder).rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = (*HALVES, "tests", "benchmarks", "examples")
ENDINGS = "py|md|json|toml|proto|txt|ya?ml|csv|sh|ubyte|safetensors|pbtxt|onnx"
OTHERS = {"perf_analyzer": "Triton's load generator", "extra": "an argument of every logging call"}
MADE_AT_RUN_TIME = ("models", "runs", "data", "dist", "build")  # folders whose content a checkout need not hold

_PATH = re.compile(rf"(?:[\w.-]+/)+(?:[\w.-]+\.(?:{ENDINGS}))?|[\w-]+\.(?:py|md)")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def docstrings(source: str) -> list[tuple[str, bool]]:
    """Return the docstrings of a module, and for each whether it is the module's own."""
    tree = ast.parse(source)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    holders = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    texts = [(ast.get_docstring(node), isinstance(node, ast.Module)) for node in holders]
    return [(text, own) for text, own in texts if text]


def spans(text: str) -> list[str]:
    """Return what stands between single backticks, without fenced blocks."""
    unfenced = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", unfenced)


@cache
def tokens(path: Path) -> frozenset[str]:
    """Return the identifiers of a module's code, and the words of its strings that are no docstrings."""
    tree = ast.parse(path.read_text())
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""  # a docstring
        for value in (getattr(node, field, None) for field in node._fields):
            if isinstance(value, str):
                words.update(re.findall(r"\w+", value))
    return frozenset(words)


@cache
def modules() -> frozenset[str]:
    """Return the name of every module and folder of the project, and what its packages may import."""
    own = {part for path in SOURCES for part in (path.stem, path.parent.name)}
    return frozenset(own | set(sys.stdlib_module_names) | set(PACKAGES))


@cache
def all_strings() -> frozenset[str]:
    """Return the strings of the whole project's code, such as the keys of the metadata."""
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    return frozenset(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))


@cache
def public_names() -> frozenset[str]:
    """Return the functions and classes that the project's modules define at their top."""
    nodes = [node for path in SOURCES for node in ast.parse(path.read_text()).body]
    return frozenset(n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))


@cache
def all_tokens() -> frozenset[str]:
    """Return the identifiers of the whole project."""
    return frozenset().union(*(tokens(path) for path in SOURCES))


def missing_path(span: str, at: Path) -> bool:
    """True for a span that is a path of this project and leads nowhere, seen from the root, a half or the file."""
    if not _PATH.fullmatch(span) or span.split("/")[0] in MADE_AT_RUN_TIME:
        return False
    starts = [ROOT, *(ROOT / half for half in HALVES), *at.parents[: len(at.relative_to(ROOT).parts)]]
    is_ours = span.split("/")[0] in {*PACKAGES, "docs"} or span.endswith((".py", ".md"))
    return is_ours and not any((start / span).exists() for start in starts)


def missing_module(span: str) -> bool:
    """True for a dotted name that starts at a package of this project and leads to no module or name of one."""
    parts = span.split(".")
    if not _NAME.fullmatch(span) or len(parts) < 2 or parts[0] not in PACKAGES or span in all_strings():
        return False
    for end in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:end])
        file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if base.is_dir() or file.is_file():
            return end < len(parts) and not (file.is_file() and parts[end] in tokens(file))
    return True


def missing_name(span: str, at: Path, is_module_docstring: bool) -> bool:
    """True for an identifier that neither the file nor, in a docstring of a function or class, the project knows.

    A module's docstring tells its place among others: what it names has to be a module, a folder, a function or class,
    or a name that its own code uses. Classes of other libraries are not looked up.
    """
    if not _NAME.fullmatch(span) or span[0].isupper() or span in OTHERS:
        return False
    first, last = span.split(".")[0], span.split(".")[-1]
    if hasattr(builtins, first) or keyword.iskeyword(first) or first in modules() or installed(first):
        return False
    known = tokens(at) | public_names() if is_module_docstring else all_tokens()
    return not {first, last} <= known


@cache
def installed(name: str) -> bool:
    """True for a package that can be imported here."""
    return importlib.util.find_spec(name) is not None


def missing_in(text: str, at: Path, is_module_docstring: bool) -> Iterable[str]:
    """Yield the spans of a docstring that name something that does not exist."""
    for span in spans(text):
        if missing_path(span, at) or missing_module(span) or missing_name(span, at, is_module_docstring):
            yield span


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_name_what_exists(path: Path) -> None:
    """A reader who follows a name in a docstring arrives somewhere."""
    texts = docstrings(path.read_text())
    assert not [span for text, own in texts for span in missing_in(text, path, own)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_what_exists(path: Path) -> None:
    """A reader who follows a path or a module in a document arrives somewhere."""
    assert not [span for span in spans(path.read_text()) if missing_path(span, path) or missing_module(span)]


def test_what_does_not_exist_is_noticed() -> None:
    """The checks above are no empty promise: a module, a file and a name that do not exist are each caught."""
    at = ROOT / "training" / "fold" / "core.py"
    told = "After `onnx_paths`, in `training/fold/gone.py`, `foldserve.training.gone` and `docs/gone.md`; `Affine`."
    expected = ["onnx_paths", "training/fold/gone.py", "foldserve.training.gone", "docs/gone.md"]
    assert list(missing_in(told, at, is_module_docstring=True)) == expected
