"""Providers: the requested one runs, or the caller is told why not."""

import logging

import onnxruntime
import pytest

from foldserve.service.engines import providers
from foldserve.service.engines.providers import Device, open_session
from foldserve.service.errors import ArtifactInvalid, ProviderUnavailable
from tests.support import artifacts

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")


@pytest.fixture
def path(models):
    return artifacts.publish_classifier(models) / "model.onnx"


def test_cpu_is_cpu(path):
    """Nothing fell back, so there is no reason to give."""
    session, device = open_session(path, "cpu")
    assert device == Device("cpu", "cpu", None)
    assert session.get_providers() == ["CPUExecutionProvider"]


@without_cuda
def test_cuda_that_cannot_be_had_is_refused_with_what_to_install(path):
    """onnxruntime itself would only warn and run on the CPU."""
    with pytest.raises(ProviderUnavailable, match=r"install \"foldserve\[gpu\]\"") as refusal:
        open_session(path, "cuda")
    assert "driver 580" in str(refusal.value)


@without_cuda
def test_auto_falls_back_and_says_so_once(path, caplog, monkeypatch):
    """The reason is in the log, whatever the number of models, and on the device of each."""
    monkeypatch.setattr(providers, "_said", set())
    with caplog.at_level(logging.WARNING, logger="foldserve.service.engines.providers"):
        open_session(path, "auto")
        _, device = open_session(path, "auto")
    assert device.requested == "auto"
    assert device.provider == "cpu"
    assert "no CUDA provider" in device.fallback_reason
    assert caplog.text.count("running on the CPU") == 1


def pretend_cuda_is_built_in(monkeypatch):
    """The state of a GPU build whose libraries are missing: the provider is listed and cannot be had."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("libcudart.so.13: cannot open shared object file"))


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_provider_that_onnxruntime_leaves_out_is_noticed(path, monkeypatch):
    """It raises nothing when the libraries do not load; the session's own list of providers is the truth."""
    pretend_cuda_is_built_in(monkeypatch)
    with pytest.raises(ProviderUnavailable, match=r"CUDA device 0 cannot run|left the CUDA provider out"):
        open_session(path, "cuda")
    _, device = open_session(path, "auto")
    assert device.provider == "cpu"
    assert device.fallback_reason


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\x09"])
def test_a_file_that_is_no_model_is_refused(path, content):
    """Whatever onnxruntime raises becomes one sentence with the path."""
    path.write_bytes(content)
    with pytest.raises(ArtifactInvalid, match=r"model\.onnx cannot be loaded"):
        open_session(path, "cpu")


def test_a_session_never_changes_its_provider_by_itself(path):
    """onnxruntime's own fallback, which rebuilds the session on the CPU in mid-service, is off."""
    session, _ = open_session(path, "cpu")
    assert session._enable_fallback is False
