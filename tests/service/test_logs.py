"""Log lines: one event, one line, whatever a client sent."""

import json
import logging
import logging.config
import subprocess
import sys
import time

import pytest

from foldserve.service.logs import HumanFormatter, JsonFormatter, LogFile, RationedLibraries, log_config

HOSTILE = 'a\nb\r\x1b[31m"\u2028\ud800'


def record(message: str, **fields: object) -> logging.LogRecord:
    return logging.getLogger("foldserve.test").makeRecord(
        "foldserve.test", logging.WARNING, "file", 1, message, (), None, extra=fields
    )


@pytest.mark.parametrize("formatter", [JsonFormatter(), HumanFormatter()])
def test_an_event_is_one_line_whatever_it_holds(formatter):
    """Newlines, escape sequences and separators in a client's text cannot start a line or move a cursor."""
    line = formatter.format(record(HOSTILE, path=HOSTILE))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_a_json_line_holds_the_event_and_its_fields():
    """Every field given with an event is a member of the object, beside time, level and logger."""
    line = json.loads(JsonFormatter().format(record("ready", models=["fashion/1"], seconds=0.2)))
    assert line.pop("time").endswith("+00:00")
    expected = {
        "level": "warning",
        "logger": "foldserve.test",
        "event": "ready",
        "models": ["fashion/1"],
        "seconds": 0.2,
    }
    assert line == expected


def test_a_traceback_is_part_of_the_json_line():
    """An exception does not break the rule of one line an event."""
    try:
        raise ValueError("inner")
    except ValueError:
        event = record("failed")
        event.exc_info = sys.exc_info()
    line = JsonFormatter().format(event)
    assert len(line.splitlines()) == 1
    assert "ValueError: inner" in json.loads(line)["traceback"]


def failing(kind: type[Exception]) -> logging.LogRecord:
    """The event of an exception that is raised here."""
    try:
        raise kind("inner")
    except kind:
        event = record("failed")
        event.exc_info = sys.exc_info()
    return event


@pytest.mark.parametrize("formatter", [JsonFormatter(), HumanFormatter()])
def test_what_fails_again_and_again_is_told_whole_once_a_second(formatter):
    """Ten thousand failures in three seconds are as many short lines and four tracebacks; another kind has its own."""
    started = time.time()
    events = [failing(ValueError) for _ in range(10_000)]
    for number, event in enumerate(events):
        event.created = started + number * 3.0 / 9_999
    lines = [formatter.format(event) for event in events]
    assert sum("Traceback" in line for line in lines) == 4
    assert all("ValueError: inner" in line for line in lines)
    assert sorted(map(len, lines))[-5] < 250
    assert "Traceback" in formatter.format(failing(KeyError))


def test_frames_of_extensions_are_known_by_their_names():
    """The library of gRPC makes the code of its frames anew for each exception."""
    formatter = JsonFormatter()
    lines = []
    for _ in range(3):
        try:
            exec(compile("raise ValueError", "extension.pyx", "exec"))
        except ValueError:
            event = record("failed")
            event.exc_info = sys.exc_info()
        lines.append(formatter.format(event))
    assert ["traceback" in json.loads(line) for line in lines] == [True, False, False]


def test_lines_of_libraries_are_rationed_by_their_place():
    """A client may cause them; those of ours and of another place are written, and the next one counts the others."""
    ration, kept = RationedLibraries(), []
    for number in range(1_000):
        for name, line in (("grpc", 1), ("grpc", 2), ("foldserve.service", 1)):
            event = logging.LogRecord(name, logging.ERROR, "calls.pyx", line, "invalid", (), None)
            event.created = 1_000 + number * 2.5 / 999
            if ration.filter(event):
                kept.append((name, line, getattr(event, "count", 0)))
    assert kept.count(("foldserve.service", 1, 0)) == 1_000
    for line in (1, 2):
        counts = [left_out for name, other, left_out in kept if (name, other) == ("grpc", line)]
        assert (counts[0], len(counts), sum(counts) > 700) == (0, 3, True)


def test_the_configuration_chooses_the_form_and_the_level():
    """JSON where standard error is no terminal; the level is that of our own loggers."""
    config = log_config("debug", human=False)
    assert config["formatters"]["line"]["()"].endswith("JsonFormatter")
    assert config["loggers"]["foldserve"]["level"] == "DEBUG"
    assert log_config("info", human=True)["formatters"]["line"]["()"].endswith("HumanFormatter")
    logging.config.DictConfigurator(config)  # type: ignore[attr-defined]


def test_a_full_disk_loses_lines_and_says_so_once(capsys):
    """One line on standard error in place of a traceback for each line that is lost; nothing is raised."""
    handler = LogFile("/dev/full")
    for number in range(3):
        handler.handle(logging.makeLogRecord({"msg": f"event {number}"}))
    handler.close()
    assert capsys.readouterr().err == (
        "foldserve: lines are missing in the log /dev/full: [Errno 28] No space left on device\n"
    )


def test_forms_that_clients_write_wrongly_leave_no_line(tmp_path):
    """The parser warns of each; a client's mistakes are its own, and would fill the log."""
    script = (
        "import sys\n"
        "from foldserve.service.bodies.limits import Limits\n"
        "from foldserve.service.bodies.predict_body import read_images\n"
        "from foldserve.service.errors import InvalidInput\n"
        "from foldserve.service.logs import configure_logging\n"
        "configure_logging('debug')\n"
        "form = b'--x\\r\\nContent-Disposition[: form-data; name=file\\r\\n\\r\\nabc\\r\\n--x--'\n"
        "try:\n"
        "    read_images(form, 'multipart/form-data; boundary=x', None, Limits(1, 100))\n"
        "except InvalidInput:\n"
        "    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")
