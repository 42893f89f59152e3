"""Settings from flags and the environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from foldserve.service.settings import Settings


def test_the_environment_sets_every_setting(monkeypatch):
    """Each field is read from FOLDSERVE_ and its name in capitals."""
    monkeypatch.setenv("FOLDSERVE_MODELS_DIR", "elsewhere")
    monkeypatch.setenv("FOLDSERVE_BUCKETS", "1,8, 32")
    monkeypatch.setenv("FOLDSERVE_TF32", "true")
    settings = Settings()
    assert settings.models_dir == Path("elsewhere")
    assert settings.buckets == (1, 8, 32)
    assert settings.tf32 is True


def test_a_flag_wins_over_the_environment(monkeypatch):
    """What is typed now counts more than what was exported once."""
    monkeypatch.setenv("FOLDSERVE_PORT", "9000")
    assert Settings.from_command_line([]).port == 9000
    assert Settings.from_command_line(["--port", "9001"]).port == 9001


FILE = """
models-dir = "elsewhere"
max_rows = 5
key_rate = 2.5
promote_new = false
buckets = [1, 4]
pin = ["a=1", "b=2"]
log_level = "debug"
"""


def test_a_file_states_settings_and_flags_and_variables_win(monkeypatch, tmp_path):
    """Texts, numbers, truths and lists, by the names of flags or variables; the file itself may be a variable too."""
    file = tmp_path / "foldserve.toml"
    file.write_text(FILE)
    monkeypatch.setenv("FOLDSERVE_MAX_ROWS", "6")
    monkeypatch.setenv("FOLDSERVE_LOG_LEVEL", "warning")
    settings = Settings.from_command_line(["--config", str(file), "--log-level", "error"])
    assert (settings.models_dir, settings.key_rate, settings.promote_new) == (Path("elsewhere"), 2.5, False)
    assert (settings.buckets, settings.pin) == ((1, 4), ("a=1", "b=2"))
    assert (settings.max_rows, settings.log_level) == (6, "error")
    monkeypatch.setenv("FOLDSERVE_CONFIG", str(file))
    assert Settings.from_command_line([]).key_rate == 2.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_row = 5", "sets 'max_row', which is no setting"),
        ("[service]\nport = 1", "sets 'service', which is no setting"),
        ("port = {a = 1}", "port is a dict, expected a text, a number or a list"),
        ("port = 1979-05-27", "port is a date"),
        ("port = [[1]]", "port is a list"),
        ("workers = true", "--workers (FOLDSERVE_WORKERS)"),
        ("workers = 0", "--workers (FOLDSERVE_WORKERS)"),
        ("tf32 = 3", "--tf32 (FOLDSERVE_TF32)"),
        ("max-rows = 5\nmax_rows = 6", "sets max_rows twice, as 'max_rows' too"),
        ("config = 'other.toml'", "sets 'config', which is no setting"),
        ("port = ", "cannot be read: Invalid value"),
        (b"\xff", "cannot be read"),
        (None, "cannot be read: [Errno 2] No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(text, said, tmp_path, capsys):
    """It names the file and what in it; unknown names are refused there as in the environment."""
    file = tmp_path / "foldserve.toml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as end:
        Settings.from_command_line(["--config", str(file)])
    assert end.value.code == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_every_setting_is_a_flag_with_an_explanation(capsys):
    """--help lists all of them with their defaults."""
    with pytest.raises(SystemExit) as end:
        Settings.from_command_line(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description
        assert " ".join(field.description.split()[:4]) in shown


def test_an_unknown_variable_ends_the_start_and_is_named(monkeypatch, capsys):
    """A misspelt limit would be a limit that is not there."""
    monkeypatch.setenv("FOLDSERVE_MAX_ROW", "10")
    with pytest.raises(SystemExit) as end:
        Settings.from_command_line([])
    assert end.value.code == 2
    assert "FOLDSERVE_MAX_ROW" in capsys.readouterr().err


@pytest.mark.parametrize("service", ["FOLDSERVE", "FOLDSERVE_GRPC", "FOLDSERVE_HOST", "FOLDSERVE_A_B2"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_what_a_cluster_sets_for_a_service_is_no_setting(monkeypatch, service, protocol):
    """A Service called foldserve, or foldserve-anything, must not stop a container that is told of it."""
    for name, value in links(service, protocol).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.port, settings.grpc_port, settings.host) == (8000, None, "127.0.0.1")
    monkeypatch.setenv("FOLDSERVE_WORKRES", "2")
    with pytest.raises(ValidationError, match="FOLDSERVE_WORKRES, which is no setting"):
        Settings()


def links(service, protocol):
    """The variables of one Service with two ports, as the kubelet names them."""
    address, port = f"{protocol}://10.96.0.7:8000", f"{service}_PORT_8000_{protocol.upper()}"
    return {
        f"{service}_SERVICE_HOST": "10.96.0.7",
        f"{service}_SERVICE_PORT": "8000",
        f"{service}_SERVICE_PORT_HTTP": "8000",
        f"{service}_SERVICE_PORT_GRPC_WEB": "8001",
        f"{service}_PORT": address,
        port: address,
        f"{port}_PROTO": protocol,
        f"{port}_PORT": "8000",
        f"{port}_ADDR": "10.96.0.7",
    }


@pytest.mark.parametrize(
    "variable", ["FOLDSERVE_SERVICE", "FOLDSERVE_PORT_X_TCP", "FOLDSERVE_GRPC_PORTS", "FOLDSERVE_GRCP_PORT"]
)
def test_a_name_that_only_resembles_those_of_a_service_is_refused(monkeypatch, variable):
    """No more is let through than a cluster sets."""
    monkeypatch.setenv(variable, "8001")
    with pytest.raises(ValidationError, match=variable):
        Settings()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "x"], "--port (FOLDSERVE_PORT)"),
        (["--port", "65536"], "--port (FOLDSERVE_PORT)"),
        (["--workers", "0"], "--workers (FOLDSERVE_WORKERS)"),
        (["--provider", "tpu"], "--provider (FOLDSERVE_PROVIDER)"),
        (["--model-name", "../x"], "--model-name (FOLDSERVE_MODEL_NAME)"),
        (["--buckets", ""], "expected rising batch sizes"),
        (["--buckets", "4,2"], "expected rising batch sizes"),
        (["--buckets", "0,1"], "expected rising batch sizes"),
        (["--buckets", "1,1"], "expected rising batch sizes"),
        (["--max-queue-rows", "5"], "max_queue_rows is 5 and max_rows 10000"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_sentence(flags, said, capsys):
    """The message names the flag, the variable, what came and what was expected."""
    with pytest.raises(SystemExit) as end:
        Settings.from_command_line(flags)
    assert end.value.code == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last_line


def test_settings_are_frozen_and_know_no_other_names():
    """Every part sees the same values, and a wrong keyword is an error."""
    with pytest.raises(ValidationError):
        Settings().port = 1
    with pytest.raises(ValidationError):
        Settings(prot=1)
