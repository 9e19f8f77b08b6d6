"""A case beside the image in a real browser: one zoom and one window; and other cases than the nearest ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medsd.apps.web import server
from medsd.bundle.layout import Bundle
from medsd.cases.pictures import PictureFolder
from medsd.privacy import KEY_VARIABLE, KeyedHasher
from medsd.studies.phantom import generate_study
from tests.apps.reading_room import CASES, KEY, SEED
from tests.browser.conftest import Visit
from tests.browser.test_tabs import _serious
from tests.browser.test_viewer import Hand
from tests.studies.images import write_png

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
SIDE = 500  # of the images of the cases
PANES = "[...document.querySelectorAll('.pair:popover-open .pane canvas')]"


class NamesAsKeys(KeyedHasher):
    """The cases of the furnished bundle have the names of their studies as keys."""

    def study_key(self, uid: str) -> str:
        return uid


@pytest.fixture(scope="module")
def address(chromium: Any, room: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    images = tmp_path_factory.mktemp("images")
    for number in range(CASES):
        study = generate_study(number, seed=SEED, size=SIDE)
        write_png(study, images / f"{study.study}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        reader = server.open_reader(room)
    reader._pictures = PictureFolder(images, NamesAsKeys(b"sixteen bytes or more"))
    page = server.launch(reader, port=server.free_port("127.0.0.1", 0))
    yield page.local_url
    page.close()


@pytest.fixture
def beside(visit: Open, image: Path) -> Visit:
    """The first case beside an image, with every pixel of it."""
    here = visit((1440, 900))
    here.read(image)
    here.page.click("#cases button.open[popovertarget='case-1']")
    here.page.wait_for_function(f"{PANES}[1]?.width === {SIDE}")
    return here


def _heading(here: Visit) -> str:
    return str(here.page.locator(".pair:popover-open .title strong").inner_text())


def test_image_and_case_have_one_zoom_one_place_and_one_window(beside: Visit) -> None:
    page = beside.page
    widths = f"{PANES}.map(canvas => canvas.getBoundingClientRect().width)"
    lefts = f"{PANES}.map(canvas => canvas.getBoundingClientRect().left)"
    shades = f"{PANES}.map(canvas => canvas.toDataURL())"
    before, seen = page.evaluate(widths), page.evaluate(shades)
    hand = Hand(beside)
    box = page.locator(".pair:popover-open .pane").nth(1).bounding_box()
    x, y = round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    page.wait_for_function(f"before => {widths}.every((width, i) => width > 1.5 * before[i])", arg=before)
    at = page.evaluate(lefts)
    page.mouse.down(button="middle")
    page.mouse.move(x + 40, y, steps=3)
    page.mouse.up(button="middle")
    page.wait_for_function(f"at => {lefts}.every((left, i) => Math.abs(left - at[i] - 40) < 1)", arg=at)
    page.mouse.down()
    page.mouse.move(x - 60, y, steps=3)
    page.mouse.up()
    page.wait_for_function(f"seen => {shades}.every((shade, i) => shade !== seen[i])", arg=seen)
    assert hand.look["width"] < 1 and hand.asked == []
    page.mouse.dblclick(x, y)
    page.wait_for_function(f"before => {widths}.every((width, i) => Math.abs(width - before[i]) < 1)", arg=before)
    assert beside.errors == []


def test_arrow_keys_go_from_case_to_case(beside: Visit) -> None:
    page = beside.page
    width = f"{PANES}[0].getBoundingClientRect().width"
    wide = 1.5 * page.evaluate(width)
    page.keyboard.press("+")
    page.wait_for_function(f"wide => Math.abs({width} - wide) < 2", arg=wide)
    for key, number in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        page.keyboard.press(key)
        page.wait_for_selector(f".pair:popover-open >> text=Case {number} beside your image")
    page.wait_for_function(f"{PANES}[1]?.width === {SIDE}")
    assert page.evaluate(width) == pytest.approx(wide, abs=2)  # the zoom stays
    page.click(".pair:popover-open [data-step='-1']")
    page.wait_for_selector(".pair:popover-open >> text=Case 1 beside your image")
    page.keyboard.press("ArrowLeft")  # there is none before the first
    assert _heading(beside).startswith("Case 1") and _serious(beside) == [] and beside.errors == []


def test_a_case_is_pinned_and_taken_for_the_query_inside(beside: Visit, shots: Path) -> None:
    page = beside.page
    page.screenshot(path=shots / "beside.png")
    page.click(".pair:popover-open [data-pin]")
    page.wait_for_selector("#pinned figure", state="attached")
    page.click(".pair:popover-open [data-like]")
    page.wait_for_selector("#cases h2 >> text=Like case 1")
    assert page.locator(".pair:popover-open").count() == 0
    for _ in range(2):  # the second time, too
        page.click("li.case >> nth=1 >> button.open")
        page.wait_for_function(f"{PANES}[1]?.width === {SIDE}")
        page.keyboard.press("Escape")
    page.click("#cases [data-back]")
    page.wait_for_selector("#cases h2 >> text=Nearest earlier cases")
    assert beside.errors == []


def test_the_first_case_is_two_keys_away(visit: Open, image: Path) -> None:
    here = visit((1440, 900))
    here.read(image)
    here.page.keyboard.press("c")
    here.page.keyboard.press("Enter")
    here.page.wait_for_selector(".pair:popover-open")
    assert _heading(here).startswith("Case 1 ") and here.errors == []  # whichever group stands first


def test_a_box_on_the_image_finds_cases_alike_there(visit: Open, image: Path, shots: Path) -> None:
    here = visit((1440, 900))
    here.read(image)
    hand = Hand(here)
    nearest = here.page.inner_html("#cases .groups")
    hand.press("b")
    hand.drag(140, 90)
    here.page.wait_for_selector("#cases h2 >> text=Alike in the box")
    here.page.screenshot(path=shots / "box.png")
    drawn = here.page.locator("#stage .ruler rect").bounding_box()
    assert drawn["width"] == pytest.approx(140, abs=3) and drawn["height"] == pytest.approx(90, abs=3)
    assert here.page.inner_html("#cases .groups") != nearest and "in the box" in here.page.inner_text("#cases .alike")
    assert _serious(here) == []
    hand.press("Escape")
    here.page.wait_for_selector("#cases h2 >> text=Nearest earlier cases")
    assert here.page.locator("#stage .ruler rect").is_hidden() and here.errors == []
