"""The image in a real browser: window, zoom, pan, rotation, ruler and keys, none of which asks the server."""

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from medsd.studies.phantom import generate_study, write_dicom
from tests.browser.conftest import Visit

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
CANVAS = "#stage canvas"


class Hand:
    """A hand on the mouse, over the middle of the image of a page."""

    def __init__(self, here: Visit) -> None:
        self.page = here.page
        self.asked: list[str] = []
        # Pieces of Gradio's program, which come when they are first needed, say nothing of the image.
        self.page.on("request", lambda sent: self.asked.append(sent.url) if "/assets/" not in sent.url else None)
        box = self.page.locator("#stage").bounding_box()
        # Whole numbers, as a mouse has: the browser would cut off the rest of others.
        self.x, self.y = round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)
        self.page.mouse.move(self.x, self.y)

    def drag(self, dx: float, dy: float, button: str = "left") -> None:
        self.page.mouse.down(button=button)
        self.page.mouse.move(self.x + dx, self.y + dy, steps=3)
        self.page.mouse.up(button=button)
        self.page.mouse.move(self.x, self.y)
        self.drawn()

    def wheel(self, by: float) -> None:
        self.page.mouse.wheel(0, by)
        self.page.wait_for_timeout(100)
        self.drawn()

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.drawn()

    def drawn(self) -> None:
        self.page.evaluate("() => new Promise(requestAnimationFrame).then(() => new Promise(requestAnimationFrame))")

    @property
    def shades(self) -> str:
        """What the canvas holds."""
        return str(self.page.evaluate("document.querySelector('#stage canvas').toDataURL()"))

    @property
    def box(self) -> dict[str, float]:
        return dict(self.page.locator(CANVAS).bounding_box())

    @property
    def look(self) -> dict[str, float]:
        return dict(self.page.evaluate("JSON.parse(document.querySelector('#stage').dataset.look)"))

    def under(self, x: float, y: float) -> tuple[float, float]:
        """The place in the image under a place of the screen, as shares of its sides."""
        return (x - self.box["x"]) / self.box["width"], (y - self.box["y"]) / self.box["height"]


def test_window_and_level_are_applied_in_the_browser(visit: Open, image: Path) -> None:
    here = visit()
    here.read(image)
    hand = Hand(here)
    seen = [hand.shades]
    hand.drag(-80, -40)
    assert hand.look["width"] == pytest.approx(0.8) and hand.look["level"] == pytest.approx(0.4)
    seen.append(hand.shades)
    for act in (
        lambda: here.page.click("[data-preset='3']"),
        lambda: here.page.click("[data-act=invert]"),
        lambda: hand.press("2"),
        lambda: hand.press("i"),
    ):
        act()
        hand.drawn()
        seen.append(hand.shades)
    assert len(set(seen)) == len(seen) and here.page.locator("[data-preset][aria-pressed=true]").count() == 1
    hand.wheel(-300)
    hand.drag(30, 30, "middle")
    hand.press("r")
    assert hand.asked == [] and here.errors == []


def test_an_inverted_image_has_the_opposite_shades_and_a_narrow_window_only_black_and_white(
    visit: Open, image: Path
) -> None:
    here = visit()
    here.read(image)
    hand = Hand(here)
    read = """() => { const c = document.querySelector('#stage canvas');
      const all = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      return [...all].filter((_, i) => i % 4 === 0).filter((_, i) => i % 997 === 0); }"""
    before = here.page.evaluate(read)
    hand.press("i")
    assert all(abs(255 - a - b) <= 1 for a, b in zip(before, here.page.evaluate(read), strict=True))
    hand.press("0")
    assert here.page.evaluate(read) == before and len(set(before)) > 20
    hand.drag(-390, 0)
    narrow = here.page.evaluate(read)
    assert sum(shade in (0, 255) for shade in narrow) > 0.8 * len(narrow)


