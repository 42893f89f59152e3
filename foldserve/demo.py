"""`foldserve demo`: the model that comes along, served with its page in seconds; `--train` trains one first.

Prints three lines: where the page is, a question that can be pasted, how to stop. The service is a process of its own
and stays up until Ctrl-C.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from .arguments import Parser
from .exit_codes import DONE, FAILED

NAME = "lenet-bn"
# Two legs and a waist, 28 x 28 in black and white.
TROUSER = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcAQAAAABaduI5AAAAIElEQVR42mNgQID/HxiYGBgY8BG/GAgqIYtgYGBgYAAAXqUDGqOQkvQAAAAASUVORK5C"
    "YII="
)
_PORTS = 100  # that are tried, one after the other
_READY_SECONDS = 30.0


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns 0 after Ctrl-C, or with `--once` when the answer was right, else 1."""
    options, extra = parse(argv)
    models = train(options, extra) if options.train else ["--demo"]
    port = free_port(options.port)
    url = f"http://127.0.0.1:{port}"
    quiet = ["--log-level", "warning"] if sys.stderr.isatty() else []  # elsewhere its log is what a machine reads
    words = [sys.executable, "-m", "foldserve", "serve", *models, "--port", str(port), *quiet]
    service = subprocess.Popen(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))
    try:
        wait_until_ready(service, url)
        is_right = show(options, url)
        if not options.once:
            present(url, options)
            service.wait()
        return DONE if is_right else FAILED
    except KeyboardInterrupt:
        return DONE
    finally:
        stop(service)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the demo's own arguments and, with `--train`, those meant for `foldserve train`."""
    parser = Parser(
        prog="foldserve demo",
        description="Serve the model that comes along, with a page to try it on. Ctrl-C ends it.",
        epilog="With --train other arguments go to `foldserve train`, such as --epochs 2.",
    )
    port = int(os.environ.get("FOLDSERVE_PORT", "8000"))
    parser.add_argument("--port", type=int, default=port, help="where it serves; the next free one if taken (8000)")
    parser.add_argument("--no-open", dest="opens", action="store_false", help="do not open the page in a browser")
    parser.add_argument("--once", action="store_true", help="ask once, print the answer and stop")
    parser.add_argument("--train", action="store_true", help="train a model first (or reuse it) and verify it")
    parser.add_argument("--name", default=NAME, help=f"with --train: of the model ({NAME})")
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="with --train: of versions (models)")
    parser.add_argument("--image", type=int, default=0, help="with --train: which test image is asked (0 to 9999)")
    options, extra = parser.parse_known_args(argv)
    if extra and not options.train:
        parser.error(f"unknown argument {extra[0]}; arguments for a training need --train")
    return options, extra


def train(options: argparse.Namespace, extra: Sequence[str]) -> list[str]:
    """Train a version or reuse one, verify it, and return the flags that serve it."""
    from . import trained_demo

    version = trained_demo.train_or_reuse(options.models_dir, options.name, extra)
    trained_demo.run("verify", str(version))
    return ["--models-dir", str(options.models_dir)]


def show(options: argparse.Namespace, url: str) -> bool:
    """Print what is to be seen before the three lines; returns whether the answer is right."""
    if options.train:
        from . import trained_demo

        return trained_demo.show(url, options.name, options.image)
    if not options.once:
        return True
    request = urllib.request.Request(question(url), body().encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer = json.load(response)
    print(json.dumps(answer))
    return bool(answer["predictions"][0]["label"] == "Trouser")


def present(url: str, options: argparse.Namespace) -> None:
    """Print the three lines, and open the page where somebody can see it."""
    print(f"Open {url}/ in a browser, or paste the next line:")
    print(f"curl -s '{question(url, options.name)}' -H 'Content-Type: application/json' -d '{body()}'")
    print("Ctrl-C stops it.", flush=True)
    if options.opens and has_display():
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(f"{url}/")


def question(url: str, name: str = NAME) -> str:
    """Return the address that answers."""
    return f"{url}/predict?model={name}&top=3"


def body() -> str:
    """Return a question: a picture of a trouser."""
    return json.dumps({"instances": [{"b64": TROUSER}]})


def has_display() -> bool:
    """Return whether a window can be opened here."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def free_port(first: int) -> int:
    """Return the first port from this one on that nobody listens on.

    Raises:
        SystemExit: all that were tried are taken.
    """
    for port in range(first, min(first + _PORTS, 65_536)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise SystemExit(f"no port from {first} on is free; name one with --port")


def wait_until_ready(service: subprocess.Popen[bytes], url: str) -> None:
    """Return when the service answers ready; end the demo with the reason when it stops or stays silent."""
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise SystemExit(service.returncode)  # it has said why
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit(f"the service was not ready after {_READY_SECONDS:.0f} s")


def stop(service: subprocess.Popen[bytes]) -> None:
    """Let the service drain and wait for it; a terminal's Ctrl-C reaches it by itself."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        service.wait(timeout=0.5)
    if service.poll() is None:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=40)
