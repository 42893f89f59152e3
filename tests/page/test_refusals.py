"""Whatever the service refuses is shown in its own sentence, and the page goes on working."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from foldserve.service.app import create_app
from foldserve.service.keys import new_key
from foldserve.service.settings import Settings
from tests.page.models import photo
from tests.support import artifacts
from tests.support.live import serve
from tests.support.operator import publish, running

pytestmark = pytest.mark.browser

PNG = {"Content-Type": "image/png"}


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A folder with one model in one version."""
    publish(tmp_path / "models", 1)
    return tmp_path / "models"


@contextlib.contextmanager
def keyed(models: Path, **changes: object) -> Iterator[tuple[str, dict[str, str]]]:
    """A service closed in every scope; its address, and a key for everything and one for reading alone."""
    made = {"all": new_key("all", ["infer", "read"]), "reader": new_key("reader", ["read"])}
    (models.parent / "keys").write_text("\n".join(line for _, line in made.values()) + "\n")
    closed = {"keys_file": models.parent / "keys", "closed_scopes": ("infer", "metrics", "read")}
    settings = Settings(models_dir=models, provider="cpu", buckets=(1, 4), poll_seconds=0, **closed, **changes)
    with serve(create_app(settings)) as url:
        yield url, {name: key for name, (key, _) in made.items()}


def give(visit, key: str) -> None:
    """Type a key where the page asks for one."""
    visit.page.wait_for_selector("#key-dialog[open]")
    visit.page.fill("#key", key)
    visit.page.click("#key-form button[value=use]")


@pytest.mark.parametrize(
    ("data", "kind"), [(b"no picture at all", "image/png"), (photo()[:90], "image/png"), (photo(), "image/webp")]
)
def test_a_file_that_is_no_picture_is_refused_in_the_services_words(visit, url, data, kind):
    """Damaged, cut off, or of a type that is not taken: status and sentence are those of the answer."""
    answer = httpx.post(f"{url}/predict?model=flowers", content=data, headers={"Content-Type": kind})
    visit.go(url, "flowers").drop(photo())
    known, code = visit.said(), visit.text("#snippet")
    visit.drop(data, "broken.png", kind)
    assert visit.trouble() == f"{answer.status_code} {answer.json()['error']}"
    if data == b"no picture at all":  # nothing to be shown: the place for a picture is empty again
        visit.page.wait_for_selector("#invitation:not([hidden])")
        assert visit.page.locator("#shown").is_hidden()
    assert visit.page.locator("#details").is_hidden()  # of the answer before
    assert known not in visit.text("#said")
    assert visit.text("#snippet") != code
    visit.drop(photo())
    assert visit.said() == known
    assert visit.page.locator("#trouble").is_hidden()


def test_a_picture_that_is_too_large_is_413(visit, fashion):
    """The service says how many bytes it takes."""
    with serve(create_app(Settings(models_dir=fashion, provider="cpu", buckets=(1,), max_body_bytes=4_000))) as url:
        visit.go(url).drop(photo(size=(300, 300)))
        assert visit.trouble().startswith("413 body: ")
        assert "4000" in visit.trouble()


def test_a_service_without_room_is_503(visit, fashion):
    """More bytes than all bodies together may take; the answer says when to try again."""
    with serve(create_app(Settings(models_dir=fashion, provider="cpu", buckets=(1,), max_buffered_bytes=4_000))) as url:
        visit.go(url).drop(photo(size=(300, 300)))
        assert visit.trouble().startswith("503 ")
        assert "Try again in" in visit.trouble()


def test_a_key_is_asked_for_and_kept_in_memory_alone(visit, fashion):
    """Without one nothing is shown; a wrong one is refused; the right one opens all, and is written down nowhere."""
    with keyed(fashion) as (url, keys):
        visit.page.goto(url)
        visit.page.wait_for_selector("#key-dialog[open]")
        assert visit.text("#key-reason").startswith("no API key, expected one as")
        give(visit, "wrong")
        visit.page.wait_for_selector("#key-reason:has-text('not known')")
        give(visit, keys["all"])
        visit.page.wait_for_selector("#facts dl")
        visit.take_sample()
        assert visit.said() in artifacts.LABELS
        assert "$FOLDSERVE_KEY" in visit.page.locator("#snippet").text_content()
        assert keys["all"] not in visit.page.content()
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        assert visit.page.evaluate(kept) == f'[{{}},{{}},"","{url}/"]'
        visit.page.reload()
        visit.page.wait_for_selector("#key-dialog[open]")
        visit.page.click("#key-form button[value=none]")
        assert visit.trouble().startswith("401 no API key, expected one as")
        assert visit.text("#said") == "With a key that may read, this page shows what is served."
        assert not any(visit.page.locator(part).is_visible() for part in ("#question", "footer", "#model"))


