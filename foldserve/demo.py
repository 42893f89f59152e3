"""The whole way once: train (or reuse), verify, serve, and ask for one real test image over HTTP.

The command `foldserve demo`. A version that an earlier demo trained is reused; the version that comes with foldserve is
left alone. The service stays up until Ctrl-C.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundled import is_bundled
from .exit_codes import DONE, FAILED
from .format.names import is_version
from .training.dataset import CLASS_NAMES, load

SHADES = " .:-=+*#%@"


def newest_local_version(model_dir: Path) -> Path | None:
    """Return the newest version that was trained here, or None; the one that comes with foldserve does not count."""
    versions = [path for path in model_dir.glob("[0-9]*") if is_version(path.name) and not is_bundled(path)]
    return max(versions, key=lambda path: int(path.name), default=None)


def train_or_reuse(models_dir: Path, name: str, extra: Sequence[str]) -> Path:
    """Return a version folder: the newest that was trained here, else a new one trained by the book's recipe."""
    newest = newest_local_version(models_dir / name)
    if newest is not None:
        print(f"Reusing {newest} (remove the folder to train again).")
        return newest
    run("train", "--models-dir", str(models_dir), "--name", name, *extra)
    trained = newest_local_version(models_dir / name)
    if trained is None:
        raise SystemExit(f"training published no new version under {models_dir / name}")
    return trained


def run(*words: str) -> None:
    """Run another command of foldserve; when it fails, the demo ends with its exit code."""
    code = subprocess.call([sys.executable, "-m", "foldserve", *words])
    if code != DONE:
        raise SystemExit(code)


def wait_until_ready(service: subprocess.Popen[bytes], url: str, timeout_seconds: float = 30.0) -> None:
    """Return when the service answers ready; end the demo with the reason when it stops or stays silent."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise SystemExit(f"the service ended with exit code {service.returncode} (its message stands above)")
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit(f"the service was not ready after {timeout_seconds:.0f} s")


def picture(image: NDArray[np.uint8]) -> str:
    """Return the 28x28 uint8 image as text, two characters a pixel so that it looks square."""
    return "\n".join("".join(SHADES[int(pixel) * len(SHADES) // 256] * 2 for pixel in row) for row in image)


def ask(url: str, name: str, image: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the prediction for one 28x28 uint8 image, sent as 784 raw bytes."""
    request = urllib.request.Request(
        f"{url}/predict?model={name}", data=image.tobytes(), headers={"Content-Type": "application/octet-stream"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def show(url: str, name: str, index: int) -> bool:
    """Print one test image and what the service says of it; return whether it is right."""
    dataset = load()
    image, label = dataset.test_images[index].reshape(28, 28), CLASS_NAMES[int(dataset.test_labels[index])]
    answer = ask(url, name, image)
    prediction = answer["predictions"][0]
    print(picture(image))
    print(f"\ntest image {index}: labelled {label!r}")
    print(
        f"{answer['model']} version {answer['version']} says {prediction['label']!r} "
        f"with confidence {prediction['confidence']:.3f}"
    )
    return bool(prediction["label"] == label)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the demo's own arguments and those meant for `foldserve train`."""
    parser = argparse.ArgumentParser(
        prog="foldserve demo",
        description="Train (or reuse), verify, serve, and ask for one real test image over HTTP.",
        epilog="Other arguments go to `foldserve train`, such as --epochs 2.",
    )
    parser.add_argument("--name", default="lenet-bn", help="of the model (lenet-bn)")
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="where versions are (models)")
    parser.add_argument("--port", type=int, default=int(os.environ.get("FOLDSERVE_PORT", "8000")), help="(8000)")
    parser.add_argument("--image", type=int, default=0, help="index of the test image to ask for (0 to 9999)")
    parser.add_argument("--once", action="store_true", help="stop after the prediction instead of at Ctrl-C")
    return parser.parse_known_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns 0 when the prediction was right, 1 when it was wrong."""
    options, extra = parse(argv)
    version = train_or_reuse(options.models_dir, options.name, extra)
    run("verify", str(version))
    url = f"http://127.0.0.1:{options.port}"
    words = ["serve", "--models-dir", str(options.models_dir), "--port", str(options.port)]
    service = subprocess.Popen([sys.executable, "-m", "foldserve", *words])
    try:
        wait_until_ready(service, url)
        right = show(url, options.name, options.image)
        if not options.once:
            print(f"\nServing on {url} (try {url}/docs). Ctrl-C ends it.", flush=True)
            service.wait()
        return DONE if right else FAILED
    except KeyboardInterrupt:
        return DONE
    finally:
        stop(service)


def stop(service: subprocess.Popen[bytes]) -> None:
    """Ask the service to drain and wait for it."""
    if service.poll() is None:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=40)
