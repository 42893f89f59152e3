"""Signals from outside, to one process and to two workers: what reloads, what drains, and what does nothing."""

import json
import logging.config
import os
import signal
import subprocess
import sys
from collections import Counter

import httpx
import pytest

from foldserve.service.keys import new_key
from foldserve.service.logs import log_config
from tests.support import artifacts
from tests.support.processes import OCTETS, children, command, environment, started

PIXELS = artifacts.images(1).tobytes()
HARMLESS = ("SIGUSR1", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGPIPE", "SIGWINCH", "SIGCONT")


@pytest.mark.parametrize("workers", [1, 2])
def test_signals_reload_or_do_nothing_and_never_kill(tmp_path, workers):
    """Keys, versions and the log file are read again at SIGHUP; the processes stay the same ones; SIGQUIT drains."""
    models, keys = tmp_path / "models", tmp_path / "keys"
    artifacts.publish_classifier(models, version=1, seed=1)
    (old, old_line), (new, new_line) = (new_key(name, ["infer"]) for name in ("old", "new"))
    keys.write_text(old_line)
    flags = ("--models-dir", str(models), "--workers", str(workers), "--poll-seconds", "0", "--keys-file", str(keys))
    with started(*flags, ready_lines=workers) as (process, address):
        before = children(process.pid)

        def answered(key: str) -> httpx.Response:
            return httpx.post(f"{address}/predict", content=PIXELS, headers={**OCTETS, "X-API-Key": key}, timeout=60)

        for name in HARMLESS:
            for pid in (process.pid, *(before if workers > 1 else ())):
                os.kill(pid, getattr(signal, name))
        assert answered(old).headers["x-model-version"] == "1"
        artifacts.publish_classifier(models, version=2, seed=2)
        keys.write_text(new_line)
        process.send_signal(signal.SIGHUP)
        left = Counter({"latest moved": workers, "key-removed": 1})  # in whichever order
        for event in map(json.loads, process.stderr):
            left -= Counter([event.get("action") or event["event"]])
            if not left:
                break
        assert answered(new).headers["x-model-version"] == "2"
        assert children(process.pid) == before
        assert process.poll() is None
        process.send_signal(signal.SIGQUIT)
        assert process.wait(60) == 0


def test_a_worker_that_is_sent_away_as_soon_as_it_starts_goes(tmp_path):
    """It is a copy of its supervisor, and took the signal for one of that; which then waited for it for ever."""
    artifacts.publish_classifier(tmp_path / "models", version=1, seed=1)
    with started("--models-dir", str(tmp_path / "models"), "--workers", "2", ready_lines=2) as (process, _):
        for _ in range(5):
            process.send_signal(signal.SIGTTIN)
            process.send_signal(signal.SIGTTOU)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0


BEFORE_IMPORTS = """
import signal, sys
from foldserve import command
sys.modules["foldserve.service.floors"] = None
try:
    command.main(["serve"])
except ImportError:
    print(signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGUSR2))
"""


def test_signals_end_no_service_that_still_imports():
    """The imports take most of a start."""
    done = subprocess.run([sys.executable, "-c", BEFORE_IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"] or done.stdout.split() == ["Handlers.SIG_IGN"] * 2


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_that_still_starts_ends_at_once_with_0(fashion, workers):
    """SIGTERM before anything serves, even before the server takes signals, is an orderly end and no crash."""
    argv = command("--models-dir", str(fashion), "--workers", workers)
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert json.loads(process.stderr.readline())["event"] == "starting"
        process.send_signal(signal.SIGTERM)
        process.stderr.read()  # to its end: no worker is left that holds it
        assert process.wait(60) == 0


def test_a_log_file_that_was_moved_away_is_made_anew(tmp_path):
    """As rotation does it; both files hold whole lines."""
    file = tmp_path / "log"
    logging.config.dictConfig(log_config("info", file=file))
    try:
        logging.getLogger("foldserve.audit").info("first")
        file.rename(tmp_path / "log.1")
        logging.getLogger("foldserve.audit").info("second")
    finally:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}})
        for name in ("foldserve", "foldserve.audit", "uvicorn.error"):
            logging.getLogger(name).setLevel(logging.NOTSET)
    assert [json.loads((tmp_path / name).read_text())["event"] for name in ("log.1", "log")] == ["first", "second"]