def test_the_wheel_zooms_at_the_pointer_of_an_image_as_it_is_and_turned(visit: Open, image: Path) -> None:
    here = visit()
    here.read(image)
    hand = Hand(here)
    x, y = hand.x + 60, hand.y - 45
    for _ in range(2):
        here.page.mouse.move(x, y)
        width, before = hand.box["width"], hand.under(x, y)
        for by in (-240, -240, 120):
            hand.wheel(by)
        box, after = hand.box, hand.under(x, y)
        assert box["width"] > 2 * width
        assert abs(before[0] - after[0]) * box["width"] <= 1 and abs(before[1] - after[1]) * box["height"] <= 1
        here.page.mouse.dblclick(x, y)
        hand.press("r")


def test_middle_button_space_and_tool_pan_the_right_button_zooms_and_a_double_click_fits(
    visit: Open, image: Path
) -> None:
    here = visit()
    here.read(image)
    hand = Hand(here)
    first, look = hand.box, hand.look
    hand.drag(0, -100, "right")
    assert hand.box["width"] > 1.5 * first["width"]
    for button in ("middle", "space", "tool"):
        before = hand.box
        if button == "space":
            here.page.keyboard.down("Space")
        if button == "tool":
            here.page.click("[data-tool=pan]")
            here.page.mouse.move(hand.x, hand.y)
        hand.drag(25, -15, "middle" if button == "middle" else "left")
        here.page.keyboard.up("Space")
        assert hand.box["x"] == pytest.approx(before["x"] + 25, abs=0.5)
        assert hand.box["y"] == pytest.approx(before["y"] - 15, abs=0.5)
    here.page.mouse.dblclick(hand.x, hand.y)
    hand.drawn()
    assert hand.box == pytest.approx(first, abs=0.5) and hand.look == look
    here.page.click("[data-act=whole]")  # a pixel of the file is one of the screen
    hand.drawn()
    assert hand.box["width"] == pytest.approx(640, abs=0.5)


def test_a_zoomed_image_gets_every_pixel_once(visit: Open, tmp_path: Path) -> None:
    large = tmp_path / "large.dcm"
    write_dicom(generate_study(8, seed=5, size=1800), large)
    here = visit()
    here.read(large)
    width = "document.querySelector('#stage canvas').width"
    assert here.page.evaluate(width) == 1400
    hand = Hand(here)
    hand.drag(0, -200, "right")
    here.page.wait_for_function(f"{width} === 1800")
    asked = len(hand.asked)
    hand.drag(0, -50, "right")
    hand.drag(20, 20)
    assert len(hand.asked) == asked and here.errors == []


def test_an_image_that_does_not_arrive_is_missed_and_can_be_dropped_again(visit: Open, image: Path) -> None:
    here = visit()
    here.page.route("**/greys/*", lambda route: route.abort(), times=1)
    here.read(image)
    here.page.wait_for_selector("#stage.bare >> text=did not arrive")
    here.drop(image)
    here.page.wait_for_selector("#stage:not(.bare) canvas")
    assert "did not arrive" not in here.page.inner_text("#stage")


def test_keys_do_what_the_list_says(visit: Open, image: Path) -> None:
    here = visit()
    here.read(image)
    hand = Hand(here)
    opacity = "getComputedStyle(document.querySelector('#stage img.evidence')).opacity"
    assert here.page.evaluate(opacity) == "0.4"
    hand.press("e")
    assert here.page.evaluate(opacity) == "0" and "hidden" in here.page.inner_text(".legend")
    hand.press("e")
    assert here.page.evaluate(opacity) == "0.4" and "less → more" in here.page.inner_text(".legend")
    hand.press("?")
    assert here.page.locator("#keys").is_visible() and "rotate" in here.page.inner_text("#keys")
    hand.press("Escape")
    hand.press("f")
    here.page.wait_for_function("document.fullscreenElement?.id === 'desk'")
    hand.press("f")
    here.page.wait_for_function("!document.fullscreenElement")
    here.page.fill("#note textarea", "i")
    here.page.focus("#note textarea")
    hand.press("i")  # a letter of the note
    assert not hand.look["inverted"] and here.errors == []


