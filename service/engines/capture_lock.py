"""A lock between the recording of a CUDA graph and every other use of the device in this process.

onnxruntime records in CUDA's global mode (cudaStreamCaptureModeGlobal, core/providers/cuda/cuda_graph.cc), in which a
blocking copy or an allocation by any other thread fails, and spoils the recording too. So runs and loads share the
lock, and a recording has it alone: it happens once for each batch size of a model, while it is loaded.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureLock:
    """Held by any number of users of the device, or by one recording, which comes before users that arrive later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._recordings = 0  # at work or waiting
        self._is_recording = False

    @contextmanager
    def using(self) -> Iterator[None]:
        """Use the device within, beside other users; waits while a graph is recorded, or about to be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._recordings)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Have the device alone within; waits until its users are done."""
        with self._changed:
            self._recordings += 1
            self._changed.wait_for(lambda: not self._users and not self._is_recording)
            self._is_recording = True
        try:
            yield
        finally:
            with self._changed:
                self._is_recording = False
                self._recordings -= 1
                self._changed.notify_all()


DEVICE = CaptureLock()  # of this process; one for all GPUs, since a recording on one forbids calls for any
