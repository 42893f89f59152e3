"""The sum of all bodies is bounded, and every byte is given back."""

import asyncio

import pytest

from foldserve.service.bodies.budget import BodyBudget, Share
from foldserve.service.errors import Overloaded
from tests.support.wire import on_loop


def test_the_sum_of_all_requests_is_bounded():
    """Two requests share 100 bytes; the byte that would be the 101st is refused, and only that request fails."""
    budget = BodyBudget(100)
    with budget.hold() as first:
        first.add(60)
        with pytest.raises(Overloaded, match="60 bytes are held"), budget.hold() as second:
            second.add(41)
        with budget.hold() as third:
            third.add(40)
            assert budget.held_bytes == 100
    assert budget.held_bytes == 0


def test_a_request_that_fails_gives_back_what_it_held():
    """Whatever ends a request, its bytes are free again."""
    budget = BodyBudget(100)

    def fail() -> None:
        with budget.hold() as share:
            share.add(100)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert budget.held_bytes == 0


def arriving(budget: BodyBudget, address: str, size: int) -> tuple[Share, list[str]]:
    """A body that arrives, and what is written once it is given up."""
    share, given_up = Share(budget, address), []
    share.offer(lambda: given_up.append(address))
    share.add(size)
    return share, given_up


def test_one_address_may_hold_all_while_no_other_wants_any():
    """Nothing is kept free for those who do not come; its own next byte is refused."""
    budget = BodyBudget(100)
    first, given_up = arriving(budget, "a", 60)
    second, _ = arriving(budget, "a", 40)
    with pytest.raises(Overloaded):
        second.add(1)
    assert (first.held_bytes, given_up) == (60, [])


def test_the_largest_holder_gives_way_to_another_address():
    """Its largest body goes, and no more of them than needed."""
    budget = BodyBudget(100)
    large, large_given_up = arriving(budget, "a", 60)
    _, small_given_up = arriving(budget, "a", 40)
    other, _ = arriving(budget, "b", 30)
    assert (large.held_bytes, large_given_up, small_given_up) == (0, ["a"], [])
    assert (budget.held_bytes, other.held_bytes) == (70, 30)


def test_nobody_takes_more_than_it_gives():
    """An address that would then hold the most itself is refused; two that hold the same leave each other alone."""
    budget = BodyBudget(100)
    arriving(budget, "a", 50)
    share, _ = arriving(budget, "b", 50)
    with pytest.raises(Overloaded):
        share.add(1)


def test_a_whole_body_is_not_given_up():
    """It is being answered, and gives its bytes back soon."""
    budget = BodyBudget(100)
    share, given_up = arriving(budget, "a", 100)
    share.keep()
    with pytest.raises(Overloaded):
        arriving(budget, "b", 1)
    assert given_up == []


@on_loop
async def test_a_body_that_stalls_is_ended_where_it_waits():
    """The application waits for bytes that do not come; what ends it says why."""
    budget = BodyBudget(100)
    with budget.hold("a") as stalled:

        async def receive() -> None:
            async with stalled.receiving():
                stalled.add(100)
                await asyncio.Event().wait()

        waiting = asyncio.create_task(receive())
        await asyncio.sleep(0)
        with budget.hold("b") as other:
            other.add(10)
            with pytest.raises(Overloaded, match="others needed the room"):
                await waiting
    assert (budget.held_bytes, budget.arriving, budget.by_address) == (0, set(), {})
