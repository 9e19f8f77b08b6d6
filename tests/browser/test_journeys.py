"""Every journey by keyboard alone: from a fresh page to the first case beside the image in at most 15 strokes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import Visit

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
MOST = 15


class Keyboard:
    """Strokes of keys on a page, counted; what is written into a box counts as one."""

    def __init__(self, here: Visit) -> None:
        self.here, self.page, self.strokes = here, here.page, 0
        self.page.on("filechooser", lambda _: None)  # from now on lists of files come here, not on the screen
        self.page.wait_for_selector("#upload >> text=Drop File Here")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.strokes += 1

    def write(self, words: str) -> None:
        self.page.keyboard.type(words)
        self.strokes += 1

    def go(self, selector: str) -> None:
        """Press Tab until an element has the focus."""
        while not self.page.evaluate("wanted => document.activeElement.matches(wanted)", selector):
            assert self.strokes < MOST, f"{selector} is too far"
            self.press("Tab")

    def choose(self, selector: str, *files: Path) -> None:
        """Go to what opens the browser's list of files, and take some."""
        self.go(selector)
        with self.page.expect_file_chooser() as chooser:
            self.press("Enter")
        chooser.value.set_files([str(file) for file in files])

    def tab(self, name: str) -> None:
        """Go to a tab by its name."""
        while not self.page.evaluate("name => document.activeElement.innerText.trim() === name", name):
            assert self.strokes < MOST, f"the tab {name} is too far"
            self.press("Tab")
        self.press("Enter")

    def first_case(self, within: str) -> None:
        """The first case of those that stand there, beside the image."""
        self.page.wait_for_selector(f"{within} button.open")
        self.press("c", "Enter")
        self.page.wait_for_selector(".pair:popover-open")
        assert self.page.locator(".pair:popover-open .title strong").inner_text().startswith("Case 1")
        assert self.strokes <= MOST and self.here.errors == []


@pytest.fixture
def keyboard(visit: Open) -> Iterator[Keyboard]:
    yield Keyboard(visit((1440, 900)))


def test_from_an_example(keyboard: Keyboard) -> None:
    keyboard.go("[data-example]")
    keyboard.press("Enter")
    keyboard.here.whole()
    keyboard.first_case("#cases")


def test_from_a_file(keyboard: Keyboard, image: Path) -> None:
    keyboard.choose("[data-choose]", image)
    keyboard.here.whole()
    keyboard.first_case("#cases")


def test_from_a_note(keyboard: Keyboard) -> None:
    keyboard.press("w")
    keyboard.write("short of breath")
    keyboard.go("#again")
    keyboard.press("Enter")
    keyboard.here.whole()
    keyboard.first_case("#cases")


def test_from_a_search(keyboard: Keyboard) -> None:
    keyboard.tab("Findings search")
    keyboard.go("#search-sentence :is(input, textarea)")
    keyboard.write("effusion")
    keyboard.press("Enter")
    keyboard.page.wait_for_selector("#found li.case")
    keyboard.press("Escape")  # in a box of words C is a letter
    keyboard.first_case("#found")


def test_from_the_map(keyboard: Keyboard) -> None:
    keyboard.tab("Space")
    keyboard.page.wait_for_selector("circle[data-point]")
    keyboard.go(".map")
    keyboard.press("ArrowRight", "Enter")
    keyboard.first_case("#space-case")


def test_from_a_batch(keyboard: Keyboard, image: Path) -> None:
    keyboard.tab("Batch")
    keyboard.choose("#batch-files button", image)
    keyboard.page.wait_for_selector("#batch-saved a[href^=blob]")
    keyboard.press("c", "Enter")
    keyboard.here.whole()
    keyboard.first_case("#cases")
