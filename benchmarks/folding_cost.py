"""Time and memory of folding ResNets of growing depth, through both front ends.

    python -m benchmarks.folding_cost          measure and write the section of docs/results/folding.md

Each measurement has a process of its own: it loads the model, folds a small one to have every import behind it, then
folds. "fold" is the time without the two proofs, which are timed apart and never switched off. Seconds of processor
time stand beside those of the wall clock, since the machine may have other work. Memory is the peak of the resident set
above what it was with the model loaded, over the size of the parameters.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.folding import RESULTS, ROOT
from benchmarks.folding_runs import versions

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}
TITLE = "## Time and memory\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, metavar=("FORM", "DEPTH"), help=argparse.SUPPRESS)
    parser.add_argument("--depth", type=int, action="append", choices=sorted(STAGES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker[0], int(args.worker[1]))))
        return 0
    rows = []
    for form in ("module", "onnx"):
        for depth in args.depth or sorted(STAGES):
            command = [sys.executable, "-m", "benchmarks.folding_cost", "--worker", form, str(depth)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    head = args.out.read_text(encoding="utf-8").partition(TITLE)[0] if args.out.exists() else ""
    args.out.write_text(head.rstrip() + "\n\n" + section(rows), encoding="utf-8")
    return 0


def section(rows: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    found = versions()
    lines = [
        TITLE,
        f"`python -m benchmarks.folding_cost`, one run each, 224 x 224 images, {found['machine']}, "
        f"torch {found['torch']}, {os.cpu_count()} threads at most, load before the run {rows[0]['load']:.1f}. "
        "Seconds of wall clock, in brackets of processor time; memory above the loaded model, over its parameters.\n",
        "| model | front end | parameters | norms folded | fold | with proof | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| ResNet-{row['depth']} | {row['form']} | {row['megabytes']:.0f} MB | {row['folded']} "
            f"| {row['fold'][0]:.1f} s ({row['fold'][1]:.1f}) | {row['all'][0]:.1f} s ({row['all'][1]:.1f}) "
            f"| {row['growth']:.1f} x |"
        )
    return "\n".join(lines) + "\n"


def measure(form: str, depth: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    fold, proofs = folder(form)
    fold(make(form, (1, 1, 1, 1), width=8, size=32), 32)
    model = make(form, STAGES[depth], size=224)
    size = megabytes(model, form)
    reset_peak()
    before, spent = resident("VmRSS"), Clock()
    proofs.clear()
    report = fold(model, 224)
    whole = spent.read()
    proof = [sum(part) for part in zip(*proofs, strict=True)]
    assert not report.refused, report.table()
    return {
        "form": form,
        "depth": depth,
        "megabytes": size,
        "folded": len(report.folded),
        "fold": [one - other for one, other in zip(whole, proof, strict=True)],
        "all": whole,
        "growth": (resident("VmHWM") - before) / size,
        "load": load,
    }


class Clock:
    """Seconds since it was made: of the wall clock and of this process on all cores."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), time.process_time())

    def read(self) -> list[float]:
        """Seconds since the start."""
        return [time.perf_counter() - self._start[0], time.process_time() - self._start[1]]


def folder(form: str) -> tuple[Callable[[Any, int], Any], list[list[float]]]:
    """The fold of a front end, and a list to which each of its proofs adds its seconds."""
    proofs: list[list[float]] = []
    if form == "onnx":
        import training.fold.onnx_fold as onnx_front

        timed(onnx_front, "prove_onnx", proofs)
        return lambda model, size: onnx_front.fold_onnx(model).report, proofs
    import torch

    import training.fold.api as torch_front

    for name in ("prove_sites", "prove_model"):
        timed(torch_front, name, proofs)
    return lambda model, size: torch_front.fold(model, (torch.randn(2, 3, size, size),)).report, proofs


def timed(module: Any, name: str, seconds: list[list[float]]) -> None:
    """Let `module.name` add what it takes to `seconds`; it still does all it did."""
    inner = getattr(module, name)

    def outer(*args: Any, **more: Any) -> Any:
        clock = Clock()
        result = inner(*args, **more)
        seconds.append(clock.read())
        return result

    setattr(module, name, outer)


