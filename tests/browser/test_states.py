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


def _violations(here: Visit) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="browser: axe is not installed")
    found = axe.Axe().run(here.page).response["violations"]
    return [f"{rule['impact']} {rule['id']}: {node['html'][:120]}" for rule in found for node in rule["nodes"]]


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
    found: dict[str, list[str]] = {}
    for name in states(here, files, app[1]):
        here.page.wait_for_timeout(250)  # colours fade into each other
        assert here.page.locator("body.dark").count() == (scheme == "dark")
        wide = here.page.evaluate(ACROSS)
        cut = [f"cut: {words}" for words in here.page.evaluate(CUT)]
        found[name] = [*_violations(here), *cut, *([f"{wide} px wider than the screen"] if wide > 0 else [])]
    assert {name: problems for name, problems in found.items() if problems} == {}
    assert list(found)[-1] == LAST and here.errors == [] and here.elsewhere == []


def test_the_checks_see_what_is_wrong(visit: Open) -> None:
    here = visit()
    here.page.wait_for_selector("#upload >> text=Drop File Here")
    before = _violations(here), here.page.evaluate(CUT), here.page.evaluate(ACROSS)
    assert before == ([], [], 0)
    wrong = (
        '<img src="data:,"><p style="width: 40px; overflow: hidden; white-space: nowrap">A sentence of some words</p>'
    )
    here.page.evaluate(
        "wrong => document.querySelector('header.bar').insertAdjacentHTML('afterend', wrong)",
        f'{wrong}<p style="width: 3000px">wide</p>',
    )
    assert [words.split(":")[0] for words in _violations(here)] == ["critical image-alt"]
    cut = [words.split(":") for words in here.page.evaluate(CUT)]
    assert ["", " A sentence of some words"] in cut and any(name.startswith("gradio-container") for name, *_ in cut)
