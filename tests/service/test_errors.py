"""The error tree as a closed set."""

import re
from http import HTTPStatus

import pytest

from foldserve.service import errors
from foldserve.service.errors import (
    MethodNotAllowed,
    NotReady,
    Overloaded,
    RequestError,
    ServerError,
    ServiceError,
    StartError,
)
from tests.support.error_classes import tree

SPOKEN = {400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 431, 500, 501, 503, 504}


def test_every_error_has_one_of_the_services_statuses():
    """No error can be answered with a status that the documentation does not list."""
    assert {error.status for error in tree()} == SPOKEN


def test_theirs_are_4xx_and_ours_are_5xx():
    """The status says whose mistake it was, and agrees with the branch of the tree."""
    for error in tree() - {ServiceError} - tree(StartError):
        is_theirs = issubclass(error, RequestError)
        assert is_theirs != issubclass(error, ServerError) or error.__name__.startswith("_"), error
        assert error.__name__.startswith("_") or (error.status < 500) == is_theirs, error


def test_the_drawing_shows_the_tree():
    """Every public class stands in the module's docstring with its own status."""
    drawn = dict(re.findall(r"── (\w+)(?:\s+(\d{3}))?", errors.__doc__ or ""))
    for error in tree() - {ServiceError}:
        if not error.__name__.startswith("_"):
            assert error.__name__ in drawn
            assert drawn[error.__name__] in ("", str(error.status)), error
    assert set(drawn) == {error.__name__ for error in tree() - {ServiceError} if not error.__name__.startswith("_")}


@pytest.mark.parametrize("error", [Overloaded, NotReady, errors.TooManyRequests])
def test_who_is_sent_away_hears_when_to_come_back(error):
    """Retry-After is a whole number of seconds, at least one, as HTTP wants it."""
    assert error("busy", 7).headers == {"Retry-After": "7"}
    assert error("busy", 0).headers == {"Retry-After": "1"}


def test_a_wrong_method_hears_the_right_ones():
    """405 carries Allow, 401 carries the scheme."""
    assert MethodNotAllowed("no", ("GET", "HEAD")).headers == {"Allow": "GET, HEAD"}
    assert errors.Unauthorized("no").headers == {"WWW-Authenticate": "Bearer"}


def test_statuses_are_registered():
    """Each status is one that clients know."""
    assert {HTTPStatus(status) for status in SPOKEN}