def make(form: str, stages: tuple[int, ...], *, width: int = 64, size: int) -> Any:
    return OnnxResNet(stages, width, size).model if form == "onnx" else torch_resnet(stages, width)


def megabytes(model: Any, form: str) -> float:
    if form == "onnx":
        return sum(len(t.raw_data) for t in model.graph.initializer) / 2**20
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20


def resident(field: str) -> float:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found is not None
    return int(found.group(1)) / 2**10


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def torch_resnet(stages: tuple[int, ...], width: int) -> Any:
    """A residual network of bottlenecks (basic blocks for depth 18), with norms that are not the identity."""
    import torch
    from torch import nn

    basic = stages == STAGES[18]

    class Block(nn.Module):
        def __init__(self, inside: int, middle: int, stride: int):
            super().__init__()
            outside = middle if basic else middle * 4
            kernels = [(3, stride), (3, 1)] if basic else [(1, 1), (3, stride), (1, 1)]
            layers: list[nn.Module] = []
            channels = inside
            for i, (kernel, step) in enumerate(kernels):
                out = outside if i == len(kernels) - 1 else middle
                layers += [
                    nn.Conv2d(channels, out, kernel, step, kernel // 2, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                ]
                channels = out
            self.body = nn.Sequential(*layers[:-1])
            plain = stride == 1 and inside == outside
            short = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
            self.short: nn.Module = nn.Identity() if plain else short
            self.act = nn.ReLU()
            self.outside = outside

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.body(x) + self.short(x))

    torch.manual_seed(0)
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks: list[nn.Module] = []
    channels = width
    for i, count in enumerate(stages):
        for j in range(count):
            blocks.append(Block(channels, width * 2**i, 2 if i and not j else 1))
            channels = blocks[-1].outside  # type: ignore[assignment]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    model = nn.Sequential(*stem, *blocks, *head)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


class OnnxResNet:
    """The same network written as an ONNX graph."""

    def __init__(self, stages: tuple[int, ...], width: int, size: int):
        from benchmarks.folding_cases_onnx import Net

        self.net = Net(rng=np.random.default_rng(0))
        self.basic = stages == STAGES[18]
        value = self.net.input("x", "N", 3, size, size)
        value = self.net.node("Relu", [self.conv_norm(value, 3, width, 7, 2)])
        value = self.net.node("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        channels = width
        for i, count in enumerate(stages):
            for j in range(count):
                value, channels = self.block(value, channels, width * 2**i, 2 if i and not j else 1)
        flat = self.net.node("Flatten", [self.net.node("GlobalAveragePool", [value])])
        weight, bias = self.net.constant("fc_w", channels, 1000, scale=0.02), self.net.constant("fc_b", 1000)
        self.net.output(self.net.node("Gemm", [flat, weight, bias], "y"))
        self.model = self.net.model()

    def conv_norm(self, value: str, inside: int, outside: int, kernel: int, stride: int) -> str:
        """Add a convolution without bias and its norm."""
        scale = (inside * kernel * kernel) ** -0.5
        weight = self.net.constant(f"w{len(self.net.nodes)}", outside, inside, kernel, kernel, scale=scale)
        value = self.net.node("Conv", [value, weight], strides=[stride] * 2, pads=[kernel // 2] * 4)
        return self.net.norm(value, outside)

    def block(self, value: str, inside: int, middle: int, stride: int) -> tuple[str, int]:
        """Add a residual block and return its output and channels."""
        outside = middle if self.basic else middle * 4
        kernels = [(3, stride), (3, 1)] if self.basic else [(1, 1), (3, stride), (1, 1)]
        body, channels = value, inside
        for i, (kernel, step) in enumerate(kernels):
            body = self.net.node("Relu", [body]) if i else body
            out = outside if i == len(kernels) - 1 else middle
            body, channels = self.conv_norm(body, channels, out, kernel, step), out
        short = value if stride == 1 and inside == outside else self.conv_norm(value, inside, outside, 1, stride)
        return self.net.node("Relu", [self.net.node("Add", [body, short])]), outside


if __name__ == "__main__":
    sys.exit(main())
