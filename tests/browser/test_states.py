"""Every state of the page, light and dark, on a desk and on a phone: used by everybody, and nothing is cut."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medsd.bundle.layout import Bundle
from tests.browser.conftest import Visit
from tests.browser.states import ACROSS, CUT, LAST, Gate, running, states, write_files

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
# Colours fade into each other; what turns for ever is not waited for.
AT_REST = """() => Promise.all(document.getAnimations()
  .filter((each) => each.effect.getComputedTiming().endTime !== Infinity)
  .map((each) => each.finished.catch(() => null)))"""
WATCH = """() => {
  window.changed = new Set();
  const news = {subtree: true, childList: true, characterData: true, attributes: true};
  new MutationObserver((all) => {
    for (const {type, target, addedNodes} of all) {
      for (const each of type === 'childList' ? addedNodes : [target]) {
        changed.add(each instanceof Element ? each : each.parentElement);
      }
    }
  }).observe(document.body, news);
  for (const kind of ['toggle', 'fullscreenchange']) {
    document.addEventListener(kind, ({target}) => changed.add(target), true);
  }
}"""
VIOLATIONS = """async (whole) => {
  const parts = [...changed].filter((part) => part?.isConnected && part.checkVisibility({visibilityProperty: true}));
  const outermost = parts.filter((part) => !parts.some((other) => other !== part && other.contains(part)));
  changed.clear();
  if (!whole && !outermost.length) return [];
  const {violations} = await axe.run(whole ? document : {include: outermost}, {resultTypes: ['violations']});
  return violations.flatMap(({impact, id, nodes}) => nodes.map(({html}) => `${impact} ${id}: ${html.slice(0, 120)}`));
}"""


@pytest.fixture(scope="module")
def app(chromium: Any, room: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Gate]]:
    with running(room, tmp_path_factory.mktemp("app")) as app:
        yield app


@pytest.fixture(scope="module")
def address(app: tuple[str, Gate]) -> str:
    return app[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_files(tmp_path_factory.mktemp("files"))


class Axe:
    """What axe finds on a page, state after state: in all of a tab that was opened, then in what has changed in it."""

    def __init__(self, page: Any) -> None:
        source = pytest.importorskip("axe_playwright_python.base", reason="browser: axe is not installed")
        self._page, self._tab = page, ""
        page.evaluate(source.AXE_SCRIPT)
        page.evaluate(WATCH)

    def violations(self) -> list[str]:
        tab = self._page.evaluate("document.querySelector('[role=tab][aria-selected=true]').innerText")
        whole, self._tab = tab != self._tab, tab
        return list(self._page.evaluate(VIOLATIONS, whole))


@pytest.mark.parametrize(
    ("size", "scheme"),  # each takes minutes: `make bench` has all
    [
        ((1440, 900), "dark"),
        pytest.param((1440, 900), "light", marks=pytest.mark.bench),
        pytest.param((390, 844), "dark", marks=pytest.mark.bench),
        pytest.param((390, 844), "light", marks=pytest.mark.bench),
    ],
)
def test_every_state_can_be_used_by_everybody_and_nothing_is_cut(
    visit: Open, app: tuple[str, Gate], files: list[Path], size: tuple[int, int], scheme: str
) -> None:
    here = visit(size, scheme)
    axe, found = Axe(here.page), dict[str, list[str]]()
    for name in states(here, files, app[1]):
        here.page.evaluate(AT_REST)
        assert here.page.locator("body.dark").count() == (scheme == "dark")
        wide = here.page.evaluate(ACROSS)
        cut = [f"cut: {words}" for words in here.page.evaluate(CUT)]
        found[name] = [*axe.violations(), *cut, *([f"{wide} px wider than the screen"] if wide > 0 else [])]
    assert {name: problems for name, problems in found.items() if problems} == {}
    assert list(found)[-1] == LAST and here.errors == [] and here.elsewhere == []


def test_the_checks_see_what_is_wrong(visit: Open) -> None:
    here = visit()
    here.page.wait_for_selector("#upload >> text=Drop File Here")
    axe = Axe(here.page)
    for _ in ("all", "what has changed"):
        assert (axe.violations(), here.page.evaluate(CUT), here.page.evaluate(ACROSS)) == ([], [], 0)
    wrong = (
        '<img src="data:,"><p style="width: 40px; overflow: hidden; white-space: nowrap">A sentence of some words</p>'
    )
    here.page.evaluate(
        "wrong => document.querySelector('header.bar').insertAdjacentHTML('afterend', wrong)",
        f'{wrong}<p style="width: 3000px">wide</p>',
    )
    assert [words.split(":")[0] for words in axe.violations()] == ["critical image-alt"]
    assert axe.violations() == []  # nothing has changed since
    here.page.evaluate("document.querySelector('header.bar .model').style.color = 'var(--line)'")
    assert [words.split(":")[0] for words in axe.violations()] == ["serious color-contrast"]
    cut = [words.split(":") for words in here.page.evaluate(CUT)]
    assert ["", " A sentence of some words"] in cut and any(name.startswith("gradio-container") for name, *_ in cut)
