"""Silent errors of other folding tools as short programs, printed on the scoreboard page and run as printed.

    python -m benchmarks.folding --reproducers      run each and hold it to what the page says of it

Each program prints one line at its end: the largest error over the largest output where numbers are wrong, else what
became of the model. Only public interfaces of the tools are called, with seeds fixed.
"""

import os
import subprocess
from dataclasses import dataclass

LIMIT_S = 300.0


@dataclass(frozen=True)
class Reproducer:
    """One silent error.

    Attributes:
        tool: as the scoreboard's columns call it.
        what: one sentence for the page.
        code: the whole program.
        prints: what its last line is, or None when it is an error that has to exceed `least`.
        least: smallest relative error that shows the mistake; rounding gives 1e-6.
    """

    tool: str
    what: str
    code: str
    prints: str | None = None
    least: float = 0.05

    def is_shown_by(self, line: str) -> bool:
        """True when the program's last line shows what the page claims."""
        if self.prints is not None:
            return line == self.prints
        try:
            return float(line) > self.least
        except ValueError:
            return False


def run(reproducer: Reproducer, python: str) -> str:
    """Return the last line that the program prints when `python` runs it, or its last line of error."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [python, "-c", reproducer.code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    except subprocess.TimeoutExpired:
        return f"no answer within {LIMIT_S:.0f} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1].strip() if lines else f"ended with {done.returncode} and no word"


def check(python: str) -> int:
    """Run every program, print what it shows, and return how many do not show what the page claims."""
    failures = 0
    for reproducer in REPRODUCERS:
        line = run(reproducer, python)
        shown = reproducer.is_shown_by(line)
        failures += not shown
        print(f"{'shown' if shown else 'NOT SHOWN'}: {reproducer.tool}: {reproducer.what} -> {line}", flush=True)
    return failures


def section() -> str:
    """Return the programs as Markdown."""
    parts = [
        "## Reproducers\n",
        "Silent errors of the tables as short programs; `python -m benchmarks.folding --reproducers` runs these very",
        "texts. Each prints the largest error over the largest output (rounding gives 1e-6), or the line shown.\n",
    ]
    for reproducer in REPRODUCERS:
        shown = f"Prints `{reproducer.prints}`." if reproducer.prints else f"Prints more than {reproducer.least}."
        parts.append(f"**{reproducer.tool}**: {reproducer.what} {shown}\n")
        parts.append("\n".join(f"    {line}".rstrip() for line in reproducer.code.strip().splitlines()) + "\n")
    return "\n".join(parts)


_NORM = """
def norm(bn):
    torch.nn.init.normal_(bn.weight), torch.nn.init.normal_(bn.bias)
    bn.running_mean.normal_(), bn.running_var.uniform_(0.1, 2)
    return bn
torch.manual_seed(0)
"""
_ERROR = "print(float((found - right).abs().max() / right.abs().max()))\n"

_SHARED = f"""
import torch
from torch.fx.experimental.optimization import fuse
{_NORM.strip()}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.one, self.two = norm(torch.nn.BatchNorm2d(4)), norm(torch.nn.BatchNorm2d(4))
    def forward(self, x):
        return self.one(self.conv(x)) + self.two(self.conv(x + 1))
net, x = Net().eval(), torch.randn(2, 3, 8, 8)
right, found = net(x), fuse(net)(x)
{_ERROR}"""

_SQUARE = f"""
import torch
from torch.fx.experimental.optimization import fuse
{_NORM.strip()}
net = torch.nn.Sequential(torch.nn.Linear(5, 6), norm(torch.nn.BatchNorm1d(6))).eval()
x = torch.randn(2, 6, 5)                  # (N, C, L): the norm runs over axis 1, the layer makes the last one
right, found = net(x), fuse(net)(x)
{_ERROR}"""

_BRANCH = f"""
import copy, torch
from torch.ao.quantization import fuse_modules
{_NORM.strip()}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 4, 3), norm(torch.nn.BatchNorm2d(4))
    def forward(self, x):
        h = self.conv(x)
        return self.bn(h) + torch.relu(h)
