"""A real browser at a real service."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.page.models import publish_all
from tests.page.visit import Visit
from tests.support.operator import running

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",  # containers forbid the sandbox; nothing is visited but this test's own service
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP *.test 127.0.0.1",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium; skipped where there is none, unless PAGE_TEST says that there has to be one."""
    path = next(filter(None, (os.environ.get("CHROMIUM"), *map(shutil.which, NAMES))), None)
    if path is None and os.environ.get("PAGE_TEST"):
        pytest.fail(f"no browser: expected one of {', '.join(NAMES)}, or its path in CHROMIUM")
    if path is None:
        pytest.skip("needs a Chromium; `make page-test` insists on one")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, and one for each thing that the page has to show."""
    return publish_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def url(models: Path) -> Iterator[str]:
    """The address of a service that everybody may ask; its operator had a version loaded that is not the latest."""
    with running(models, allowed_hosts=("plain.test",)) as operator:
        operator.done("models/fashion/load", version=1)
        yield str(operator.base_url).rstrip("/")


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """A visitor with a fresh browser, who has not gone anywhere yet."""
    with Visit.of(browser) as visit:
        yield visit
