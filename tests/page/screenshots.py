"""Pictures of the page for documents: `python -m tests.page.screenshots` writes docs/images/page-*.png.

The shipped model answers a golden sample and a drawing, in both themes, on a desk and on a phone. Needs a Chromium, and
looks best with the font Inter (Debian's fonts-inter).
"""

import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from tests.page.conftest import NAMES
from tests.page.test_asking import TROUSER
from tests.page.visit import Visit
from tests.support.live import serve

FOLDER = Path(__file__).parents[2] / "docs/images"
MOST_BYTES = 150_000
DESK, PHONE = {"width": 1160, "height": 1000}, {"width": 390, "height": 844}


def main() -> None:
    """Write every picture."""
    path = next(filter(None, map(shutil.which, NAMES)))
    FOLDER.mkdir(exist_ok=True)
    app = create_app(Settings(models_dir=Path("models"), provider="cpu", buckets=(1,)))
    with serve(app) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            shoot(browser, url, f"page-{scheme}", scheme, DESK, draws=scheme == "dark")
            shoot(browser, url, f"page-{scheme}-phone", scheme, PHONE, draws=scheme == "light")
        browser.close()


def shoot(browser: Any, url: str, name: str, scheme: str, viewport: dict[str, int], *, draws: bool) -> None:
    """Write one picture of the page after an answer."""
    with Visit.of(browser, color_scheme=scheme, viewport=viewport, device_scale_factor=1.5) as visit:
        visit.go(url)
        for _ in range(5):  # the first requests wait for what is imported late
            visit.take_sample(3)
            visit.settled()
        if draws:
            visit.way("draw")
            visit.draw(*TROUSER)
            visit.page.wait_for_selector("#preview[src]")
        visit.page.wait_for_timeout(600)
        visit.settled().page.evaluate("document.activeElement.blur()")
        write(name, visit.page.screenshot())


def write(name: str, png: bytes) -> None:
    """Write a picture with few colours, which is all that the page has."""
    few = Image.open(io.BytesIO(png)).convert("RGB").quantize(255, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    path = FOLDER / f"{name}.png"
    few.save(path, optimize=True)
    assert path.stat().st_size <= MOST_BYTES, f"{path} has {path.stat().st_size} bytes, expected at most {MOST_BYTES}"
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