net, x = Net().eval(), torch.randn(2, 3, 8, 8)
right, found = net(x), fuse_modules(copy.deepcopy(net), [["conv", "bn"]])(x)
{_ERROR}"""

_TORCHAO = f"""
import torch
from torchao.quantization.pt2e.utils import _fuse_conv_bn_      # what prepare_pt2e calls
{_NORM.strip()}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 4, 3), norm(torch.nn.BatchNorm2d(4))
    def forward(self, x):
        h = self.conv(x)
        return self.bn(h) + torch.relu(h)
net, x = Net().eval(), torch.randn(2, 3, 8, 8)
graph = torch.export.export(net, (x,)).module()
right = net(x)
_fuse_conv_bn_(graph)
found = graph(x)
{_ERROR}"""

_INDUCTOR = f"""
import torch
import torch._inductor.config as config
{_NORM.strip()}
net = torch.nn.Sequential(torch.nn.ConvTranspose2d(4, 4, 3), norm(torch.nn.BatchNorm2d(4))).eval()
x = torch.randn(2, 4, 8, 8)
config.freezing = True
with torch.no_grad():
    right, found = net(x), torch.compile(net)(x)
{_ERROR}"""

_ORT = f"""
import onnxruntime as ort, torch
{_NORM.strip()}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(5, 6))
        self.bn = norm(torch.nn.BatchNorm1d(6))
    def forward(self, x):
        return self.bn((x @ self.w).t())
net, x = Net().eval(), torch.randn(6, 5)
data = torch.onnx.export(net, (x,), input_names=["x"], verbose=False).model_proto.SerializeToString()
found = torch.from_numpy(ort.InferenceSession(data).run(None, {{"x": x.numpy()}})[0])
right = net(x)
{_ERROR}"""

_EXPORT_HALF = """
import onnxruntime as ort, torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 4, 3).half(), torch.nn.BatchNorm2d(4)
    def forward(self, x):
        return self.bn(self.conv(x))
net, x = Net().eval(), torch.randn(2, 3, 8, 8).half()
model = torch.onnx.export(net, (x,), verbose=False).model_proto       # float16 layer, float32 norm
try:
    ort.InferenceSession(model.SerializeToString())
    print("the file loads")
except Exception:
    print("the file does not load")
"""

_OVERRIDABLE = """
import numpy as np, onnx
from onnx import helper, numpy_helper
{load}
value = helper.make_tensor_value_info
put = lambda name, *shape: numpy_helper.from_array(np.random.default_rng(0).uniform(1, 2, shape).astype("f4"), name)
nodes = [helper.make_node("Conv", ["x", "w"], ["c"]),
         helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])]
inputs = [value("x", 1, ["N", 4, 9, 9]), value("w", 1, [6, 4, 3, 3])]    # callers may replace w
graph = helper.make_graph(nodes, "g", inputs, [value("y", 1, ["N", 6, 7, 7])],
                          [put("w", 6, 4, 3, 3), *(put(name, 6) for name in "sbmv")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
found = {call}
print("w" in [i.name for i in found.graph.input])
"""

REPRODUCERS = (
    Reproducer("onnxruntime", "its default level folds a MatMul across the transposition behind it.", _ORT),
    Reproducer("inductor freezing", "a transposed convolution is folded as if it were a plain one.", _INDUCTOR),
    Reproducer("fx fuse", "a convolution that is used twice takes both norms.", _SHARED),
    Reproducer("fx fuse", "sizes that agree are taken for the same axis.", _SQUARE),
    Reproducer("ao.fuse_modules", "the second reader of the convolution gets rescaled values.", _BRANCH),
    Reproducer("torchao", "the second reader of the convolution gets rescaled values.", _TORCHAO),
    Reproducer(
        "torch.onnx.export",
        "folds a float32 norm into a float16 layer and writes a bias of the wrong type.",
        _EXPORT_HALF,
        prints="the file does not load",
    ),
    Reproducer(
        "onnxsim",
        "a weight that callers may replace is folded, and they no longer can.",
        _OVERRIDABLE.format(load="import onnxsim", call="onnxsim.simplify(model)[0]"),
        prints="False",
    ),
    Reproducer(
        "onnxslim",
        "a weight that callers may replace is folded, and they no longer can.",
        _OVERRIDABLE.format(load="import onnxslim", call="onnxslim.slim(model)"),
        prints="False",
    ),
)
