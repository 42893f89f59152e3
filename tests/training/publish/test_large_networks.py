"""Networks beyond the 2 GiB of one file: refused in a sentence, before their weights are read or anything is run."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from foldserve import publish
from foldserve.training.errors import ConfigError

ROWS, WIDTH = 550_000, 1024  # 2.1 GiB as float32


def table(folder: Path) -> Path:
    """Return the path of an ONNX file with its weights beside it, which is one hole."""
    tensor = onnx.TensorProto(name="table", data_type=onnx.TensorProto.FLOAT, dims=[ROWS, WIDTH])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="table.bin")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", "row"], ["y"])],
        "table",
        [info("row", onnx.TensorProto.INT64, ["N"])],
        [info("y", onnx.TensorProto.FLOAT, ["N", WIDTH])],
        [tensor],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    (folder / "table.onnx").write_bytes(model.SerializeToString())
    with (folder / "table.bin").open("wb") as file:
        file.truncate(ROWS * WIDTH * 4)
    return folder / "table.onnx"


def unread(*_: object) -> None:
    raise AssertionError("the weights were read")


def test_a_file_beyond_two_gibibytes_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the shapes of its tensors, and with the way to serve it all the same."""
    monkeypatch.setattr(onnx.external_data_helper, "load_external_data_for_model", unread)
    with pytest.raises(ConfigError, match=r"2\.1 GiB of weights.*holds 2 GiB.*--allow-unverified"):
        publish(table(tmp_path), name="table", models_dir=tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_module_beyond_two_gibibytes_is_refused_before_it_runs(tmp_path: Path, dtype: torch.dtype) -> None:
    """Halves count as the float32 that they become; the weights are on no device at all, so nothing could run."""
    network = nn.Linear(ROWS, WIDTH, device="meta", dtype=dtype).eval()
    with pytest.raises(ConfigError, match=r"Linear has 2\.1 GiB of weights"):
        publish(network, name="large", inputs=["1,550000"], models_dir=tmp_path / "models")
