"""The pages that are made from the code say what the code says.

Whoever changes a setting, a route or a public name writes them anew with `make reference`.
"""

from pathlib import Path

import pytest

from tests.support.reference import PAGES

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_as_the_code_has_it(page):
    """Every name, default and meaning, and no others."""
    assert (DOCS / page).read_text() == PAGES[page]()


if __name__ == "__main__":
    for page, make in PAGES.items():
        (DOCS / page).write_text(make())
