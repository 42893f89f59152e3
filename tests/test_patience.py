"""What a command shows while it works: one line on a terminal, nothing in a pipe."""

import os
import pty
import subprocess
import sys
import termios
import time

from foldserve.patience import shown, tell


def seen_on_a_terminal(code: str, until: bytes) -> tuple[bytes, bytes]:
    """Run code whose standard error is a terminal of 40 columns, let it go on once `until` is seen; both outputs."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 40))
    command = [sys.executable, "-c", f"from foldserve.patience import shown, tell\n{code}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=side)
    os.close(side)
    seen = b""
    while until not in seen:
        seen += os.read(main, 4096)
    out, _ = process.communicate(b"\n", timeout=60)
    while True:
        try:
            seen += os.read(main, 4096)
        except OSError:  # the other side is closed
            break
    os.close(main)
    assert process.returncode == 0
    return seen, out


def test_a_pipe_sees_nothing(capfd) -> None:
    """However long it takes; what is told is printed as ever."""
    with shown("reading", after=0.0), shown("inside", after=0.0):
        time.sleep(0.6)
        tell("a line")
    assert capfd.readouterr() == ("a line\n", "")


def test_the_innermost_task_is_shown_and_taken_away() -> None:
    """Cut to the width of the terminal; the line is empty at the end."""
    code = f"with shown('outer', after=0.0), shown({'inner ' * 20!r}, after=0.0):\n    input()"
    seen, out = seen_on_a_terminal(code, b"inner")
    assert b"outer" not in seen
    assert all(len(line) < 40 for line in seen.split(b"\r\x1b[K"))
    assert seen.endswith(b"\r\x1b[K")
    assert out == b""


def test_what_is_told_stands_on_a_line_of_its_own() -> None:
    """The line that says what goes on is taken away first."""
    seen, out = seen_on_a_terminal("with shown('work', after=0.0):\n    input()\n    tell('done 1')", b"work: 00:0")
    assert out == b"done 1\n"
    assert seen.count(b"\r\x1b[K") >= 3  # drawn, taken away before the line, taken away at the end


def test_what_is_quick_shows_nothing() -> None:
    """Not even on a terminal."""
    seen, _ = seen_on_a_terminal("import sys\nwith shown('work', after=60.0):\n    sys.stderr.write('here')", b"here")
    assert seen == b"here"
