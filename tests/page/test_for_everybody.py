"""The page for whoever comes: both themes, a phone, a keyboard, a screen reader, a path prefix, no network but ours."""

import contextlib
import http.server
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.page.models import LONG_LABELS, LONG_NAME, photo
from tests.page.visit import Visit

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core, of the extra dev")
pytestmark = pytest.mark.browser

PHONE, DESK = {"width": 360, "height": 740}, {"width": 1200, "height": 900}
CONTROLS = ["model", "version", "other", "key-button", "API", "way", "pad", "brush", "shade", "undo", "clear"]
CONTROLS += ["language", "copy"]
FOCUSED = "document.activeElement.id || document.activeElement.name || document.activeElement.textContent.trim()"
SERIOUS = ("serious", "critical")


def use_everything(visit: Visit, url: str) -> None:
    """Each control once: the visit itself fails for what the policy blocks."""
    visit.go(url, "lenet-bn").take_sample(3)
    visit.settled().way("draw")
    visit.draw([(8, 8), (20, 20)])
    for button in ("undo", "clear", "copy"):
        visit.page.click(f"#{button}")
    visit.page.fill("#brush", "5")
    visit.page.fill("#shade", "60")
    visit.draw([(8, 8), (20, 20)])
    visit.way("camera")
    visit.page.click("#camera-start")
    visit.page.click("#camera-take")
    visit.settled().choose("model", "fashion")
    visit.drop(photo())
    visit.paste(photo(1))
    visit.settled().choose("other", "version:1")
    visit.choose("version", "version:1")
    visit.drop(b"no picture")
    assert visit.trouble()
    for language in ("python", "javascript", "curl"):
        visit.page.check(f"input[name=language][value={language}]")
    for model in ("regress", "multilabel", "embed", "tensors", "sum"):
        visit.choose("model", model)
        visit.take_sample()
        visit.settled()
        visit.way("json")
        visit.page.click("#json button[type=submit]")
        visit.settled()
    visit.page.click("summary") if visit.page.locator("summary").count() else None
    visit.page.click("#key-button")
    visit.page.keyboard.press("Escape")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_blocked_and_nothing_is_asked_elsewhere(browser, url, scheme):
    """While every control is used, in both themes: no violation of the policy, no other host, no error."""
    with Visit.of(browser, color_scheme=scheme) as visit:
        use_everything(visit, url)
        kinds = {address.split("?")[0].rsplit(".", 1)[-1] for address in visit.asked if "/static/" in address}
        assert kinds == {"css", "js", "svg"}


def test_what_the_policy_blocks_is_noticed(visit, url):
    """A style that is written into the page is blocked, and would fail the visit: the test above is not blind."""
    visit.go(url).page.evaluate("document.body.setAttribute('style', 'color: red')")
    assert visit.page.evaluate("blocked.splice(0)") == ["style-src-attr inline"]


@pytest.mark.parametrize(("scheme", "size"), [("light", "desk"), ("dark", "phone")])
def test_axe_finds_no_serious_fault(browser, url, scheme, size):
    """axe-core looks at the page as it opens, at each way to ask, at answers, and at a refusal."""
    with Visit.of(browser, color_scheme=scheme, **({"viewport": PHONE} if size == "phone" else {})) as visit:
        visit.go(url, "fashion")
        assert faults(visit) == []
        for way in ("draw", "camera", "json", "picture"):
            visit.way(way)
            assert faults(visit) == [], way
        visit.take_sample()
        visit.settled().choose("other", "version:1")
        assert faults(visit) == []
        visit.drop(b"no picture")
        visit.trouble()
        assert faults(visit) == []
        visit.page.click("#key-button")
        assert faults(visit) == []
        visit.page.keyboard.press("Escape")
        visit.choose("model", "embed")
        visit.take_sample()
        visit.settled()
        assert faults(visit) == []


def faults(visit: Visit) -> list[str]:
    """What axe-core calls serious or worse, with the elements."""
    found = axe.Axe().run(visit.page).response["violations"]
    return [
        f"{fault['id']}: {node['html'][:120]}"
        for fault in found
        if fault["impact"] in SERIOUS
        for node in fault["nodes"]
    ]


def test_axe_does_find_faults(visit, url):
    """A picture without words, planted, is found: the test above is not blind."""
    visit.go(url, "fashion").page.evaluate("document.querySelector('main').append(new Image())")
    assert [fault.split(":")[0] for fault in faults(visit)] == ["image-alt"]


