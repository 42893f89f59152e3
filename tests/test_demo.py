"""`foldserve demo` as a newcomer types it: three lines in seconds, without torch, whatever else runs on the machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from foldserve import exit_codes
from tests.support.processes import environment
from tests.test_command import typed

pytestmark = pytest.mark.slow

FAST = {"FOLDSERVE_PROVIDER": "cpu", "FOLDSERVE_BUCKETS": "1", "FOLDSERVE_SPECIALISE": "false"}
WORDS = [sys.executable, "-m", "foldserve", "demo"]


@contextmanager
def demo(*words: str, **variables: str) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """A demo that has printed its three lines; interrupted at the end, and then nothing of it is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = ["--port", str(probe.getsockname()[1])] if "--port" not in words else []
    hidden = {name: value for name, value in environment().items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    settings = {"env": hidden | FAST | variables, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*WORDS, *port, *words], **settings)
    too_long = threading.Timer(60, process.kill)
    too_long.start()
    try:
        yield process, [process.stdout.readline().strip() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert (rest, process.returncode) == ("", exit_codes.DONE)
    finally:
        too_long.cancel()
        process.kill()
        process.wait()


def browser_in(folder: Path) -> tuple[dict[str, str], Path]:
    """Variables that name a browser, and the file in which that one leaves the address it was told to open."""
    browser, opened = folder / "browser", folder / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n')
    browser.chmod(0o755)
    return {"BROWSER": str(browser)}, opened


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_three_lines_that_work_as_they_stand(tmp_path: Path):
    """The page is there, the pasted line says Trouser, Ctrl-C ends it all; without a display nothing is opened."""
    variables, opened = browser_in(tmp_path)
    with demo(**variables) as (_, lines):
        url = lines[0].split()[1]
        assert "<title>foldserve</title>" in httpx.get(url).text
        asked = subprocess.run(lines[1], shell=True, capture_output=True, text=True, check=True)
        assert json.loads(asked.stdout)["predictions"][0]["label"] == "Trouser"
        assert lines[2] == "Ctrl-C stops it."
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert not opened.exists()


def test_a_taken_port_is_passed_over():
    """The next free one is taken and printed; its log is JSON from start to end where no person reads it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo("--port", str(port)) as (process, lines):
            chosen = int(lines[0].split()[1].rsplit(":", 1)[1].strip("/"))
            assert port < chosen < port + 100
            assert f":{chosen}/predict" in lines[1]
            process.send_signal(signal.SIGTERM)
            log = process.stderr.read()
    assert {"ready", "stopped"} <= {json.loads(line)["event"] for line in log.splitlines()}


def test_the_page_is_opened_where_a_display_is(tmp_path: Path):
    """By the browser that the environment names."""
    variables, opened = browser_in(tmp_path)
    with demo(DISPLAY=":0", **variables) as (_, lines):
        while not opened.exists():  # the demo's own timer ends this
            os.sched_yield()
    assert opened.read_text().strip() == lines[0].split()[1]


def test_on_a_terminal_it_is_quiet(tmp_path: Path):
    """Three lines and no more, on standard error too; --no-open opens nothing even where a display is."""
    variables, opened = browser_in(tmp_path)
    main, side = os.openpty()
    settings = {"env": environment() | FAST | variables | {"DISPLAY": ":0"}, "stdout": side, "stderr": side}
    process = subprocess.Popen([*WORDS, "--no-open", "--port", "0"], **settings)
    os.close(side)
    shown = b""
    while not shown.endswith(b"stops it.\r\n"):
        shown += os.read(main, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == exit_codes.DONE
    os.close(main)
    assert len(shown.decode().split("\r\n")) == 4  # the last one is empty
    assert shown.startswith(b"Open http://127.0.0.1:")
    assert not opened.exists()


def test_it_needs_no_torch_and_says_what_it_needs():
    """Asked once, it prints the answer; what it does not know it refuses, and --train names its extra."""
    done = typed("demo", "--once", "--port", "0", absent=("torch", "httpx"))
    assert (done.returncode, json.loads(done.stdout)["predictions"][0]["label"]) == (exit_codes.DONE, "Trouser")
    done = typed("demo", "--epochs", "2")
    assert done.returncode == exit_codes.USAGE
    assert "unknown argument --epochs; arguments for a training need --train" in done.stderr
