"""Ways to run a batch of exactly a bucket's size: plainly, on more threads, or as a recorded CUDA graph.

A small network on a GPU spends its time on launching kernels one by one; a CUDA graph launches them all at once, but
only into the memory in which it was recorded. Used by the engine alone, always from the thread that made it.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import onnxruntime

from ..errors import InvalidInput
from ..tensors import Array, TensorSpec
from .capture_lock import DEVICE

_TEXT = "tensor(string)"  # in onnxruntime's words
_of_thread = threading.local()


@contextmanager
def stoppable(options: onnxruntime.RunOptions) -> Iterator[None]:
    """Let runs on the CPU of every runner that this thread makes within end once `options.terminate` is true.

    They end between two nodes, also within a loop that never would.
    """
    _of_thread.options = options
    try:
        yield
    finally:
        _of_thread.options = None


class Runner(Protocol):
    """Runs whole buckets."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one batch, in memory of their own; raises whatever onnxruntime raises."""


class PlainRunner:
    """`Session.run`: on the CPU binding inputs and outputs gains nothing.

    Args:
        session: the model.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._texts = [value.name for value in session.get_inputs() if value.type == _TEXT]
        self._gives_texts = any(value.type == _TEXT for value in session.get_outputs())
        self._options = getattr(_of_thread, "options", None)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one batch; texts as arrays of `bytes` objects."""
        if self._texts:
            inputs = {**inputs, **{name: _decoded(name, inputs[name]) for name in self._texts}}
        outputs = dict(zip(self._names, self._session.run(self._names, inputs, self._options), strict=True))
        return {name: _encoded(array) for name, array in outputs.items()} if self._gives_texts else outputs


def _decoded(name: str, texts: Array) -> Array:
    """Return an array of `str`, which onnxruntime takes."""
    decoded = np.empty(texts.shape, object)
    try:
        decoded.ravel()[:] = [text.decode() for text in texts.ravel()]
    except UnicodeDecodeError as err:
        raise InvalidInput(f"input {name!r}: an element is not UTF-8: {err.reason} at byte {err.start}") from err
    return decoded


def _encoded(array: Array) -> Array:
    if array.dtype != object:
        return array
    encoded = np.empty(array.shape, object)
    encoded.ravel()[:] = [text.encode() for text in array.ravel()]
    return encoded


class ThreadedRunner:
    """Small batches on one thread, large ones on several.

    Args:
        single: runs batches of fewer than `threaded_from` rows.
        threaded: runs the others.
        threaded_from: rows.
    """

    def __init__(self, single: Runner, threaded: Runner, threaded_from: int) -> None:
        self.threaded_from = threaded_from
        self._single = single
        self._threaded = threaded

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one batch."""
        rows = len(next(iter(inputs.values())))
        return (self._threaded if rows >= self.threaded_from else self._single).run(inputs)


class GraphRunner:
    """Fixed device buffers and a CUDA graph for each batch size; recorded at the first run of that size.

    Args:
        session: created with `enable_cuda_graph`; on another provider the graph id has no effect.
        inputs: the model's inputs.
        outputs: the model's outputs.
        device: "cuda", or "cpu" where the binding itself is tested.
        device_id: which of the devices.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        device: str = "cuda",
        device_id: int = 0,
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._device = (device, device_id)
        self._recorded: dict[int, _RecordedGraph] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Copy in, replay, copy out; the first run of a size records, while nothing else uses the device."""
        rows = len(next(iter(inputs.values())))
        recorded = self._recorded.get(rows)
        if recorded is not None:
            with DEVICE.using():
                return recorded.run(inputs)
        with DEVICE.recording():
            # onnxruntime reserves graph 0 and does not check that a graph is used for one shape only: this is the
            # single place where sizes and graphs are paired.
            recorded = _RecordedGraph(
                self._session,
                len(self._recorded) + 1,
                {spec.name: self._buffer(rows, spec) for spec in self._inputs},
                {spec.name: self._buffer(rows, spec) for spec in self._outputs},
            )
            answers = recorded.run(inputs)
            self._recorded[rows] = recorded  # a size whose recording failed is recorded anew
        return answers

    def _buffer(self, rows: int, spec: TensorSpec) -> onnxruntime.OrtValue:
        shape = [rows, *spec.row_shape]
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, spec.dtype.type, *self._device)


class _RecordedGraph:
    """The buffers and the graph of one batch size."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        graph_id: int,
        inputs: dict[str, onnxruntime.OrtValue],
        outputs: dict[str, onnxruntime.OrtValue],
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph_id))
        self._binding = session.io_binding()
        for name, buffer in inputs.items():
            self._binding.bind_ortvalue_input(name, buffer)
        for name, buffer in outputs.items():
            self._binding.bind_ortvalue_output(name, buffer)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for name, buffer in self._inputs.items():
            if inputs[name].shape != tuple(buffer.shape()):  # a copy of fewer bytes would keep older rows
                raise ValueError(f"input {name!r}: shape {inputs[name].shape}, expected {tuple(buffer.shape())}")
            buffer.update_inplace(inputs[name])
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        return {name: buffer.numpy().copy() for name, buffer in self._outputs.items()}
