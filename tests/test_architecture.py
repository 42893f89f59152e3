"""The house as docs/architecture.md draws it: one direction, two halves, and no file that the page does not name."""

import ast
import graphlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HALVES = {
    "foldserve.format": "foldserve/format",
    "foldserve.pictures": "foldserve/pictures",
    "foldserve.training": "training",
    "foldserve.service": "service",
    "foldserve.client": "foldserve/client",
}


def modules(package: str, folder: Path | None = None) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    folder = folder or ROOT / HALVES[package]
    for path in folder.rglob("*.py"):
        parts = (package, *path.relative_to(folder).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Dotted names that a module imports anywhere, also inside functions and for the type checker alone."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return found


def graph_of(package: str, folder: Path | None = None) -> dict[str, set[str]]:
    """Which modules of a package import which others of it; a package's own module counts where nothing nearer does."""
    known = modules(package, folder)
    edges = {}
    for name, path in known.items():
        wanted = {target for target in imports(name, path) if target in known and target != name}
        edges[name] = {target for target in wanted if not any(other.startswith(f"{target}.") for other in wanted)}
    return edges


@pytest.mark.parametrize("package", HALVES)
def test_no_module_imports_itself_by_a_way_round(package):
    """A circle would mean that two files are one thought."""
    list(graphlib.TopologicalSorter(graph_of(package)).static_order())


def test_a_circle_through_relative_imports_is_seen(tmp_path):
    """The check above would be blind if it did not resolve `from . import`."""
    (tmp_path / "__init__.py").touch()
    (tmp_path / "engine.py").write_text("from . import queue\n")
    (tmp_path / "queue.py").write_text("def run():\n    from .engine import Engine\n")
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(graph_of("planted", tmp_path)).static_order())


@pytest.mark.parametrize("package", ["foldserve.service", "foldserve.training.fold"])
def test_rooms_stand_in_one_order(package):
    """What holds for files holds for the folders of a half: each is built on others, never on one built on it."""
    depth = package.count(".") + 2
    rooms: dict[str, set[str]] = {}
    for name, targets in graph_of(".".join(package.split(".")[:2])).items():
        room = ".".join(name.split(".")[:depth])
        inside = {".".join(target.split(".")[:depth]) for target in targets if target.startswith(f"{package}.")}
        if name.startswith(f"{package}."):
            rooms.setdefault(room, set()).update(inside - {room})
    list(graphlib.TopologicalSorter(rooms).static_order())


def test_benchmarks_are_rooms_of_their_own():
    """No circle, no second way to find a module, and nothing from a test module: what both need is in tests/support."""
    list(graphlib.TopologicalSorter(graph_of("benchmarks", ROOT / "benchmarks")).static_order())
    for name, path in modules("benchmarks", ROOT / "benchmarks").items():
        assert "sys.path" not in path.read_text(), name
        of_tests = {target for target in imports(name, path) if target.startswith("tests.")}
        assert all(target.startswith("tests.support") for target in of_tests), name


def test_the_halves_do_not_know_each_other():
    """They meet in the version folder and in its format: whoever serves needs neither training code nor torch."""
    for half, others in (
        ("foldserve.service", ("foldserve.training", "foldserve.client", "training", "torch", "onnx")),
        ("foldserve.client", ("foldserve.training", "foldserve.service", "torch", "onnx", "onnxruntime")),
        ("foldserve.training", ("foldserve.service", "foldserve.client", "service")),
    ):
        for name, path in modules(half).items():
            for target in imports(name, path):
                assert not any(f"{target}.".startswith(f"{other}.") for other in others), (name, target)


def test_the_format_imports_nothing_of_ours():
    """What both halves agree on depends on neither, and needs numpy alone."""
    ours = modules("foldserve.format")
    for name, path in ours.items():
        for target in imports(name, path):
            known = target in ours or any(target.startswith(f"{module}.") for module in ours)
            assert known or target.partition(".")[0] in {"numpy", *sys.stdlib_module_names}, (name, target)


def test_pictures_need_pillow_and_the_format_alone():
    """Training, service and client prepare pictures by one package, which belongs to none of them."""
    allowed = {"numpy", "PIL", *sys.stdlib_module_names}
    for name, path in modules("foldserve.pictures").items():
        for target in imports(name, path):
            is_ours = f"{target}.".startswith(("foldserve.pictures.", "foldserve.format."))
            assert is_ours or target.partition(".")[0] in allowed, (name, target)


@pytest.mark.parametrize("half", ["training", "service", "foldserve"])
def test_the_page_names_every_file(half):
    """Who looks for a file finds it in docs/architecture.md, with its room."""
    page = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`([\w/]+)`", page))
    for path in (ROOT / half).rglob("*.py"):
        inside = path.relative_to(ROOT / half).with_suffix("")
        if inside.name in ("__init__", "__main__"):
            continue
        rooms = {f"{parent}/" for parent in map(str, inside.parents) if parent != "."}
        whole_room_is_named = any(f"`{room}`" in page for room in rooms)
        assert inside.name in named or str(inside) in named or whole_room_is_named, inside


def test_the_drawings_name_files_that_exist():
    """The first line of a box is where that step happens: files of one half, the later ones in the first one's room."""
    blocks = re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for half, block in zip((ROOT / "service", ROOT / "training"), blocks, strict=True):
        boxes = re.findall(r'\["([^"]*?)<br>', block)
        assert len(boxes) > 8
        for names in (box.split(", ") for box in boxes):
            room = (half / names[0]).parent
            for name in names:
                assert any((folder / f"{name}.py").is_file() for folder in (half, room)), name
