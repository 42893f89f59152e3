"""Models whose runs are long: one batch size is proved before they answer, the others later, and no byte changes."""

import numpy as np
import pytest

from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines import load as loading
from foldserve.service.engines import threads
from foldserve.service.engines.buckets import first_profile, with_bucket
from foldserve.service.engines.engine import Engine
from foldserve.service.engines.load import load_engine
from foldserve.service.engines.measured import Measured
from foldserve.service.errors import ArtifactInvalid
from tests.support import artifacts

INPUTS = {"x": np.arange(16, dtype=np.float32).reshape(16, 1)}
BUCKETS = (1, 2, 4, 8)


@pytest.fixture
def all_long(monkeypatch):
    """Every run counts as long."""
    monkeypatch.setattr(loading, "SHORT_RUN_SECONDS", 0.0)


def deferred(models, **options) -> Engine:
    artifact = Repository(models).open("fashion")
    options = {"buckets": BUCKETS, "threads": 1, "is_autotuned": False, **options}
    return load_engine(artifact, provider="cpu", is_deferring=True, **options)


def proved(engine: Engine) -> Engine:
    """The engine once nothing is pending; a row counts as cheaper in every batch."""
    engine.plan(dict.fromkeys(BUCKETS, 1e-3))
    while engine.pending:
        engine.prove_next()
    return engine


def test_only_the_smallest_batch_is_proved_before_it_answers(fashion, all_long):
    """On every golden row; the answers of a larger one are those of the smaller, whichever is used."""
    engine, whole = deferred(fashion), load_engine(Repository(fashion).open("fashion"), provider="cpu", threads=1)
    assert (engine.buckets, engine.pending, engine.batch_invariant) == ((1,), (2, 4, 8), True)
    assert max(engine.deviations.values()) < 1e-5
    images = artifacts.images(8, seed=4)
    before = np.concatenate([engine.run({"image": image[None]})["probabilities"] for image in images])
    assert proved(engine).buckets == BUCKETS
    assert before.tobytes() == engine.run({"image": images})["probabilities"].tobytes()
    assert np.array_equal(before.argmax(axis=1), whole.run({"image": images})["class_id"].ravel())


def test_short_runs_are_proved_in_every_batch_at_once(fashion):
    """They take no time that anybody would notice."""
    assert deferred(fashion).pending == ()


def test_a_model_that_a_rewrite_may_speed_up_is_measured_at_once(fashion, all_long):
    """Another graph after the first answer would change bytes."""
    assert deferred(fashion, is_autotuned=True).pending == ()


def test_wrong_answers_are_refused_in_either_proof(fashion, all_long):
    """With the first batch size nothing is served; with a later one that size is not, and the others go on."""
    folder = fashion / "fashion" / "1"
    asked = artifacts.images(16, seed=7)
    wrong = artifacts.classify(asked, artifacts.classifier_weights(5))
    engine = deferred(fashion)
    engine.golden = engine.golden.__class__(engine.golden.inputs, wrong, engine.golden.tolerance)
    with pytest.raises(ArtifactInvalid):
        engine.prove_next()
    assert (engine.buckets, engine.pending) == ((1,), ())
    golden = {"inputs": artifacts.encode({"image": asked}), "outputs": artifacts.encode(wrong)}
    artifacts.rewrite_manifest(folder, golden={**golden, "tolerance": {"cpu": 1e-5, "cuda": 1e-4}})
    with pytest.raises(ArtifactInvalid):
        deferred(fashion)


def test_only_what_is_worth_it_is_tried_with_its_time_on_this_machine(fashion, all_long):
    """What was measured elsewhere is scaled by the batch that was measured here too."""
    engine = deferred(fashion)
    here = engine.bucket_seconds[1]
    engine.plan({1: 0.5, 4: 1.0, 64: 9.0})
    assert (engine.pending, engine.is_planned) == ((4,), True)
    engine.prove_next()
    assert engine.bucket_seconds == pytest.approx({1: here, 4: 2 * here})
    assert engine.measured.seconds == engine.bucket_seconds


