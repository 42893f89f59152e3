"""Ways to run a batch of exactly a bucket's size: plainly, on more threads, or as a recorded CUDA graph.

A small network on a GPU spends its time on launching kernels one by one; a CUDA graph launches them all at once, but
only into the memory in which it was recorded. Used by the engine alone, always from the thread that made it.
"""

from collections.abc import Mapping
from typing import Protocol

import onnxruntime

from ..tensors import Array, TensorSpec


class Runner(Protocol):
    """Runs whole buckets."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one batch, in memory of their own; raises whatever onnxruntime raises."""


class PlainRunner:
    """`Session.run`: on the CPU binding inputs and outputs gains nothing.

    Args:
        session: the model.
        outputs: in the order in which the session gives them.
    """

    def __init__(self, session: onnxruntime.InferenceSession, outputs: tuple[TensorSpec, ...]) -> None:
        self._session = session
        self._names = [spec.name for spec in outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one batch."""
        return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))


class ThreadedRunner:
    """Small batches on one thread, large ones on several.

    Waking a thread costs more than it computes in a small batch, and less in a large one.

    Args:
        narrow: runs batches of fewer than `threaded_from` rows.
        wide: runs the others.
        threaded_from: rows.
    """

    def __init__(self, narrow: Runner, wide: Runner, threaded_from: int) -> None:
        self.threaded_from = threaded_from
        self._narrow = narrow
        self._wide = wide

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one batch."""
        rows = len(next(iter(inputs.values())))
        return (self._wide if rows >= self.threaded_from else self._narrow).run(inputs)


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
        self._place = (device, device_id)
        self._slots: dict[int, _Slot] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Copy in, replay, copy out."""
        rows = len(next(iter(inputs.values())))
        slot = self._slots.get(rows)
        if slot is None:
            # onnxruntime reserves graph 0 and does not check that a graph is used for one shape only: this is the
            # single place where sizes and graphs are paired.
            slot = self._slots[rows] = _Slot(self._session, len(self._slots) + 1)
            slot.bind(rows, self._inputs, self._outputs, self._place)
        return slot.run(inputs)


class _Slot:
    """The buffers and the graph of one batch size."""

    def __init__(self, session: onnxruntime.InferenceSession, graph_id: int) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph_id))
        self._inputs: dict[str, onnxruntime.OrtValue] = {}
        self._outputs: dict[str, onnxruntime.OrtValue] = {}

    def bind(
        self, rows: int, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], place: tuple[str, int]
    ) -> None:
        """Allocate every buffer once and for all."""
        for spec in inputs:
            self._inputs[spec.name] = _buffer(rows, spec, place)
            self._binding.bind_ortvalue_input(spec.name, self._inputs[spec.name])
        for spec in outputs:
            self._outputs[spec.name] = _buffer(rows, spec, place)
            self._binding.bind_ortvalue_output(spec.name, self._outputs[spec.name])

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for name, buffer in self._inputs.items():
            if inputs[name].shape != tuple(buffer.shape()):  # a copy of fewer bytes would keep older rows
                raise ValueError(f"input {name!r}: shape {inputs[name].shape}, expected {tuple(buffer.shape())}")
            buffer.update_inplace(inputs[name])
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        return {name: buffer.numpy().copy() for name, buffer in self._outputs.items()}


def _buffer(rows: int, spec: TensorSpec, place: tuple[str, int]) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type([rows, *spec.row_shape], spec.dtype.type, *place)
