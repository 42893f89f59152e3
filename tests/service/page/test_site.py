"""The files of the page: whole, from this service alone, under a strict policy, and not there on request."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from foldserve.service.app import create_app
from foldserve.service.page.site import FOLDER, HEADERS
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve

REFERENCE = re.compile(r'(?:src|href)="([^"]+)"|from "(\./[^"]+)"')
OTHERS = ("docs", "openapi.json")


@pytest.fixture(scope="module", params=[True, False], ids=["page", "no-page"])
def service(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bool, httpx.Client]]:
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    app = create_app(Settings(models_dir=root, provider="cpu", buckets=(1,), page=request.param))
    with serve(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        yield request.param, http


def referred(path: Path) -> list[str]:
    return [one or other for one, other in REFERENCE.findall(path.read_text())]


def test_the_page_is_at_the_root_or_not_there_at_all(service):
    """Without it the root leads to the description as before, and its files are not served; its routes stay."""
    is_shown, http = service
    root, script = http.get("/"), http.get("/static/page/page.js")
    assert root.status_code == (200 if is_shown else 307)
    assert script.status_code == (200 if is_shown else 404)
    if not is_shown:
        assert root.headers["location"] == "docs"
    assert http.get("/docs").status_code == 200
    assert http.get("/v2/models/fashion/versions/1/proof").status_code == 200


def test_a_browser_may_load_from_this_service_alone(service):
    """No source but the service's own, nothing inline, no frame; files are what they say."""
    is_shown, http = service
    if not is_shown:
        return
    answer = http.get("/", headers={"Range": "bytes=0-3"})
    assert answer.status_code == 200
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {source for sources in policy.values() for source in sources.split()} == {"'none'", "'self'", "blob:"}
    script = http.get("/static/page/page.js", headers={"Range": "bytes=0-3"})
    assert (script.status_code, script.content) == (200, (FOLDER / "page.js").read_bytes())
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["x-content-type-options"] == "nosniff"
    again = http.get("/static/page/page.js", headers={"If-None-Match": script.headers["etag"]})
    assert (again.status_code, script.headers["cache-control"]) == (304, "no-cache")


def test_every_file_is_used_and_every_reference_is_relative(service):
    """What the page and its modules name is served, below any path prefix; no file lies about unused."""
    is_shown, http = service
    if not is_shown:
        return
    named = {target for target in referred(FOLDER / "index.html") if target not in OTHERS}
    assert all(target.startswith("static/page/") for target in named)
    used = {target.removeprefix("static/page/") for target in named}
    used |= {target.removeprefix("./") for path in FOLDER.glob("*.js") for target in referred(path)}
    assert used | {"index.html"} == {path.name for path in FOLDER.iterdir()}
    assert all(http.get(f"/static/page/{name}").status_code == 200 for name in used)


def test_nothing_is_written_into_the_page():
    """No style or script inline, which the policy would block, and no address of another host but of a namespace."""
    text = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", text)
    everything = "".join(path.read_text() for path in FOLDER.iterdir())
    assert set(re.findall(r"https?://[^\s\"'`$]+", everything)) == {"http://www.w3.org/2000/svg"}


def test_the_page_is_small():
    """Read in one go by whoever wonders what it does: 80 kB together, no line of code wider than a screen."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 80_000
    assert all(len(line) <= 240 for path in FOLDER.glob("*.js") for line in path.read_text().splitlines())