@pytest.mark.parametrize(("gain", "threaded_from", "count"), [(1.9, 1, 2), (1.1, None, 1)])
def test_all_batches_run_on_all_threads_where_they_share_the_work(
    fashion, all_long, monkeypatch, gain, threaded_from, count
):
    """Of a large file: the session that was opened for all threads stays, or is replaced by one for one thread."""
    monkeypatch.setattr(loading, "_LARGE_BYTES", 0)
    monkeypatch.setattr(loading, "thread_gain", lambda *_: (gain, 0.01))
    engine = deferred(fashion, threads=0, cores=2)
    assert engine.threaded_from == threaded_from
    assert engine._runner._session.get_session_options().intra_op_num_threads == count
    assert engine.structure == ""


def test_what_is_known_is_not_measured_again(fashion, all_long, monkeypatch):
    """Threads and sizes are taken over; every answer is proved all the same."""
    monkeypatch.setattr(loading, "thread_gain", pytest.fail)
    engine = deferred(fashion, threads=0, cores=2, known=Measured(None, 1, {1: 0.2, 8: 0.4}))
    assert (engine.threaded_from, engine.pending, engine.is_planned) == (1, (8,), True)
    engine.prove_next()
    assert engine.buckets == (1, 8)
    assert engine.bucket_seconds[8] == pytest.approx(2 * engine.bucket_seconds[1])


def test_threads_share_the_work_of_a_run():
    """Counted in CPU time: a run on the calling thread alone has a share of 1, and of little more beside others."""
    share, seconds = threads.thread_gain(lambda inputs: {"y": np.sort(np.tile(inputs["x"], 5000))}, INPUTS, 16)
    assert 0.5 < share < 1.8
    assert seconds > 0


def run(batch):
    return {"y": batch["x"] * 2}


def test_another_byte_keeps_a_batch_size_out():
    """The sizes behind it are tried all the same."""

    def other(batch):
        return {"y": batch["x"] * 2 + np.float32(len(batch["x"]) == 4)}

    profile = first_profile(other, INPUTS, BUCKETS)
    while profile.pending:
        profile = with_bucket(profile, other, INPUTS, taken=1e-3)
    assert profile.buckets == (1, 2, 8)
    assert profile.tried == BUCKETS
    assert profile.largest_deviation > 0


def test_answers_that_depend_on_the_neighbours_keep_it_out():
    """The same row at another place, among others, has to give the same bytes."""

    def leaking(batch):
        return {"y": batch["x"] * 2 + (batch["x"][::-1] if len(batch["x"]) > 1 else 0)}

    profile = with_bucket(first_profile(leaking, INPUTS, BUCKETS), leaking, INPUTS, taken=1e-3)
    assert profile.buckets == (1,)


def test_sizes_are_tried_upward_while_a_row_gets_cheaper(monkeypatch):
    """By the clock or in CPU time; the first that gains nothing ends it, and is not run on the golden rows."""
    runs = []

    def counted(batch):
        runs.append(len(batch["x"]))
        return run(batch)

    for seconds, buckets in {
        (0.010, 0.018, 0.035, 0.060): (1, 2),
        (0.010, 0.012, 0.020, 0.039): (1, 2, 4),
        (0.010, 0.020, 0.020, 0.020): (1,),
        (0.100, 0.150, 0.200, 0.300): (1, 2, 4),  # 8 would take too long
    }.items():
        cost = dict(zip(BUCKETS, seconds, strict=True))
        monkeypatch.setattr("foldserve.service.engines.buckets.Times", lambda cost=cost: Fixed(cost))
        profile = first_profile(counted, INPUTS, BUCKETS)
        while profile.pending:
            profile = with_bucket(profile, counted, INPUTS)
        assert profile.buckets == buckets
        assert set(profile.seconds) == set(buckets)


class Fixed:
    """Stands in for the times of runs."""

    def __init__(self, cost) -> None:
        self.cost, self.rows = cost, 0

    def of(self, run):
        def noted(batch):
            self.rows = len(batch["x"])
            return run(batch)

        return noted

    @property
    def seconds(self):
        return [self.cost[self.rows]]

    def median(self):
        return self.cost[self.rows]

    least_cpu = median
