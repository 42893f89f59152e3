"""The command `foldserve`: one help text, exit codes that are tabled, and nothing loaded before it is needed."""

import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from foldserve import __version__, exit_codes
from foldserve.command import COMMANDS, main
from foldserve.extras import MODULES

ROOT = Path(__file__).parents[1]
TRAINING = ("train", "compare", "best", "circles", "learn", "inspect", "fold", "verify")
WITHOUT = "import sys; sys.modules.update(dict.fromkeys({absent!r})); from foldserve.command import main; "


def typed(*words: str, absent: tuple[str, ...] = (), program: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own in which the packages `absent` cannot be imported."""
    code = WITHOUT.format(absent=absent) + (program or f"sys.exit(main({list(words)!r}))")
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_one_help_text_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its line, and the exit codes with them."""
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^    ([a-z-]+)\b", printed, re.MULTILINE) == list(COMMANDS)


def test_help_is_quick_and_loads_nothing(tmp_path: Path) -> None:
    """Below 0.3 s of processor time, start of Python included, without any package but our own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "foldserve", "--help"], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "pydantic", "uvicorn")
    assert typed("--help", absent=heavy).stdout == done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The one that the distribution has, too."""
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"foldserve {__version__}\n")


@pytest.mark.parametrize("words", [[], ["fly"], ["--fly"]])
def test_a_word_that_is_no_command_is_a_mistake(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence names those there are."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == exit_codes.USAGE
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "", "fly", "serve --bogus", "serve --port x", "serve --buckets 3,2", "models promote", "models fly", "keys new",
        "predict", "fold", "train --epochs x", "publish", "learn --fly", "demo --fly", "publish f --fly",
        "models list --fly", "verify m more", "import", "keys revoke", "bench --fly", "completion --fly", "pull --fly",
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every command and its own commands: who says it, what is wrong and where the rest stands, and no usage."""
    try:
        code = main(words.split())
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (exit_codes.USAGE, "")
    commands = [word for word in words.split() if word in {*COMMANDS, "promote", "new", "list", "revoke"}]
    said = " ".join(["foldserve", *commands])
    assert re.fullmatch(rf"{said}: error: .+; `{said} --help` explains it\n", printed.err), printed.err


@pytest.mark.parametrize("entrance", ["service", "training", "foldserve"])
def test_every_entrance_is_the_same_command(entrance: str) -> None:
    """`python -m service` and `python -m training` go on working."""
    words = {"service": ["keys"], "training": ["fold"], "foldserve": ["keys"]}[entrance]
    done = subprocess.run(
        [sys.executable, "-m", entrance, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"usage: foldserve {words[0]} ")


def test_python_m_service_takes_flags_and_no_command() -> None:
    """As it always did: the first word is a flag of the service."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: foldserve serve ")


@pytest.mark.parametrize("command", TRAINING)
def test_a_missing_extra_is_one_line(command: str) -> None:
    """The line is what to type; whoever only serves has no torch."""
    done = typed(command, "--help", absent=("torch",))
    assert done.returncode == exit_codes.USAGE
    assert done.stderr == f"foldserve {command}: torch is not installed: pip install 'foldserve[training]'\n"


def test_all_missing_extras_are_named_at_once() -> None:
    """One installation, not one after another."""
    done = typed("fold", "x.onnx", absent=("torch", "onnxruntime"))
    assert done.stderr.endswith(": pip install 'foldserve[training,cpu]'\n")


def test_a_service_without_runtime_names_the_extra() -> None:
    """Before a port is taken."""
    done = typed("serve", absent=("onnxruntime",))
    assert done.returncode == exit_codes.USAGE
    assert done.stderr == "foldserve serve: onnxruntime is not installed: pip install 'foldserve[cpu]'\n"


def test_the_extras_are_those_of_the_project() -> None:
    """A package that an extra brings is a package whose absence names that extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, modules in MODULES.items():
        brought = {re.split(r"[<>=\[]", requirement)[0] for requirement in extras[extra]} - {"numpy"}
        assert set(modules) - {"foldserve.training"} == brought


def test_a_package_of_somebody_else_is_no_extra_of_ours() -> None:
    """An import error that is not ours to explain stays a traceback."""
    done = typed("keys", "--help", absent=("urllib.request",))
    assert "Traceback" in done.stderr


def test_the_page_tables_every_exit_code() -> None:
    """One table for all commands."""
    rows = re.findall(r"^\| (\d+) \| ", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
    codes = {value for name, value in vars(exit_codes).items() if name.isupper()}
    assert sorted(map(int, rows)) == sorted(codes)


def test_the_page_names_every_command() -> None:
    """Somebody who reads the page has seen what there is."""
    page = (ROOT / "docs/commands.md").read_text()
    assert [name for name in COMMANDS if f"`{name}`" not in page] == []


def test_verify_tells_the_two_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """The command proves a version folder, the function compares two networks; each names the other."""
    import foldserve

    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    assert "foldserve.verify is another thing" in " ".join(capsys.readouterr().out.split())
    for function in (foldserve.verify, foldserve.verify_onnx):
        assert "The command `foldserve verify DIR`" in (function.__doc__ or "")


def test_ctrl_c_has_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell reports it, whichever command ran."""
    from foldserve.service import models_cli

    def interrupted(words: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(models_cli, "main", interrupted)
    assert main(["models", "list"]) == exit_codes.INTERRUPTED


def test_the_demo_does_not_take_the_bundled_version_for_its_own(tmp_path: Path) -> None:
    """In the checkout version 1 is left alone; elsewhere the first version trained has that number."""
    from foldserve.trained_demo import newest_local_version

    newest = newest_local_version(ROOT / "models/lenet-bn")
    assert newest is None or newest.name != "1"
    for name in ("1", "2", "10", "03", "x"):
        (tmp_path / "lenet-bn" / name).mkdir(parents=True)
    assert newest_local_version(tmp_path / "lenet-bn") == tmp_path / "lenet-bn" / "10"


def test_serve_takes_demo_or_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Both at once is a mistake; alone it is the folder of the version that comes along."""
    from foldserve.service.artifacts.repository import Repository
    from foldserve.service.settings import Settings

    models = Settings.from_command_line(["--demo"]).models_dir
    assert (models / "lenet-bn/1").samefile(ROOT / "models/lenet-bn/1")
    assert Repository(models).models() == {"lenet-bn": [1]}
    with pytest.raises(SystemExit) as end:
        Settings.from_command_line(["--demo", "--models-dir", "x"])
    assert end.value.code == exit_codes.USAGE
    assert "leave --models-dir out" in capsys.readouterr().err
