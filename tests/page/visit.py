"""What a visitor does with the page, in the words of the page."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

# What the policy blocks, and the bodies that are sent: Chromium does not tell those of files to a debugger.
LISTEN = """
window.blocked = []; window.bodies = []; const fetched = window.fetch;
addEventListener('securitypolicyviolation', event => blocked.push(`${event.violatedDirective} ${event.blockedURI}`));
window.fetch = (target, options) => { bodies.push([String(target), options?.body]); return fetched(target, options); };
"""
HELD = """
const bytes = Uint8Array.from(atob(given.b64), letter => letter.charCodeAt(0)), held = new DataTransfer();
held.items.add(new File([bytes], given.name, {type: given.type}));
const event = {dataTransfer: held, clipboardData: held, bubbles: true, cancelable: true};
"""
LAST_BODY = """async () => {
  const body = new Blob([bodies.findLast(([target]) => target.includes('/predict'))[1]]);
  const letters = new Uint8Array(await body.arrayBuffer()).reduce((text, byte) => text + String.fromCharCode(byte), '');
  return btoa(letters);
}"""


@dataclass
class Visit:
    """A browser window.

    Attributes:
        page: of playwright.
        asked: addresses that it asked for.
        errors: that the page's own code raised.
    """

    page: Any
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(cls, browser: Any, **options: Any) -> Iterator["Visit"]:
        """A visit that has to end without a violation of the policy, an error, or a request to another host."""
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        page = context.new_page()
        page.set_default_timeout(15_000)
        visit = cls(page)
        page.add_init_script(LISTEN)
        page.on("request", lambda request: visit.asked.append(request.url))
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        yield visit
        assert page.evaluate("window.blocked ?? []") == []
        assert visit.errors == []
        hosts = {urlsplit(address).netloc for address in visit.asked if not address.startswith("blob:")}
        assert hosts <= {urlsplit(page.url).netloc}
        context.close()

    def go(self, url: str, model: str | None = None) -> "Visit":
        """Open the page, and choose a model."""
        self.page.goto(url)
        self.settled().page.wait_for_selector("#facts dl")
        if model is not None:
            self.choose("model", model)
        return self

    def choose(self, what: str, value: str) -> None:
        """Choose a model, a version, or one to compare with, and wait for what is shown of it."""
        self.page.select_option(f"#{what}", value)
        self.settled()

    def way(self, name: str) -> None:
        """Choose how to ask."""
        self.page.check(f"input[name=way][value={name}]")

    def drop(self, data: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
        """Drop a file onto the page."""
        self._give(data, name, kind, "document.getElementById('drop').dispatchEvent(new DragEvent('drop', event))")

    def paste(self, data: bytes, kind: str = "image/png") -> None:
        """Paste a picture."""
        self._give(data, "image.png", kind, "document.dispatchEvent(new ClipboardEvent('paste', event))")

    def _give(self, data: bytes, name: str, kind: str, script: str) -> None:
        given = {"b64": base64.b64encode(data).decode(), "name": name, "type": kind}
        self.page.evaluate(f"given => {{ {HELD} {script} }}", given)

    def sent(self) -> bytes:
        """The body that was sent last to be answered."""
        return base64.b64decode(self.page.evaluate(LAST_BODY))

    def take_sample(self, number: int = 0) -> None:
        """Click one of the samples."""
        self.page.locator("#strip button").nth(number).click()

    def draw(self, *strokes: list[tuple[float, float]]) -> None:
        """Draw lines with the pointer; places in pixels of a model of 28 x 28."""
        box, mouse = self.page.locator("#pad").bounding_box(), self.page.mouse
        for stroke in strokes:
            places = [(box["x"] + x / 28 * box["width"], box["y"] + y / 28 * box["height"]) for x, y in stroke]
            mouse.move(*places[0])
            mouse.down()
            for place in places[1:]:
                mouse.move(*place, steps=6)
            mouse.up()

    def settled(self) -> "Visit":
        """Wait until the page waits for nothing."""
        self.page.wait_for_selector("main[aria-busy=false]")
        return self

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self.page.locator(selector).inner_text().strip()

    def said(self) -> str:
        """The headline of the answer."""
        return self.settled().page.locator(".headline span").first.inner_text()

    def trouble(self) -> str:
        """The sentence of what was refused."""
        self.page.wait_for_selector("#trouble:not([hidden])")
        return self.text("#trouble")

    def shown_pixels(self, image: str) -> list[int]:
        """The pixels of a picture on the page, RGBA, at its own size."""
        script = """async image => {
          await image.decode();
          const canvas = document.createElement('canvas');
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          const context = canvas.getContext('2d');
          context.drawImage(image, 0, 0);
          return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
        pixels: list[int] = self.page.locator(image).evaluate(script)
        return pixels
