"""Each way to ask, in a real Chromium: what was given is sent as it is, and what the service answers is shown."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from foldserve.format.golden import read_golden
from foldserve.format.manifest import read_manifest
from foldserve.pictures import decode
from tests.page.models import COLUMNS, FLOWERS, photo
from tests.support.artifacts import LABELS

pytestmark = pytest.mark.browser

TROUSER = ([(11, 3), (10, 25)], [(17, 3), (18, 25)], [(11, 3), (17, 3), (17, 6), (11, 6), (11, 8), (17, 8)])


def answer_to(url: str, data: bytes, model: str = "flowers") -> dict:
    """What the service says to a picture without any browser."""
    sent = httpx.post(f"{url}/predict?model={model}", content=data, headers={"Content-Type": "image/png"})
    return sent.json()["predictions"][0]


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_picture_is_sent_byte_for_byte_and_its_classes_shown(visit, url, way):
    """The body is the file; the headline and the order of the bars are those of the service's own answer."""
    data, expected = photo(9), answer_to(url, photo(9))
    visit.go(url, "flowers")
    with visit.page.expect_request(lambda request: "/predict" in request.url) as sent:
        if way == "choose":
            visit.page.set_input_files("#file", {"name": "a b'c.png", "mimeType": "image/png", "buffer": data})
        else:
            getattr(visit, way)(data)
    assert visit.sent() == data
    assert sent.value.headers["content-type"] == "image/png"
    assert visit.said() == expected["label"]
    names = visit.page.locator(".bars li > span:first-child").all_inner_texts()
    order = np.argsort(-np.array(expected["probabilities"]), kind="stable")
    assert names == [("rose", "tulip", "daisy", "iris")[index] for index in order]


def test_what_the_model_saw_is_the_row_that_it_got(visit, url):
    """The preview holds the pixels of the recipe as Pillow makes them, not those of a browser's canvas."""
    visit.go(url, "flowers").drop(photo(9))
    visit.settled().page.wait_for_selector("#preview[src]")
    shown = np.array(visit.shown_pixels("#preview"), np.uint8).reshape(24, 32, 4)[..., :3]
    assert np.array_equal(shown.transpose(2, 0, 1), decode(photo(9), FLOWERS))
    assert "32 × 24 pixels, RGB" in visit.text("#recipe")


def test_a_model_of_any_size_sees_a_picture_at_its_own(visit, url):
    """Nothing is drawn for it; a picture keeps its size, and its preview has that one."""
    visit.go(url, "any").drop(photo(9, (50, 20)))
    visit.settled().page.wait_for_selector("#preview[alt*='50 by 20']")
    assert visit.page.locator("input[name=way][value=draw]").is_hidden()
    assert "any number of pixels, grey. A picture keeps its size." in visit.text("#recipe")


def test_a_drawn_trouser_is_a_trouser(visit, url):
    """Light on dark as the network was trained, sent at its size; the service inverts nothing, and says Trouser."""
    visit.go(url, "lenet-bn").way("draw")
    visit.draw(*TROUSER)
    assert visit.said() == "Trouser"
    shown = np.array(visit.shown_pixels("#preview"), np.uint8).reshape(28, 28, 4)
    assert shown[0, 0, 0] == 0  # the paper is dark
    assert shown[14, 10, 0] > 180  # a leg is light
    visit.page.click("#undo")
    visit.page.click("#clear")


def test_a_drawing_by_keyboard_is_asked_about(visit, url):
    """The space bar held down draws where the arrows lead; three cells of ink arrive."""
    visit.go(url, "lenet-bn").way("draw")
    visit.page.focus("#pad")
    keyboard = visit.page.keyboard
    keyboard.down("Space")
    for _ in range(3):
        keyboard.press("ArrowRight")
    keyboard.up("Space")
    visit.settled().page.wait_for_selector("#preview[src]")
    shown = np.array(visit.shown_pixels("#preview"), np.uint8).reshape(28, 28, 4)[..., 0]
    assert (shown[14, 14:17] > 200).all()
    assert shown[:, :10].max() == 0


def test_a_golden_sample_gets_its_golden_class(visit, url):
    """Each thumbnail says what the trained network says, and the service says the same."""
    golden = read_golden(read_manifest(Path("models/lenet-bn/1"))["golden"])
    visit.go(url, "lenet-bn")
    for number in (0, 5, 15):
        visit.take_sample(number)
        expected = LABELS[int(golden.outputs["class_id"][number, 0])]
        assert visit.said() == expected
        assert visit.page.locator("#strip img").nth(number).get_attribute("alt") == f"Sample: {expected}"


