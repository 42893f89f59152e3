"""The sum of all bodies is bounded, and every byte is given back."""

import pytest

from foldserve.service.bodies.budget import BodyBudget
from foldserve.service.errors import Overloaded


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
