"""Finished measurements in one file, by one process or several."""

import multiprocessing

import pytest

from foldserve.training.errors import ArtifactError
from foldserve.training.studies.store import Store


def test_the_store_keeps_what_it_was_given_and_replaces_the_same_key(tmp_path):
    """Read back in order by another object; an addition under a known key takes its place."""
    store = Store(tmp_path / "deep" / "runs.jsonl")
    assert store.read() == {}
    for key, value in (("a/0", 1), ("b/0", 2), ("a/0", 3)):
        store.add(key, {"value": value})
    assert [(key, entry["value"]) for key, entry in Store(store.path).read().items()] == [("a/0", 3), ("b/0", 2)]
    assert [path.name for path in store.path.parent.iterdir()] == ["runs.jsonl"]


def test_the_store_refuses_a_file_of_something_else(tmp_path):
    """The message names the file and what to do."""
    path = tmp_path / "runs.jsonl"
    path.write_text("hello\n")
    with pytest.raises(ArtifactError, match="expected one measurement a line"):
        Store(path).read()


def _add_many(path, worker):
    for number in range(10):
        Store(path).add(f"{worker}/{number}", {})


def test_processes_that_add_at_once_lose_nothing(tmp_path):
    """Two writers with ten additions each leave twenty."""
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(path, worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(Store(path).read()) == 20
