"""Every state of the page, one after another: for `tests.browser.test_states`, and for eyes (`tests.bench.look`)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medsd.apps.web import server
from medsd.bundle.layout import Bundle
from medsd.privacy import KEY_VARIABLE
from medsd.studies.phantom import generate_study, write_dicom
from tests.apps.reading_room import KEY
from tests.browser.conftest import Visit
from tests.browser.test_viewer import Hand

WORDS = "effusion without cardiomegaly"
LAST = "refusal"  # the state in which `states` leaves a page
# What is cut: the first words of each element in sight that shows less than it holds, without a tooltip for the rest.
CUT = """() => [...document.querySelectorAll('body *')].filter((each) => {
  const style = getComputedStyle(each), {width, height} = each.getBoundingClientRect();
  if (!each.innerText?.trim() || Math.min(width, height) < 2) return false;
  if (!each.checkVisibility({visibilityProperty: true})) return false;
  const wide = each.scrollWidth > each.clientWidth + 1 && ['hidden', 'clip'].includes(style.overflowX);
  const high = each.scrollHeight > each.clientHeight + 1 && ['hidden', 'clip'].includes(style.overflowY);
  return (wide || high) && !each.title;
}).map((each) => `${each.id || each.className}: ${each.innerText.trim().slice(0, 40)}`)"""
ACROSS = "document.documentElement.scrollWidth - window.innerWidth"  # how far the page is wider than the screen, px


class Gate:
    """Lets studies through to the model, or holds them back for a while."""

    def __init__(self) -> None:
        self._left, self._open = math.inf, threading.Event()

    def hold(self, after: int = 0) -> None:
        """Let so many studies through, and no more."""
        self._open.clear()
        self._left = after

    def release(self) -> None:
        self._left = math.inf
        self._open.set()

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def passed(*about: Any) -> Any:
            if self._left <= 0:
                assert self._open.wait(120)
            self._left -= 1
            return call(*about)

        return passed


@contextmanager
def running(bundle: Bundle, folder: Path) -> Iterator[tuple[str, Gate]]:
    """The app with a folder for feedback: its address, and the gate before its model."""
    gate = Gate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        reader = server.open_reader(bundle, feedback=folder / "feedback")
    assert reader.score is not None
    reader._predict, reader.score = gate.before(reader._predict), gate.before(reader.score)
    page = server.launch(reader, port=server.free_port("127.0.0.1", 0))
    try:
        yield page.local_url, gate
    finally:
        gate.release()
        page.close()


def write_files(folder: Path, size: int = 640) -> list[Path]:
    """Two images, and a file that is none."""
    files = [folder / f"{name}.dcm" for name in ("first", "second", "none")]
    for number, file in enumerate(files[:2]):
        write_dicom(generate_study(31 + number, seed=11, size=size), file)
    files[2].write_text("no image")
    return files


def states(here: Visit, files: list[Path], gate: Gate) -> Iterator[str]:
    """Bring a fresh page into each of its states; yields the name of each, in which nothing moves any more."""
    here.page.wait_for_selector("#upload >> text=Drop File Here")
    yield "first screen"
    here.page.keyboard.press("?")
    here.page.wait_for_selector("#keys:popover-open")
    yield "key help"
    here.page.keyboard.press("Escape")
    gate.hold()
    here.drop(files[0])
    here.page.wait_for_selector("#stage:not(.bare)")
    yield "image alone"
    gate.release()
    here.whole()
    yield from _findings(here)
    yield from _cases(here)
    yield from _search(here)
    yield from _batch(here, files, gate)
    here.open_tab("Model")
    here.page.wait_for_selector("dl.facts")
    yield "model"
    here.open_tab("Read")
    here.drop(files[2])
    here.page.wait_for_selector(".notice.refused")
    yield LAST


def _findings(here: Visit) -> Iterator[str]:
    page = here.page
    if not page.locator("#stage .legend").count():  # nothing is called present
        page.click("button[data-finding] >> nth=0")
        page.wait_for_selector("#stage .legend")
    yield "reading with evidence"
    page.keyboard.press("e")
    page.wait_for_selector("#stage.hidden-evidence")
    yield "reading, bare image"
    page.keyboard.press("e")
    page.click("button[data-fold]")
    page.click("details.help summary")
    page.wait_for_selector("details.help[open]")
    yield "absent and legend unfolded"
    page.click("button[data-fold]")
    page.click("details.help summary")
    page.click("button.opinion >> nth=0")
    page.wait_for_selector("#findings .kept")
    yield "feedback saved"
    page.keyboard.press("f")
    page.wait_for_function("document.fullscreenElement?.id === 'desk'")
    yield "full screen"
    page.keyboard.press("f")
    page.wait_for_function("!document.fullscreenElement")


def _cases(here: Visit) -> Iterator[str]:
    page = here.page
    page.get_by_role("button", name="Filter the cases").click()
    page.get_by_label("View", exact=True).first.wait_for()
    yield "filters of cases"
    page.get_by_role("button", name="Filter the cases").click()
    page.click("#cases button.open[popovertarget='case-1']")
    page.wait_for_selector(".pair:popover-open .pane.drawn[data-own]")
    yield "case beside the image"
    page.locator(".pair:popover-open").get_by_label("Show what makes them alike").check()
    page.wait_for_function("getComputedStyle(document.querySelector('.pair:popover-open .likeness')).opacity > 0.5")
    yield "what makes them alike"
    page.click(".pair:popover-open [data-like]")
    page.wait_for_selector("#cases h2 >> text=Like case 1")
    page.click("#cases [data-pin] >> nth=0")
    page.wait_for_selector("#pinned figure")
    yield "like a case, one pinned"
    page.click("[data-unpin]")
    page.locator("#stage").scroll_into_view_if_needed()
    hand = Hand(here)
    hand.press("b")
    hand.drag(90, 70)
    page.wait_for_selector("#cases h2 >> text=Alike in the box")
    yield "cases alike in a box"
    hand.press("Escape")
    page.wait_for_selector("#cases h2 >> text=Nearest earlier cases")


def _search(here: Visit) -> Iterator[str]:
    page = here.page
    here.open_tab("Findings search")
    page.wait_for_selector("#found section.cases")
    yield "search"
    for words, wanted, name in ((WORDS, "li.case", "with results"), ("xyz", "text=not understood", "not understood")):
        page.fill("#search-sentence :is(input, textarea)", words)
        page.click("#search-go")
        page.wait_for_selector(f"#found >> {wanted}")
        yield f"search {name}"
    here.open_tab("Space")
    page.wait_for_selector("circle[data-point]")
    yield "space"
    page.locator("circle[data-point]").last.dispatch_event("click", {"bubbles": True})
    page.wait_for_selector("#space-case li.case")
    yield "space with a case"


def _batch(here: Visit, files: list[Path], gate: Gate) -> Iterator[str]:
    page = here.page
    here.open_tab("Batch")
    page.wait_for_selector("#batch-files input[type=file]", state="attached")
    yield "batch"
    gate.hold(after=1)
    page.set_input_files("#batch-files input[type=file]", [str(file) for file in files])
    page.wait_for_selector(".progress >> text=1 of 3")
    yield "batch running"
    gate.release()
    page.wait_for_selector("#batch-saved a[href^=blob]")
    yield "batch done"
    page.click("[data-open='0']")
    here.whole()
    page.wait_for_selector("#onward")
    yield "row of a batch opened"
