"""docs/publish.md as a reader uses it: every command and the Python block, as they stand."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from foldserve.command import main
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.support import pages
from tests.support.live import serve

PAGE = (Path(__file__).parents[3] / "docs/publish.md").read_text()

NETWORKS = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(16, 3))

def table():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the page says is there."""
    (tmp_path / "mynets.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import mynets

    torch.save({"state_dict": mynets.network().state_dict()}, "w.pt")
    generator = np.random.default_rng(0)
    for name in ("daisy", "rose", "tulip"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in range(2):
            noise = generator.integers(0, 256, (50, 44, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / f"val/{name}/{number}.png")
    rows = "\n".join(",".join(f"{value:.3f}" for value in row) for row in generator.normal(size=(6, 4)))
    Path("rows.csv").write_text(f"width,height,weight,age\n{rows}\n")
    Path("labels.txt").write_text("low\nmiddle\nhigh\n")
    weight = numpy_helper.from_array(generator.normal(size=(4, 2)).astype(np.float32), "w")
    sizes = (("x", 4), ("y", 2))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size]) for name, size in sizes]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "table.onnx")
    yield tmp_path
    sys.modules.pop("mynets", None)


def test_the_page_does_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands end with 0 and leave what they announce; the Python block runs; named columns are kept."""
    publish, service, ask, *others = pages.lines("docs/publish.md")
    assert shlex.split(service) == ["foldserve", "serve"]
    assert [shlex.split(line)[1] for line in others] == ["publish", "publish", "verify"]
    for line in (publish, *others):
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr())
    shutil.copy(folder / "val/rose/0.png", folder / "rose.jpg")
    with serve(create_app(Settings(models_dir=folder / "models", provider="cpu", buckets=(1,)))) as url:
        asked = ask.replace("localhost:8000", url.removeprefix("http://"))
        answer = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, check=True, timeout=60).stdout
    assert len(json.loads(answer)["predictions"][0]["top"]) == 3
    assert "5 of 5 checks passed" in capsys.readouterr().out
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/publish.md", "exec"), {})
    stated = {entry.key: entry.value for entry in onnx.load("models/table/1/model.onnx").metadata_props}
    assert stated["foldserve.columns"] == '["width","height","weight","age"]'
    assert stated["foldserve.labels"] == '["low","middle","high"]'
