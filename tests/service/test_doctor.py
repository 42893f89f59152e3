"""`foldserve doctor` on machines that are well and on those that are not."""

import json
import socket
from pathlib import Path

import pytest

from foldserve.command import main
from foldserve.service import doctor
from foldserve.service.keys import new_key
from tests.support import artifacts

QUICK = ("--provider", "cpu", "--port", "0", "--quick")


def examined(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, dict]]:
    """The exit code, and the findings by their names."""
    code = main(["doctor", *flags, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is (code == 0)
    return code, {finding["name"]: finding for finding in answer["findings"]}


def test_a_machine_that_is_well(fashion_and_echo, capsys):
    """Every model gives its golden answers, everything is named, and the exit code is 0."""
    code, found = examined(capsys, "--models-dir", str(fashion_and_echo), "--provider", "cpu", "--port", "0")
    assert code == 0
    assert {finding["state"] for finding in found.values()} <= {"ok", "warning"}
    assert found["model fashion/1"]["says"] == "gives its golden answers on cpu"
    assert len(found["model echo/1"]["details"]["sha256"]) == 64
    assert found["models"]["says"].startswith("2 of 2 versions")
    assert found["cores"]["details"]["available"] >= 1
    assert found["devices"]["details"]["execution_devices"]
    assert found["devices"]["details"]["why_not_cuda"]
    assert found["memory"]["details"]["bytes"] > 1 << 20


def test_the_lines_are_for_people(fashion, capsys):
    """One for each finding, its state first."""
    assert doctor.main(["--models-dir", str(fashion), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert lines[-1].split(maxsplit=2)[1:] == ["models", f"1 of 1 versions in {fashion} can be served"]


def flip(models: Path) -> list[str]:
    artifacts.rewrite_manifest(models / "fashion/1", golden=None)
    return []


def damaged_keys(models: Path) -> list[str]:
    (models.parent / "keys").write_text("no key's line\n")
    return ["--keys-file", str(models.parent / "keys")]


def bad_declaration(models: Path) -> list[str]:
    (models.parent / "deployment.toml").write_text("pin = 1")
    return ["--deployment-file", str(models.parent / "deployment.toml")]


BROKEN = {
    "no models folder": (lambda models: ["--models-dir", str(models / "none")], "models", "cannot be read"),
    "no model that can be served": (flip, "models", "0 of 1 versions"),
    "keys": (damaged_keys, "keys", "expected"),
    "declared": (bad_declaration, "declared", "pin is not known"),
    "cuda": (lambda _: ["--provider", "cuda"], "devices", "--provider cuda is asked for"),
}


@pytest.mark.parametrize(("wrong", "name", "said"), BROKEN.values(), ids=BROKEN)
def test_what_keeps_it_from_serving_is_named(fashion, capsys, wrong, name, said):
    """The exit code is 1, and that thing alone has failed."""
    code, found = examined(capsys, "--models-dir", str(fashion), *QUICK, *wrong(fashion))
    assert code == 1
    assert [finding["name"] for finding in found.values() if finding["state"] == "failed"] == [name]
    assert said in found[name]["says"]


def test_a_port_in_use_is_named(fashion, capsys):
    """With the flag that helps."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, found = examined(capsys, "--models-dir", str(fashion), *QUICK, "--port", port)
    assert code == 1
    assert found["ports"]["says"].endswith("choose another --port")


def test_one_model_of_two_is_a_warning(fashion_and_echo, capsys):
    """The service would serve the other one, and so says its verdict."""
    (fashion_and_echo / "echo/1/model.onnx").write_bytes(b"x")
    code, found = examined(capsys, "--models-dir", str(fashion_and_echo), *QUICK)
    assert code == 0
    assert found["model echo/1"]["state"] == "warning"
    assert "its manifest says" in found["model echo/1"]["says"]
    assert (found["models"]["state"], found["models"]["says"].split()[0]) == ("warning", "1")


def test_keys_are_counted_and_not_shown(fashion, capsys):
    """How many there are, and how many may change models."""
    lines = [new_key(name, [scope])[1] for name, scope in (("a", "infer"), ("b", "admin"))]
    (fashion.parent / "keys").write_text("\n".join(lines))
    _, found = examined(capsys, "--models-dir", str(fashion), *QUICK, "--keys-file", str(fashion.parent / "keys"))
    assert found["keys"]["details"] == {"keys": 2, "admin": 1}


def test_a_look_that_fails_is_a_finding(fashion, capsys, monkeypatch):
    """The others go on."""
    monkeypatch.setattr(doctor, "available_cores", lambda: 1 // 0)
    code, found = examined(capsys, "--models-dir", str(fashion), *QUICK)
    assert code == 1
    assert found["cores"]["says"].startswith("could not be examined: ZeroDivisionError")
    assert found["models"]["state"] == "ok"


def test_a_setting_that_is_none_is_a_mistake(capsys):
    """As of `serve`, under the name of this command."""
    with pytest.raises(SystemExit) as end:
        doctor.main(["--max-rows", "x"])
    assert end.value.code == 2
    assert "foldserve doctor: error: --max-rows" in capsys.readouterr().err
