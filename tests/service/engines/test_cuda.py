"""CUDA without a GPU: what onnxruntime does there is copied by fakes at its border, from its source as cited."""

import ctypes
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper

from foldserve.service.artifacts.golden import TF32_TOLERANCE
from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines import load as loading
from foldserve.service.engines import providers
from foldserve.service.engines.load import load_engine
from foldserve.service.engines.providers import Device, cpu_session, open_session
from foldserve.service.errors import ArtifactInvalid, ProviderUnavailable
from tests.support import artifacts

CUDA = "CUDAExecutionProvider"
MODELS = Path(__file__).parents[3] / "models"
NO_CUDNN = "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : cuDNN is not available. Install cuDNN, or set enable_cudnn=0"
MISSING = "libcublasLt.so.13: cannot open shared object file: No such file or directory"


class Session:
    """A session as onnxruntime makes it: `on_cpu` are the operators that it puts on the CPU.

    From what onnxruntime prints where it runs: where the provider's libraries do not load, it makes a session without
    it and says so in its log alone (onnxruntime_pybind_state.cc: Failed to create CUDAExecutionProvider), and
    `disable_cpu_ep_fallback` refuses any node on the CPU. Those for shapes are put there on purpose: read at its commit
    039e489f3ff5, core/framework/fallback_cpu_capability.cc, GetCpuPreferredNodes.
    """

    providers, on_cpu = (CUDA, "CPUExecutionProvider"), ()

    def __init__(self, path, options, **_):
        try:
            is_fallback_off = options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        except Exception:  # the entry is not there
            is_fallback_off = False
        if is_fallback_off and (self.on_cpu or CUDA not in self.providers):
            raise RuntimeError("This session contains graph nodes that are assigned to the default CPU EP")

    def get_providers(self):
        return list(self.providers)

    def get_provider_graph_assignment_info(self):
        nodes = [SimpleNamespace(op_type=name) for name in self.on_cpu]
        conv = SimpleNamespace(op_type="Conv")
        return [
            SimpleNamespace(ep_name=CUDA, get_nodes=lambda: [conv]),
            SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes),
        ]


@pytest.fixture
def gpu_build(monkeypatch):
    """An onnxruntime built with CUDA, whose sessions are made up."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    session = type("Made", (Session,), {})
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return session


@pytest.mark.parametrize(
    "operators", [("Shape", "Gather", "Concat"), ("Shape", "Slice", "Squeeze", "Unsqueeze", "Cast")]
)
def test_shapes_that_are_computed_on_the_cpu_refuse_no_model(gpu_build, operators):
    """onnxruntime puts them there on purpose, and a CUDA graph takes them."""
    gpu_build.on_cpu = operators
    _, device = open_session(Path("model.onnx"), "cuda")
    assert device == Device("cuda", "cuda")


def test_an_operator_that_cuda_lacks_is_named(gpu_build):
    """Work on the CPU in the middle of a CUDA graph cannot be recorded."""
    gpu_build.on_cpu = ("Shape", "NonMaxSuppression")
    with pytest.raises(ProviderUnavailable, match=r"CUDA does not run \['NonMaxSuppression'\]"):
        open_session(Path("model.onnx"), "cuda")


def test_a_missing_library_is_named_by_what_preloading_prints(gpu_build, monkeypatch):
    """onnxruntime/__init__.py, preload_dlls: `print(f"Failed to load {dll_filename}: {e}")`, and no exception."""
    gpu_build.providers = ("CPUExecutionProvider",)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(f"Failed to load libcublasLt.so.13: {MISSING}"))
    with pytest.raises(ProviderUnavailable, match=r"libcublasLt\.so\.13: cannot open shared object file.*install"):
        open_session(Path("model.onnx"), "cuda")


def test_a_missing_library_is_named_by_the_linker(gpu_build, monkeypatch, tmp_path):
    """dlopen(3) of the provider's library fails with the first library that it needs and does not find."""
    library = tmp_path / "capi/libonnxruntime_providers_cuda.so"
    library.parent.mkdir()
    library.touch()
    gpu_build.providers = ("CPUExecutionProvider",)
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))

    def dlopen(path):
        assert path == str(library)
        raise OSError(MISSING)

    monkeypatch.setattr(ctypes, "CDLL", dlopen)
    with pytest.raises(ProviderUnavailable, match=r"does not load \(libcublasLt\.so\.13"):
        open_session(Path("model.onnx"), "cuda")