def test_zoom_and_window_stay_for_the_next_image_rotation_and_evidence_do_not(
    visit: Open, image: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.dcm"
    write_dicom(generate_study(77, seed=4, size=640), other)
    here = visit()
    here.read(image)
    hand = Hand(here)
    hand.drag(-100, 0)
    hand.press("i")
    hand.wheel(-200)
    hand.press("r")
    hand.press("e")
    look, width, shades = hand.look, hand.box["width"], hand.shades
    here.drop(other)
    here.page.wait_for_selector("table.findings", state="detached")
    here.whole()
    here.page.wait_for_function("old => document.querySelector('#stage canvas').toDataURL() !== old", arg=shades)
    assert hand.look == {**look, "opacity": 0.4} and hand.box["width"] == pytest.approx(width, abs=1)
    assert "rotate(0deg)" not in here.page.inner_html("#stage")
    assert here.page.evaluate("document.querySelector('#stage').style.getPropertyValue('--turn')") == "0deg"


@pytest.mark.parametrize("name", ["Pixel Spacing", "Imager Pixel Spacing", ""])
def test_the_ruler_measures_in_millimetres_where_the_header_says_how(
    visit: Open, image: Path, tmp_path: Path, name: str
) -> None:
    dataset = pydicom.dcmread(image)
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        if keyword in dataset:
            delattr(dataset, keyword)
    if name:
        setattr(dataset, name.replace(" ", ""), [0.25, 0.5])
    dataset.save_as(tmp_path / "spaced.dcm")
    here = visit()
    here.read(tmp_path / "spaced.dcm")
    hand = Hand(here)
    hand.wheel(-150)
    here.page.click("[data-tool=ruler]")
    here.page.mouse.move(hand.x, hand.y)
    hand.drag(120, 50)
    scale = dataset.Columns / hand.box["width"]
    expected = ((120 * scale * 0.5) ** 2 + (50 * scale * 0.25) ** 2) ** 0.5 if name else scale * 130
    said = here.page.inner_text(".ruled")
    assert float(said.split()[0]) == pytest.approx(expected, abs=1)
    assert said.endswith(f"mm ({name})" if name else "pixels (the file gives no spacing)")


def test_level_and_width_have_the_units_of_the_file(visit: Open, image: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(image)
    most = int(dataset.pixel_array.max()) // 4 * 4
    dataset.WindowCenter, dataset.WindowWidth = most // 2, most
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.save_as(tmp_path / "own.dcm")
    here = visit()
    here.read(tmp_path / "own.dcm")
    hand = Hand(here)
    assert f"Level {most // 2} · Width {most} ·" in here.page.inner_text(".values")
    hand.drag(-200, 0)
    assert f"Width {most / 2:.0f} ·" in here.page.inner_text(".values")


def test_the_image_fills_the_screen_and_eight_cases_are_in_sight_beside_it(
    visit: Open, image: Path, shots: Path
) -> None:
    here = visit((1440, 900))
    here.read(image)
    here.page.wait_for_timeout(300)
    here.page.screenshot(path=shots / "wide.png")
    assert here.page.locator("#stage").bounding_box()["height"] >= 0.6 * 900
    cards = here.page.locator("#cases li.case").all()
    boxes = [card.bounding_box() for card in cards]
    assert len(boxes) == 8 and here.page.evaluate("window.scrollY") == 0
    stage = here.page.locator("#stage").bounding_box()
    assert all(box["x"] >= stage["x"] + stage["width"] and box["y"] + box["height"] <= 900 for box in boxes)
    here.page.click("button.opinion >> nth=0")  # the findings stay in their column where opinions are asked for
    here.page.wait_for_selector("#findings .kept")
    table, column = (here.page.locator(part).bounding_box() for part in ("table.findings", "#results"))
    assert table["x"] + table["width"] <= column["x"] + column["width"] + 1
    here.page.screenshot(path=shots / "opinion.png")
