"""Fixed buffers against a plain run; the binding is the same on every device, the CUDA graph needs CUDA."""

import numpy as np
import onnxruntime
import pytest

from foldserve.format.golden import Golden
from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines.engine import Engine
from foldserve.service.engines.load import load_engine
from foldserve.service.engines.providers import Device, cpu_session, open_session
from foldserve.service.engines.runners import GraphRunner, PlainRunner, ThreadedRunner
from foldserve.service.engines.signature import read_signature
from foldserve.service.errors import DeviceLost, EngineError
from tests.support import artifacts


@pytest.fixture
def session(fashion):
    return open_session(Repository(fashion).open("fashion").model_path, "cpu")[0]


@pytest.fixture
def bound(session):
    signature = read_signature(session)
    return GraphRunner(session, signature.inputs, signature.outputs, device="cpu")


def test_bound_runs_of_all_sizes_in_any_order_are_plain_runs(session, bound):
    """Each size has buffers of its own, used again and again; no row of an older batch is left in them."""
    plain = PlainRunner(session)
    for seed, rows in enumerate((1, 4, 1, 16, 4, 1, 16)):
        inputs = {"image": artifacts.images(rows, seed)}
        expected = plain.run(inputs)
        for name, answered in bound.run(inputs).items():
            assert answered.tobytes() == expected[name].tobytes()


def test_an_answer_is_not_overwritten_by_the_next_one(bound):
    """Outputs leave the fixed buffers before they are returned."""
    first = bound.run({"image": artifacts.images(4, 1)})
    kept = {name: array.copy() for name, array in first.items()}
    bound.run({"image": artifacts.images(4, 2)})
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


def test_a_batch_of_another_shape_is_refused(bound):
    """A copy of fewer bytes would leave the rest of an older batch in the buffer."""
    with pytest.raises(ValueError, match=r"expected \(2, 1, 28, 28\)"):
        bound.run({"image": np.zeros((2, 1, 27, 28), np.uint8)})


def test_small_batches_take_one_thread_and_large_ones_more(fashion, session):
    """The size decides, and the bytes are the same."""
    path = Repository(fashion).open("fashion").model_path
    ran = []

    class Noted(PlainRunner):
        def run(self, inputs):
            ran.append(self)
            return super().run(inputs)

    single = Noted(session)
    threaded = Noted(cpu_session(path, 2))
    runner = ThreadedRunner(single, threaded, threaded_from=8)
    for rows in (1, 4, 8, 64):
        inputs = {"image": artifacts.images(rows)}
        answered, expected = runner.run(inputs), PlainRunner(session).run(inputs)
        assert all(answered[name].tobytes() == expected[name].tobytes() for name in expected)
    assert ran == [single, single, threaded, threaded]


class Breaking:
    """A runner that fails on 255 once, or from then on, as a CUDA error does."""

    def __init__(self, for_ever: bool) -> None:
        self.for_ever = for_ever
        self.is_broken = False

    def run(self, inputs):
        if self.is_broken or inputs["image"].max() == 255:
            self.is_broken = self.for_ever
            raise RuntimeError("CUDA error 700: an illegal memory access was encountered")
        return {"class_id": np.zeros((len(inputs["image"]), 1), np.int64)}


@pytest.mark.parametrize(("for_ever", "error"), [(False, EngineError), (True, DeviceLost)])
def test_a_bad_batch_is_told_from_a_lost_device(session, for_ever, error):
    """After a failed run a harmless batch is run; only if that fails too the device is lost."""
    engine = Engine(Breaking(for_ever), Device("cuda", "cuda"), read_signature(session), (1, 4))
    engine.golden = Golden({"image": artifacts.images(1)}, {}, {})
    with pytest.raises(EngineError) as failure:
        engine.run({"image": np.full((1, 1, 28, 28), 255, np.uint8)})
    assert type(failure.value) is error


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="this onnxruntime has no CUDA"
)
def test_cuda_gives_the_golden_answers_in_every_bucket(fashion):
    """Loading proves it: every node on CUDA, every bucket compared, within 1e-4."""
    engine = load_engine(Repository(fashion).open("fashion"), provider="cuda")
    assert engine.device == Device("cuda", "cuda")
    inputs = artifacts.images(200)
    assert np.array_equal(engine.run({"image": inputs})["class_id"], artifacts.classify(inputs)["class_id"])
