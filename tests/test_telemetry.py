"""No process of ours calls home: watched from outside, beside one that does.

onnxruntime's uploader takes the proxy that its environment names, as most libraries do, and so do we listen there:
whoever wants to reach anything has to come by. What does not is seen in the process's own list of sockets.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foldserve.command import TELEMETRY_OFF
from tests.support.processes import command

ROOT = Path(__file__).parents[1]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
CONTROL_SECONDS = 60.0  # until a process that does call home has been seen; 10 to 12 here
MORE_SECONDS = 3.0  # that the others are watched for beyond that


class Watched:
    """A process behind a proxy that only listens.

    Args:
        words: of its command line.
        environment: beside ours, in which telemetry is not switched off.
    """

    def __init__(self, words: list[str], **environment: str) -> None:
        self.calls: list[bytes] = []
        self.endpoints: set[str] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        proxy = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        inherited = {name: value for name, value in os.environ.items() if name not in (TELEMETRY_OFF, "no_proxy")}
        full = inherited | dict.fromkeys(PROXIES, proxy) | environment
        self.process = subprocess.Popen(words, cwd=ROOT, env=full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def look(self) -> None:
        """Take the calls that have arrived since the last look, and note where the process's sockets lead."""
        assert self.process.poll() is None
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(5)
                    self.calls.append(connection.recv(4096).partition(b"\r\n")[0])
        for pid in family(self.process.pid):
            self.endpoints |= remote_endpoints(pid)

    def end(self) -> None:
        """Kill the process and stop listening."""
        self.process.kill()
        self.process.wait(10)
        self._listener.close()


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def remote_endpoints(pid: int) -> set[str]:
    """The addresses that the sockets of a process lead to, as the kernel writes them."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, _, remote, _, _, _, _, _, _, inode, *_ = line.split()
            if inode in inodes and remote.strip("0") != ":":
                found.add(f"{table} {remote}")
    return found


@contextlib.contextmanager
def watched(*processes: tuple[list[str], dict[str, str]]) -> Iterator[list[Watched]]:
    """Watch some processes at the same time."""
    running = [Watched(words, **environment) for words, environment in processes]
    try:
        yield running
    finally:
        for process in running:
            process.end()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_service_opens_no_connection_of_its_own() -> None:
    """Neither one worker nor two, nor with gRPC, for longer than one whose user switched telemetry on needs to call."""
    serve = command("--models-dir", str(ROOT / "models"), "--canary-seconds", "1")
    quiet = [(serve, {}), ([*serve, "--workers", "2"], {}), ([*serve, "--grpc-port", "0"], {TELEMETRY_OFF: ""})]
    with watched((serve, {TELEMETRY_OFF: "0"}), *quiet) as (talkative, *ours):
        until = time.monotonic() + CONTROL_SECONDS
        while time.monotonic() < until:
            for process in (talkative, *ours):
                process.look()
            if talkative.calls:
                until = min(until, time.monotonic() + MORE_SECONDS)
            time.sleep(0.02)  # between two looks; what is looked for tells nobody
        assert [process.calls for process in ours] == [[], [], []]
        assert [process.endpoints for process in ours] == [set(), set(), set()]
        if not talkative.calls:
            pytest.skip("this onnxruntime calls nobody, even where it may: nothing to compare with")
        assert talkative.calls[0].startswith(b"CONNECT ")


def test_the_watch_sees_where_sockets_lead() -> None:
    """TCP and UDP of this very process; a socket that only listens leads nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        before, port = remote_endpoints(os.getpid()), listener.getsockname()[1]
        datagram.connect(("127.0.0.1", 53))
        with socket.create_connection(("127.0.0.1", port)):
            found = remote_endpoints(os.getpid()) - before
    assert found == {"udp 0100007F:0035", f"tcp 0100007F:{port:04X}"}


def program(code: str, **environment: str) -> str:
    """What a fresh interpreter prints, in an environment that says nothing of telemetry."""
    inherited = {name: value for name, value in os.environ.items() if name != TELEMETRY_OFF}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("given", "wanted"), [({}, "1"), ({TELEMETRY_OFF: ""}, "1"), ({TELEMETRY_OFF: "0"}, "0")])
def test_every_command_decides_before_onnxruntime_is_there(given: dict[str, str], wanted: str) -> None:
    """Off, unless the user says something; an empty variable, as templates leave it, says nothing."""
    code = (
        "import os, sys\n"
        "from foldserve import command\n"
        "def seen(words):\n"
        f"    print(os.environ[{TELEMETRY_OFF!r}], 'onnxruntime' in sys.modules)\n"
        "    return 0\n"
        "command.COMMANDS = {name: command.Command('', seen) for name in command.COMMANDS}\n"
        "for name in command.COMMANDS:\n"
        "    command.main([name])\n"
    )
    assert program(code, **given) == f"{wanted} False"


def test_importing_foldserve_changes_nothing_of_the_process() -> None:
    """Environment, threads, signals, collector, logging and warnings are what they were; the docstring says so."""
    code = (
        "import gc, logging, os, signal, sys, threading, warnings\n"
        "def state():\n"
        "    handlers = [signal.getsignal(number) for number in signal.valid_signals()]\n"
        "    return (dict(os.environ), os.listdir('/proc/self/task'), handlers, gc.isenabled(), gc.get_threshold(),\n"
        "        logging.root.level, list(logging.root.handlers), list(warnings.filters), sys.excepthook,\n"
        "        threading.excepthook, sys.getrecursionlimit(), sys.getswitchinterval(), list(sys.path))\n"
        "before = state()\n"
        "import foldserve\n"
        f"print(state() == before, {TELEMETRY_OFF!r} in foldserve.__doc__)\n"
    )
    assert program(code) == "True True"


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml", "Makefile"])
def test_images_and_targets_switch_it_off(file: str) -> None:
    """Also for what runs there beside the commands."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if TELEMETRY_OFF in line]
    assert lines
    assert all("1" in line.partition(TELEMETRY_OFF)[2] for line in lines)