def test_a_key_for_reading_alone_may_not_ask(visit, fashion):
    """The facts are shown; a question is 403, with what the key lacks."""
    with keyed(fashion) as (url, keys):
        visit.page.goto(url)
        give(visit, keys["reader"])
        visit.page.wait_for_selector("#facts dl")
        visit.take_sample()
        assert visit.trouble().startswith("403 key 'reader' lacks the scope infer")


def test_a_key_that_asks_too_often_has_to_wait(visit, fashion):
    """Questions in a row are 429 with the seconds to wait; what the page shows by itself waits for its turn."""
    with keyed(fashion, key_rate=3) as (url, keys):
        visit.page.goto(url)
        give(visit, keys["all"])
        visit.page.wait_for_selector("#facts dl")
        visit.page.evaluate("document.querySelectorAll('#strip button').forEach(button => button.click())")
        visit.page.wait_for_selector("#trouble:has-text('429 key')")
        assert "requests a second; wait" in visit.trouble()


def test_a_service_in_doubt_is_shown_as_not_ready_until_it_is(visit, fashion):
    """The reason is that of ready; the page asks again by itself, and shows the model once it answers."""
    with running(fashion) as operator:
        operator.app.state.registry.doubt("fashion", "its golden answers changed")
        visit.page.goto(str(operator.base_url))
        assert visit.trouble() == "503 not ready: its golden answers changed"
        assert visit.text("#said") == "This page asks again by itself."
        assert not any(visit.page.locator(part).is_visible() for part in ("#question", "footer", "#version", "#other"))
        operator.app.state.registry.doubt("fashion", None)
        visit.page.wait_for_selector("#facts dl")
        visit.settled()
        assert visit.page.locator("#trouble").is_hidden()
        operator.app.state.registry.doubt("fashion", "it changed again")
        visit.take_sample()
        assert visit.trouble() == "503 not ready: it changed again. Try again in 1 s."


def test_a_version_that_goes_live_meanwhile_is_shown(visit, fashion):
    """Asked again after a swap, the page says which version answered, and shows the facts of that one."""
    with running(fashion) as operator:
        visit.go(str(operator.base_url)).take_sample()
        visit.settled()
        assert "fashion, version 1" in visit.text("#facts")
        publish(fashion, 2)
        operator.done("models/fashion/load")
        visit.take_sample(1)
        visit.page.wait_for_selector("#news:has-text('Version 2 answers now.')")
        assert "fashion, version 2" in visit.settled().text("#facts")
        assert visit.page.locator("#version").input_value() == "label:latest"


def test_a_version_that_was_unloaded_is_named(visit, fashion):
    """A number that was chosen and is gone is refused in the service's sentence."""
    publish(fashion, 2)
    with running(fashion) as operator:
        operator.done("models/fashion/load", version=1)
        visit.go(str(operator.base_url)).choose("version", "version:1")
        operator.done("models/fashion/unload")
        expected = operator.get("/v2/models/fashion/versions/1").json()["error"]
        visit.take_sample()
        assert visit.trouble().startswith(f"503 {expected}")


def test_a_service_that_went_away_is_waited_for(visit, fashion):
    """No answer at all is said in plain words; when it is back the page shows it without being told."""
    settings = Settings(models_dir=fashion, provider="cpu", buckets=(1,))
    with Door() as door:
        with serve(create_app(settings)) as url:
            door.leads_to(url)
            visit.go(door.url).take_sample()
            visit.settled()
        visit.take_sample(1)
        assert visit.trouble().startswith("The service did not answer")
        with serve(create_app(settings)) as url:
            door.leads_to(url)
            visit.take_sample(1)
            assert visit.said() in artifacts.LABELS


class Door:
    """A port that stays while services behind it come and go: it passes bytes on, or closes the connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port: int | None = None
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "Door":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def leads_to(self, url: str) -> None:
        """Pass new connections on to this service."""
        self._port = int(url.rsplit(":", 1)[1])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                try:
                    service = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    client.close()
                    continue
                for source, target in ((client, service), (service, client)):
                    threading.Thread(target=_pass_on, args=(source, target), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError), source, target:
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
