"""A cache whose keys a client chooses."""

from foldserve.service.bounded_dict import BoundedDict


def test_it_keeps_the_newest_entries_and_never_more_than_its_size():
    """A client that sends another key each time cannot make it grow, nor empty it at one stroke."""
    remembered: BoundedDict[int, str] = BoundedDict(3)
    for key in range(10):
        remembered[key] = str(key)
    assert remembered == {7: "7", 8: "8", 9: "9"}


def test_an_entry_that_is_written_again_drops_no_other():
    """A full cache stays full when a known key gets a new value."""
    remembered: BoundedDict[str, int] = BoundedDict(2)
    remembered["one"], remembered["two"], remembered["one"] = 1, 2, 3
    assert remembered == {"one": 3, "two": 2}
