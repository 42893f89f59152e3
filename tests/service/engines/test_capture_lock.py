"""Recording a CUDA graph beside live traffic: nothing else touches the device meanwhile, and everyone is answered."""

import threading

import numpy as np
import onnxruntime
import pytest

from foldserve.service.engines import capture_lock, providers
from foldserve.service.engines.capture_lock import CaptureLock
from foldserve.service.engines.runners import GraphRunner
from foldserve.service.tensors import TensorSpec

SPEC = TensorSpec("x", "FP32", (None, 2))
BLOCKED_SECONDS = 0.2  # how long a thread that must wait is watched waiting


class Gpu:
    """A device on which a graph is recorded in global mode.

    onnxruntime, read at its commit 0281e570f9e3, core/providers/cuda/cuda_graph.cc, CUDAGraphManager::CaptureBegin:
    cudaStreamBeginCapture with cudaStreamCaptureModeGlobal, since a graph "can only work with a single thread". From
    CUDA's documentation, cudaThreadExchangeStreamCaptureMode: in that mode a call that may
    synchronise, such as a blocking copy, fails in every thread with cudaErrorStreamCaptureUnsupported (900), and the
    recording ends with cudaErrorStreamCaptureInvalidated (901).
    """

    def __init__(self):
        self.recorder = None
        self.is_spoiled = False
        self.began, self.may_end = threading.Event(), threading.Event()

    def blocking_call(self):
        if self.recorder not in (None, threading.get_ident()):
            self.is_spoiled = True
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")

    def record(self):
        self.recorder = threading.get_ident()
        self.began.set()
        assert self.may_end.wait(30)
        self.recorder = None
        if self.is_spoiled:
            raise RuntimeError("CUDA failure 901: operation failed due to a previous error during capture")


class Buffer:
    """An OrtValue on the device: onnxruntime_inference_collection.py, OrtValue.update_inplace and .numpy copy."""

    def __init__(self, gpu, shape, dtype):
        gpu.blocking_call()  # memory is allocated
        self.gpu, self.array = gpu, np.zeros(shape, dtype)

    def shape(self):
        return list(self.array.shape)

    def update_inplace(self, array):
        self.gpu.blocking_call()
        self.array[...] = array

    def numpy(self):
        self.gpu.blocking_call()
        return self.array


class Session:
    """Doubles its input; a run with a graph id that it does not know yet records.

    onnxruntime, read at its commit 003b97d3e334, core/session/inference_session.cc, InferenceSession::Run: with graphs
    enabled one call runs again until a graph is recorded, as often as the provider needs to allocate and once more.
    From its documentation: one graph for each `gpu_graph_id`.
    """

    def __init__(self, gpu):
        self.gpu, self.known = gpu, set()

    def io_binding(self):
        return Binding(self.gpu)

    def run_with_iobinding(self, binding, options):
        number = options.get_run_config_entry("gpu_graph_id")
        if number not in self.known:
            self.gpu.record()
            self.known.add(number)
        binding.outputs["y"].array[...] = 2 * binding.inputs["x"].array


class Binding:
    def __init__(self, gpu):
        self.gpu, self.inputs, self.outputs = gpu, {}, {}

    def bind_ortvalue_input(self, name, value):
        self.inputs[name] = value

    def bind_ortvalue_output(self, name, value):
        self.outputs[name] = value

    def synchronize_outputs(self):
        self.gpu.blocking_call()


@pytest.fixture
def gpu(monkeypatch):
    device = Gpu()

    class OrtValue:
        @staticmethod
        def ortvalue_from_shape_and_type(shape, dtype, *_):
            return Buffer(device, shape, dtype)

    monkeypatch.setattr(onnxruntime, "OrtValue", OrtValue)
    return device


def runner(gpu):
    return GraphRunner(Session(gpu), (SPEC,), (TensorSpec("y", "FP32", (None, 2)),))


class Asking(threading.Thread):
    """One call in a thread of its own, and what it gave or raised."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call, self.answer, self.error = call, None, None
        self.start()

    def run(self):
        try:
            self.answer = self.call()
        except Exception as err:
            self.error = err


def test_a_version_that_is_loaded_beside_traffic_spoils_nothing(gpu):
    """A live engine's copies, and buffers of another size, wait until the recording is done; both answer rightly."""
    live, loading = runner(gpu), runner(gpu)
    gpu.may_end.set()
    batch = np.ones((4, 2), np.float32)
    live.run({"x": batch})  # recorded before
    gpu.began.clear()
    gpu.may_end.clear()
    recording = Asking(lambda: loading.run({"x": 3 * batch}))
    assert gpu.began.wait(30)
    others = [Asking(lambda: live.run({"x": batch})), Asking(lambda: live.run({"x": batch[:1]}))]
    for other in others:
        other.join(BLOCKED_SECONDS)
    gpu.may_end.set()
    for each in (recording, *others):
        each.join(30)
        assert each.error is None
    assert np.array_equal(recording.answer["y"], 6 * batch)
    assert np.array_equal(others[0].answer["y"], 2 * batch)
    assert np.array_equal(others[1].answer["y"], 2 * batch[:1])


def test_a_recording_that_fails_is_made_anew(gpu, monkeypatch):
    """Its buffers are not kept under the size, and nobody waits for it any longer."""
    loading = runner(gpu)
    gpu.may_end.set()
    gpu.is_spoiled = True
    with pytest.raises(RuntimeError, match="901"):
        loading.run({"x": np.ones((1, 2), np.float32)})
    gpu.is_spoiled = False
    assert np.array_equal(loading.run({"x": np.ones((1, 2), np.float32)})["y"], [[2.0, 2.0]])


def test_a_session_is_not_opened_during_a_recording(monkeypatch):
    """Its weights are copied to the device, which takes a blocking copy as well."""
    opened = []
    monkeypatch.setattr(providers, "_cuda_session", lambda *_: opened.append(True))
    with capture_lock.DEVICE.recording():
        opening = Asking(lambda: providers.open_session(None, "cuda"))
        opening.join(BLOCKED_SECONDS)
        assert not opened
    opening.join(30)
    assert opened


def test_users_share_the_device_and_recordings_come_one_by_one():
    """Two users at once; a recording waits for both, and users that come later wait for it."""
    lock, order = CaptureLock(), []

    def record():
        with lock.recording():
            order.append("recording")

    def use():
        with lock.using():
            order.append("late user")

    with lock.using(), lock.using():
        recordings = [Asking(record), Asking(record)]
        recordings[0].join(BLOCKED_SECONDS)
        late = Asking(use)
        late.join(BLOCKED_SECONDS)
        assert order == []
    for thread in (*recordings, late):
        thread.join(30)
    assert order == ["recording", "recording", "late user"]
