"""Ask the installed wheel for its golden answers; run by the Python of a fresh environment, from an empty folder.

Uses the standard library and what the wheel itself brings.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from foldserve.bundled import bundled_models
from foldserve.format.golden import read_golden
from foldserve.format.manifest import read_manifest


def main() -> None:
    """Serve the version that comes along, and compare the classes of its golden inputs."""
    golden = read_golden(read_manifest(bundled_models() / "lenet-bn/1")["golden"])
    command = [str(Path(sys.executable).with_name("foldserve")), "serve", "--demo", "--port", "0", "--buckets", "1,16"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as service,
    ):
        try:
            answer = ask(address_of(service), golden.inputs["image"].tobytes())
        finally:
            service.terminate()
    named = [prediction["class_id"] for prediction in answer["predictions"]]
    assert named == golden.outputs["class_id"][:, 0].tolist(), named
    assert service.returncode == 0, service.returncode
    assert not {"torch", "onnx"} & sys.modules.keys()


def address_of(service: "subprocess.Popen[str]") -> str:
    """Return the address from the log of a service, once it is ready."""
    assert service.stderr is not None
    address = ""
    for line in service.stderr:
        event = json.loads(line)
        address = event.get("address", address)
        if event["event"] == "ready":
            return str(address)
    raise SystemExit("the service ended before it was ready")


def ask(address: str, pixels: bytes) -> dict[str, list[dict[str, int]]]:
    """Return the answer of /predict to raw pixels."""
    headers = {"Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/predict", pixels, headers), timeout=30) as reply:
        answer: dict[str, list[dict[str, int]]] = json.load(reply)
    return answer


if __name__ == "__main__":
    main()
