"""The documentation site in a real browser: nothing is asked of another host, and diagrams are drawn."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

SITE = Path(__file__).parents[2] / "site"


@pytest.fixture
def site() -> Iterator[str]:
    """The address at which the built site is served; skipped where it is not built."""
    if not (SITE / "index.html").is_file():
        pytest.skip("needs the built site: make docs")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("page", ["", "publish/", "architecture/", "settings/"])
def test_a_page_asks_no_other_host(browser: Any, site: str, page: str) -> None:
    """Scripts, fonts, pictures and search come from the site itself."""
    visitor = browser.new_page()
    asked: list[str] = []
    visitor.on("request", lambda request: asked.append(request.url))
    visitor.goto(f"{site}/{page}", wait_until="networkidle")
    assert visitor.title()
    assert asked
    assert [url for url in asked if not url.startswith((site, "data:", "blob:"))] == []
    visitor.close()


def test_the_drawings_are_drawn(browser: Any, site: str) -> None:
    """Both of the architecture page, as graphics and not as their source."""
    visitor = browser.new_page()
    visitor.goto(f"{site}/architecture/")
    drawn = "[...document.querySelectorAll('div.mermaid')].filter((drawing) => drawing.offsetHeight > 200).length === 2"
    visitor.wait_for_function(drawn)
    visitor.close()