class Unwilling:
    """A runner whose session opened and whose first run fails, as without cuDNN.

    onnxruntime 1.31.1: libonnxruntime_providers_cuda.so does not link libcudnn; the first convolution asks for it.
    """

    def __init__(self, *_, **__):
        pass

    def run(self, inputs):
        raise RuntimeError(NO_CUDNN)


@pytest.fixture
def opens(monkeypatch):
    """Let every session open "on CUDA"; return what sets the runner."""
    monkeypatch.setattr(
        loading, "open_session", lambda path, provider, **_: (cpu_session(path, 1), Device(provider, "cuda"))
    )
    return lambda runner: monkeypatch.setattr(loading, "GraphRunner", runner)


def test_auto_takes_the_cpu_when_the_first_run_fails(fashion, opens, caplog, monkeypatch):
    """That a session opened says little; the reason is logged, and stands on the device."""
    monkeypatch.setattr(providers, "_said", set())
    opens(Unwilling)
    with caplog.at_level(logging.WARNING, logger=providers.__name__):
        engine = load_engine(Repository(fashion).open("fashion"), provider="auto")
    assert (engine.device.requested, engine.device.provider) == ("auto", "cpu")
    assert "cuDNN is not available" in engine.device.fallback_reason
    assert "running on the CPU" in caplog.text
    inputs = artifacts.images(20)
    assert np.array_equal(engine.run({"image": inputs})["class_id"], artifacts.classify(inputs)["class_id"])


def test_a_required_gpu_whose_first_run_fails_is_refused_with_the_reason(fashion, opens):
    """Nothing is served on another device than the one that was asked for."""
    opens(Unwilling)
    with pytest.raises(ProviderUnavailable, match=r"CUDA device 0 does not run fashion: .*cuDNN is not available"):
        load_engine(Repository(fashion).open("fashion"), provider="cuda")


class Tf32:
    """The published LeNet with the factors of every product rounded to 10 bits, as `use_tf32=1` has them on a GPU.

    CUDA C++ programming guide, Alternate Floating Point: e8m10; products are summed in float32.
    """

    def __init__(self, *_, **__):
        path = MODELS / "lenet-bn/1/model.onnx"
        graph = onnx.load(path).graph
        self.weights = {each.name: torch.tensor(numpy_helper.to_array(each)) for each in graph.initializer}

    def run(self, inputs):
        w = self.weights
        h = torch.tensor(inputs["image"]).float()
        for name in ("conv1", "conv2"):
            h = F.conv2d(rounded(h), rounded(w[f"{name}.weight"]), w[f"{name}.bias"])
            h = F.avg_pool2d(torch.sigmoid(h), 2)
        h = h.flatten(1)
        for name in ("dense1", "dense2"):
            h = torch.sigmoid(F.linear(rounded(h), rounded(w[f"{name}.weight"]), w[f"{name}.bias"]))
        logits = F.linear(rounded(h), rounded(w["dense3.weight"]), w["dense3.bias"])
        values = {"logits": logits, "probabilities": logits.softmax(1), "class_id": logits.argmax(1, keepdim=True)}
        return {name: value.numpy() for name, value in values.items()}


def rounded(x):
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def test_tf32_can_start(opens):
    """FOLDSERVE_TF32=1 is off by more than float32's limit and by less than its own; without it, it is refused."""
    opens(Tf32)
    artifact = Repository(MODELS).open("lenet-bn", 1)
    engine = load_engine(artifact, provider="cuda", tf32=True)
    assert engine.device.provider == "cuda"
    assert 1e-4 < engine.deviations["logits"] < TF32_TOLERANCE
    assert engine.golden.tolerance["cuda"] == TF32_TOLERANCE
    assert engine.golden.tolerance["cpu"] == artifact.golden.tolerance["cpu"]
    with pytest.raises(ArtifactInvalid, match="is off by"):
        load_engine(artifact, provider="cuda")
