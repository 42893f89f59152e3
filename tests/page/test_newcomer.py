"""A newcomer's first minute: from the built wheel to a right answer on the page, in an environment of its own."""

import subprocess
import time

import pytest

from tests.support.processes import environment
from tests.test_wheel import built, project

__all__ = ["built", "project"]  # fixtures

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MOST_SECONDS = 90.0


def test_from_the_wheel_to_a_right_answer_on_the_page(project, visit):
    """`foldserve demo` of the installed wheel, its page in Chromium, a golden trouser: within 90 s."""
    started = time.monotonic()
    command = [str(project.programs / "foldserve"), "demo", "--port", "0", "--no-open"]
    process = subprocess.Popen(command, cwd=project.folder, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().split()[1]
        visit.go(url).take_sample(2)
        assert visit.said() == "Trouser"
        assert time.monotonic() - started < MOST_SECONDS
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()
