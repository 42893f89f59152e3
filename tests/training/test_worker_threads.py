"""Threads that share out a batch: order, what each of them inherits, and what is left when one fails."""

import threading

import pytest
import torch

from foldserve.training.device import flushed_denormals, is_flushing_denormals
from foldserve.training.worker_threads import MOST, WorkerThreads


def test_results_come_in_the_order_of_the_parts():
    """Even when a later part is done first: the first waits here until the last one has run."""
    threads, last_is_done = WorkerThreads(3), threading.Event()

    def work(part):
        if part == 2:
            last_is_done.set()
        assert last_is_done.wait(timeout=30)
        return 10 * part

    with threads.open():
        assert threads.map(work, [0, 1, 2]) == [0, 10, 20]


def test_each_part_has_a_thread_of_its_own_while_open_and_the_calling_one_otherwise():
    """The calling thread takes the first part; outside the block there is no other."""
    threads, here = WorkerThreads(2), threading.get_ident()
    both_run = threading.Barrier(2)

    def meet(_):
        both_run.wait(timeout=30)
        return threading.get_ident()

    with threads.open():
        assert threads.count == 2
        first, second = threads.map(meet, [0, 1])
    assert first == here != second
    assert threads.count == 1
    assert threads.map(lambda _: threading.get_ident(), [0, 1]) == [here, here]


@pytest.mark.parametrize("threads", [1, 2])
def test_every_thread_computes_as_the_calling_one_does(threads):
    """One thread of PyTorch's each, no gradients, and subnormal numbers flushed where the caller flushes them."""
    threads = WorkerThreads(threads)

    def state(_):
        return torch.get_num_threads(), torch.is_grad_enabled(), is_flushing_denormals()

    with flushed_denormals(), threads.open():
        assert threads.map(state, [0, 1]) == [(1, False, True)] * 2
    with threads.open():
        assert threads.map(state, [0, 1]) == [(1, False, False)] * 2


def test_takes_as_many_threads_as_pytorch_has_and_gives_them_back():
    """PyTorch's own operations take one each meanwhile, so that no core has two masters."""
    torch.set_num_threads(2)
    threads = WorkerThreads()
    with threads.open():
        assert (threads.count, torch.get_num_threads()) == (2, 1)
    assert (threads.count, torch.get_num_threads()) == (1, 2)


def test_a_part_that_fails_is_heard_and_the_threads_end():
    """The error of another thread reaches the caller, and the number of threads is restored."""
    torch.set_num_threads(2)
    threads, before = WorkerThreads(), threading.active_count()
    with pytest.raises(ZeroDivisionError), threads.open():
        threads.map(lambda part: 1 / part, [1, 0])
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


def test_a_machine_with_many_cores_opens_no_more_threads_than_a_batch_feeds():
    """With one row for each of sixty threads the meetings would cost more than the work."""
    torch.set_num_threads(2 * MOST)
    threads = WorkerThreads()
    with threads.open():
        assert threads.count == MOST
    assert torch.get_num_threads() == 2 * MOST