def test_a_phone_shows_all_of_it(browser, url):
    """Nothing is wider than the screen, in each way and with two versions side by side."""
    with Visit.of(browser, viewport=PHONE, has_touch=True) as visit:
        visit.go(url, "fashion").take_sample()
        visit.settled().choose("other", "version:1")
        for way in ("draw", "camera", "json", "picture"):
            visit.way(way)
            assert visit.page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"], way
        visit.choose("model", "regress")
        field = visit.page.locator("input[name=field-1]").bounding_box()
        assert field["x"] + field["width"] <= PHONE["width"]
        assert visit.page.locator("input[name=field-1]").input_value() == "0.8079408"  # no digit more than float32 has


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_long_names_stay_on_the_screen_and_apart(browser, url, viewport):
    """The name of a model and those of its classes, as strangers choose them; each class can be told from the next."""
    with Visit.of(browser, viewport=viewport) as visit:
        visit.go(url, LONG_NAME).take_sample()
        assert visit.said() in LONG_LABELS
        assert visit.page.evaluate("document.scrollingElement.scrollWidth") <= viewport["width"]
        assert visit.page.locator("#model").bounding_box()["width"] <= viewport["width"] - 32
        names = visit.page.locator(".bars li > span:first-child")
        assert {names.nth(row).get_attribute("title") for row in range(4)} == set(LONG_LABELS)
        assert all(names.nth(row).bounding_box()["width"] > viewport["width"] / 6 for row in range(4))
        size = "parseFloat(getComputedStyle(document.querySelector('.headline')).fontSize)"
        assert visit.page.evaluate(size) <= 24
        visit.choose("model", "fashion")
        visit.drop(photo())
        visit.settled()
        assert visit.page.evaluate(size) >= 32


def test_a_keyboard_reaches_every_control(visit, url):
    """Tab alone goes through all that a pointer can use, in the order of the page."""
    visit.go(url, "fashion").way("draw")
    visit.page.click("h1")
    reached = []
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        reached.append(
            visit.page.evaluate(
                "document.activeElement.id || document.activeElement.name || document.activeElement.textContent.trim()"
            )
        )
        if reached[-1] == "copy":
            break
    wanted = [
        "model",
        "version",
        "other",
        "key-button",
        "API",
        "way",
        "pad",
        "brush",
        "shade",
        "undo",
        "clear",
        "language",
        "copy",
    ]
    assert [name for name in reached if name in wanted] == wanted


def test_an_answer_is_read_out(visit, url):
    """It stands in a live region that is read as a whole, refusals in an alert; pictures have words."""
    visit.go(url, "lenet-bn").take_sample(2)
    visit.settled().page.wait_for_selector("#preview[src]")
    live = visit.page.locator("#said")
    assert (live.get_attribute("aria-live"), live.get_attribute("aria-atomic")) == ("polite", "true")
    assert live.inner_text().startswith("Trouser")
    assert visit.page.locator("#trouble").get_attribute("role") == "alert"
    assert "28 by 28 pixels" in visit.page.locator("#preview").get_attribute("alt")


def test_the_proof_is_that_of_the_service(visit, url):
    """Golden answers, error, accuracy and fold, in words, with the numbers of the route."""
    proof = httpx.get(f"{url}/v2/models/lenet-bn/versions/1/proof").json()
    facts = visit.go(url, "lenet-bn").text("#facts")
    assert "Answers as the trained network did: 16 of 16 golden inputs, largest error" in facts
    assert f"{proof['golden']['largest_error']:.1e}".split("e")[0] in facts
    assert "Right on 89.21 % of 10,000 test inputs." in facts
    assert "4 norms folded into the weights, none stayed." in facts
    assert proof["sha256"] in facts


def test_the_page_works_below_a_path_prefix(visit, url):
    """Behind a proxy that hands a path on, everything is asked below it, and the code names the prefix too."""
    with prefixed(url, "/team/models/") as address:
        visit.go(address, "lenet-bn").take_sample(2)
        assert visit.said() == "Trouser"
        assert f"{address}predict?" in visit.page.locator("#snippet").text_content()
    assert all(asked.startswith((address, "blob:")) for asked in visit.asked)


@contextlib.contextmanager
def prefixed(url: str, prefix: str) -> Iterator[str]:
    """A proxy that passes on what is asked below a prefix, without it, and answers 404 for all else."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if not self.path.startswith(prefix):
                self._answer(404, {}, b"")
                return
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
            }
            target = f"{url}/{self.path.removeprefix(prefix)}"
            with httpx.Client(trust_env=False) as client:
                answer = client.request(
                    self.command, target, content=body, headers=headers | {"Accept-Encoding": "identity"}
                )
            self._answer(answer.status_code, answer.headers, answer.content)

        do_POST = do_GET

        def _answer(self, status: int, headers: object, body: bytes) -> None:
            self.send_response(status)
            for name, value in dict(headers).items():
                if name not in ("content-length", "date", "connection"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
    finally:
        server.shutdown()
        server.server_close()
