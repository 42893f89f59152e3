"""Time and memory of publishing ResNets with 32 pictures as examples, from the module to the version folder.

    python -m benchmarks.publish                     both depths, once each
    python -m benchmarks.publish --depth 18 --runs 3

Each measurement has a process of its own, in which a small network was published before, so that imports are behind it.
Memory is the peak of the resident set above what it was with the network loaded, over the size of its parameters.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import ROOT
from benchmarks.folding.resnets import STAGES, torch_resnet

EXAMPLES, WIDTH = 32, 64
LIMITS = {18: (15.0, None), 50: (60.0, 6.0)}  # seconds, times the parameters


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--depth", type=int, action="append", choices=sorted(LIMITS), help="default: both")
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker)))
        return 0
    for depth in args.depth or sorted(LIMITS):
        for _ in range(args.runs):
            found = in_a_process(depth)
            seconds, times = LIMITS[depth]
            print(
                f"ResNet-{depth}: {found['seconds']:.1f} s (aim {seconds:.0f}), processor {found['processor']:.1f} s, "
                f"peak {found['times']:.1f} times the parameters (aim {times}), load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    return 0


def in_a_process(depth: int) -> dict[str, float]:
    """Return what a process of its own measures."""
    command = [sys.executable, "-m", "benchmarks.publish", "--worker", str(depth)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(depth: int) -> dict[str, float]:
    """Publish one network and return seconds of wall clock and processor, and the peak of memory."""
    from foldserve import publish

    with tempfile.TemporaryDirectory() as folder:
        pictures = made_pictures(Path(folder))
        options = {
            "labels": [f"class {number}" for number in range(1000)],
            "image": "imagenet",
            "models_dir": folder,
        }
        small = torch_resnet((1, 1, 1, 1), 8)
        publish(small, name="small", examples=pictures[:2], **options)
        network = torch_resnet(STAGES[depth], WIDTH)
        parameters = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        base, peak = resident(), Peak()
        start, processor = time.perf_counter(), time.process_time()
        publish(network, name="network", examples=pictures, **options)
        taken = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
        return {**taken, "times": (peak.stop() - base) / parameters}


def made_pictures(folder: Path) -> list[Path]:
    """Return paths of smooth pictures of photographs' size."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(EXAMPLES):
        noise = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        noise.resize((300 + number, 280), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def resident() -> int:
    """Return the bytes of the resident set."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """Watches the resident set, fifty times in a second, until it is stopped."""

    def __init__(self) -> None:
        self._most, self._done = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, resident())

    def stop(self) -> int:
        """Return the largest value that was seen."""
        self._done.set()
        self._thread.join()
        return max(self._most, resident())


if __name__ == "__main__":
    sys.exit(main())