def test_the_camera_gives_a_picture(visit, url):
    """Chromium's own test picture, as a JPEG file; its light goes out when another way is chosen."""
    visit.go(url, "flowers").way("camera")
    visit.page.click("#camera-start")
    visit.page.wait_for_selector("#camera-take:enabled")
    visit.page.click("#camera-take")
    visit.page.wait_for_selector(".headline")
    assert visit.sent().startswith(b"\xff\xd8")
    assert visit.said() in ("rose", "tulip", "daisy", "iris")
    visit.way("picture")
    assert visit.page.evaluate("document.getElementById('video').srcObject") is None


def test_where_there_is_no_camera_its_control_says_why(visit, url):
    """A page over plain HTTP from another machine gets none: the reason is shown and nothing can be pressed."""
    visit.go(url.replace("127.0.0.1", "plain.test"), "flowers").way("camera")
    assert "HTTPS or from localhost" in visit.text("#camera-note")
    assert visit.page.locator("#camera-start").is_disabled()


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("multilabel", "labels"),
        ("regress", "4 values"),
        ("embed", "Length"),
        ("tensors", "second"),
        ("sum", "sum"),
    ],
)
def test_every_task_is_shown(visit, url, model, shown):
    """A sample of rows goes into fields or JSON, and its answer is shown in the form of the task."""
    visit.go(url, model).take_sample(1)
    assert shown in visit.settled().text("#said")
    assert "run" in visit.text("#spent")
    assert visit.page.locator("#saw").is_hidden()


def test_a_row_is_filled_in_field_by_field(visit, url):
    """The fields have the names of the columns; the answer is the row, as this model gives it back."""
    visit.go(url, "regress")
    assert [text.strip() for text in visit.page.locator("#fields label").all_inner_texts()] == list(COLUMNS)
    for index, value in enumerate((1.5, -2, 0.25, 4)):
        visit.page.fill(f"input[name=field-{index}]", str(value))
    visit.page.click("#row button[type=submit]")
    assert "1.5, -2, 0.25, 4" in visit.settled().page.locator(".numbers").inner_text()


def test_json_goes_to_the_route_that_takes_it(visit, url):
    """Instances to /predict, tensors of the protocol to the infer route; Ctrl + Enter asks."""
    visit.go(url, "embed").way("json")
    visit.page.fill("#body", '{"instances": [[1, 2, 2, 0], [0, 0, 3, 4]]}')
    visit.page.keyboard.press("Control+Enter")
    assert visit.settled().text("#said").count("Length") == 2
    assert "Length 3." in visit.text("#said")
    tensor = {"name": "row", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    visit.page.fill("#body", json.dumps({"inputs": [tensor]}))
    with visit.page.expect_request(lambda request: request.url.endswith("/infer")):
        visit.page.keyboard.press("Control+Enter")
    assert "[1,2,3,4]" in visit.settled().text("#said")


def test_two_versions_stand_side_by_side(visit, url):
    """Both answer the same question; where they differ it is said, with how far they are apart."""
    visit.go(url, "fashion").take_sample(2)
    visit.settled().choose("other", "version:1")
    assert visit.page.locator(".which").all_inner_texts() == ["Version 2", "Version 1"]
    sample = httpx.get(f"{url}/v2/models/fashion/versions/2/samples").json()["samples"][2]
    data = base64.b64decode(sample["b64"])
    two, one = (answer_to(url, data, f"fashion&version={version}") for version in (2, 1))
    apart = np.abs(np.array(two["probabilities"]) - np.array(one["probabilities"])).max()
    words = visit.text("#verdict")
    assert (f"Both say {two['label']}" if one["label"] == two["label"] else "They differ") in words
    assert float(words.rsplit(" ", 1)[1].rstrip(".")) == pytest.approx(apart, rel=1e-3)


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
@pytest.mark.parametrize("form", ["drawing", "file"])
def test_the_code_works_as_it_stands(visit, url, tmp_path, language, form):
    """Copied and run: the program gets the class that the page shows; a large picture is read from its file."""
    visit.go(url, "flowers")
    data = photo(3, (30, 24)) if form == "drawing" else photo(3, (200, 160))
    (tmp_path / "it's mine.png").write_bytes(data)
    visit.drop(data, "it's mine.png")
    said = visit.said()
    visit.page.check(f"input[name=language][value={language}]")
    marks = {"curl": "curl -s", "python": "import json", "javascript": "fetch"}
    visit.page.wait_for_selector(f"#snippet:has-text('{marks[language]}')", state="attached")
    code = visit.page.locator("#snippet").text_content()
    assert ("it's" in code.replace("'\\''", "'")) == (form == "file")
    script = tmp_path / {"curl": "ask.sh", "python": "ask.py", "javascript": "ask.mjs"}[language]
    script.write_text(code)
    runner = {"curl": "sh", "python": sys.executable, "javascript": "node"}[language]
    try:
        done = subprocess.run([runner, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip(f"needs {runner}")
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
