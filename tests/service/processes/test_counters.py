"""Numbers that several processes count: what each reads is what all have counted."""

import subprocess
import sys

import pytest

from foldserve.service.processes.counters import Counters

# A process that counts, and is killed.
KILLED = """
import os, pathlib, signal, sys
from foldserve.service.processes.counters import Counters
counters = Counters(3, pathlib.Path(sys.argv[1]), maxima=[2])
counters.add([1, 0.5, 7])
counters.own[0] += 10
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_totals_are_those_of_all_processes_also_of_killed_ones(tmp_path):
    """Sums, and the largest where that is what counts; what one has counted is in the file at once."""
    ours = Counters(3, tmp_path / "counts", maxima=[2])
    ours.add([2, 0.25, 3])
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "counts")], timeout=60)
        assert killed.returncode < 0
    assert list(ours.own) == [2, 0.25, 3]
    assert ours.totals() == [24, 1.25, 7]


def test_what_has_left_is_counted_no_more(tmp_path):
    """A version that was unloaded takes its counts along; what is begun again begins at zero."""
    counters = Counters(2, tmp_path)
    (tmp_path / "other").write_bytes(bytes(8))  # of another size: somebody else's, or half written
    counters.add([1, 2])
    assert counters.totals() == [1, 2]
    counters.add([2, 2])
    again = Counters(2, tmp_path)  # a version that is loaded again while its first session is still busy
    assert again.totals() == [3, 4]
    counters.close()
    assert again.totals() == [0, 0]


def test_one_process_alone_needs_no_folder():
    """The same numbers, in memory."""
    counters = Counters(2, maxima=[1])
    counters.add([1, 5])
    counters.add([1, 4])
    assert counters.totals() == [2, 5]
    counters.close()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    """The caller decides whether it goes on without."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        Counters(1, tmp_path / "file" / "counts")
