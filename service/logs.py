"""What the service writes: one JSON line an event, or one plain line for a person at a terminal.

Formatters and a configuration for `logging`, which every module and uvicorn use as they are; whatever is passed as
`extra` becomes a field of the line. No event can break a line: control characters are escaped. No exception can flood
the log with its traceback either.
"""

import contextlib
import json
import logging
import logging.config
import logging.handlers
import math
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_TRACEBACK_SECONDS = 1.0  # between two tracebacks of the same exception
_LIBRARY_SECONDS = 1.0  # between two lines that a library writes in one place
_LOST_SECONDS = 60.0  # between two lines that say that lines are missing
_KNOWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was passed as `extra`; a library that makes records of its own begins its names with _."""
    return {key: value for key, value in vars(record).items() if key not in _KNOWN and not key.startswith("_")}


class _Formatter(logging.Formatter):
    """Tells of exceptions whole, but of those that come again and again only once a second."""

    def __init__(self) -> None:
        super().__init__()
        self._whole_at: dict[tuple[object, ...], float] = {}

    def exception(self, record: logging.LogRecord) -> tuple[str, str] | None:
        """Return "traceback" and the whole, or "error" and its last line; None for an event without exception.

        An exception is the same again if it is of one class, raised in one line and logged in one line.
        """
        if not record.exc_info or record.exc_info[1] is None:
            return None
        error = record.exc_info[1]
        frame = [*traceback.walk_tb(error.__traceback__)][-1:]
        # Extensions make a frame's code anew each time, so that it is known by its names.
        raised = [(place.f_code.co_filename, place.f_code.co_name, line) for place, line in frame]
        same = (record.pathname, record.lineno, type(error), *raised)
        if record.created - self._whole_at.get(same, -math.inf) < _TRACEBACK_SECONDS:
            return "error", "".join(traceback.format_exception_only(error)).strip()
        self._whole_at[same] = record.created
        return "traceback", self.formatException(record.exc_info)


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, event, then the fields; a traceback is a string among them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one event."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if exception := self.exception(record):
            line[exception[0]] = exception[1]
        return json.dumps(line, default=str)  # in ASCII: no separator, lone surrogate or escape sequence gets through


class HumanFormatter(_Formatter):
    """`12:00:01 info  ready  models=['lenet-bn/1']`, and a traceback below where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one event."""
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        fields = "".join(f"  {key}={value}" for key, value in _fields(record).items())
        line = _escape(f"{clock} {record.levelname.lower():<7} {record.getMessage()}{fields}")
        exception = self.exception(record)
        return f"{line}\n{exception[1]}" if exception else line


class WithoutChatter(logging.Filter):
    """Drops uvicorn's second line about a start that failed: the first one has the reason."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the event is worth a line."""
        return record.msg != "Application startup failed. Exiting."


class RationedLibraries(logging.Filter):
    """Lets each line of a library through once a second for each place that writes it: clients may cause them.

    Those that were left out before are counted in the next one of that place, as `count`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, int, int], tuple[float, int]] = {}  # when it wrote last, and how often since

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the event is worth a line."""
        if record.name.partition(".")[0] == "foldserve":
            return True
        place = record.pathname, record.lineno, record.levelno
        at, left_out = self._places.get(place, (-math.inf, 0))
        if 0 <= record.created - at < _LIBRARY_SECONDS:
            self._places[place] = at, left_out + 1
            return False
        self._places[place] = record.created, 0
        if left_out:
            record.count = left_out
        return True


class LogFile(logging.handlers.WatchedFileHandler):
    """A file that may be on a full disk: lines that cannot be written are left out, and standard error says so."""

    _said_at = -math.inf

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say, once a minute, that lines are lost; Python would write a traceback for each."""
        now = time.monotonic()
        if now - self._said_at >= _LOST_SECONDS:
            self._said_at = now
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"foldserve: lines are missing in the log {self.baseFilename}: {sys.exc_info()[1]}\n")

    def close(self) -> None:
        """Close the file, without the lines that do not fit."""
        with contextlib.suppress(OSError):
            super().close()


def configure_logging(level: str, file: Path | None = None) -> None:
    """Write what is logged from now on as `log_config` says."""
    logging.config.dictConfig(log_config(level, file=file))


def log_config(level: str, human: bool | None = None, file: Path | None = None) -> dict[str, Any]:
    """Return the configuration for `logging.config.dictConfig`, and so for uvicorn's `log_config`.

    Args:
        level: least severe level that is written: debug, info, warning or error.
        human: plain lines rather than JSON; None: if standard error is a terminal, and the log goes there.
        file: that lines are appended to in place of standard error; another one is made once it was moved away.
    """
    where = {"class": "logging.StreamHandler"}
    if file is not None:
        where, human = {"class": f"{__name__}.{LogFile.__name__}", "filename": str(file)}, bool(human)
    formatter = HumanFormatter if (sys.stderr.isatty() if human is None else human) else JsonFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter.__name__}"}},
        "filters": {
            "without-chatter": {"()": f"{__name__}.{WithoutChatter.__name__}"},
            "rationed": {"()": f"{__name__}.{RationedLibraries.__name__}"},
        },
        "handlers": {"log": {**where, "formatter": "line", "filters": ["without-chatter", "rationed"]}},
        "root": {"handlers": ["log"], "level": "WARNING"},
        "loggers": {
            "foldserve": {"level": level.upper()},
            "foldserve.audit": {"level": "INFO"},  # whatever else is written
            "python_multipart": {"level": "CRITICAL"},  # its warnings are one a form that a client writes wrongly
            "uvicorn.error": {"level": "DEBUG" if level == "debug" else "WARNING"},
        },
    }


def _escape(text: str) -> str:
    """Return text in which no character moves the cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
