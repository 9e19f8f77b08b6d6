"""Images that are dropped while another is sent or read, in a real browser, with a model that answers when told to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medsd.apps.web import server
from medsd.apps.web.reading import Reader
from medsd.bundle.layout import Bundle
from medsd.privacy import KEY_VARIABLE
from medsd.studies.phantom import generate_study, write_dicom
from tests.apps.reading_room import KEY
from tests.apps.test_seat import Gates
from tests.browser.conftest import Visit

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def gates(room: Bundle) -> Gates:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        return Gates(server.open_reader(room)._predict)


@pytest.fixture(scope="module")
def address(chromium: Any, room: Bundle, gates: Gates) -> Iterator[str]:
    page = server.launch(Reader(room, gates), port=server.free_port("127.0.0.1", 0))
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("images") / f"{name}.dcm" for name in ("Alpha", "Beta", "Gamma")]
    for number, path in enumerate(paths):
        write_dicom(generate_study(number, seed=23, size=320), path)
    return paths


def _probabilities(gates: Gates, path: Path) -> list[str]:
    said = gates.predict(path.read_bytes(), None).probabilities
    return sorted(f"{value:.6f}" for value in said.values())


def _shown(here: Visit) -> list[str]:
    return sorted(re.findall(r'data-probability="([\d.]+)"', here.page.content()))


def test_an_image_that_is_dropped_while_another_is_read_is_read(visit: Open, gates: Gates, images: list[Path]) -> None:
    first, second = (path.read_bytes() for path in images[:2])
    here = visit()
    gates.hold(first, second)
    here.drop(images[0])
    assert gates.entered[first].wait(60)
    here.drop(images[1])
    here.page.wait_for_selector("#upload input[type=file]", state="attached")
    assert gates.entered[second].wait(60), "the second image was never read"
    gates.open[second].set()
    here.page.wait_for_selector("table.findings tbody tr")
    expected = _probabilities(gates, images[1])
    assert _shown(here) == expected
    gates.open[first].set()  # what was asked for first ends last
    here.page.wait_for_timeout(1500)
    assert _shown(here) == expected and "Alpha" not in here.page.content() and "Beta" not in here.page.content()
    assert here.errors == []


def test_an_example_that_is_chosen_while_an_image_is_read_is_read(
    visit: Open, gates: Gates, room: Bundle, images: list[Path]
) -> None:
    held = images[0].read_bytes()
    here = visit()
    gates.hold(held)
    here.drop(images[0])
    assert gates.entered[held].wait(60)
    here.page.click("#examples button >> nth=0")
    here.page.wait_for_selector("table.findings tbody tr")
    before = _shown(here)
    gates.open[held].set()
    here.page.wait_for_timeout(1500)
    assert _shown(here) == before != _probabilities(gates, images[0])


def test_findings_are_gone_while_the_next_image_is_sent_and_the_last_one_dropped_is_read(
    visit: Open, gates: Gates, images: list[Path]
) -> None:
    gates.entered.clear(), gates.open.clear()
    here, sent = visit(), []
    here.read(images[0])
    here.page.route("**/gradio_api/upload?*", lambda route: route.continue_() if sent else sent.append(route))
    here.drop(images[1])
    here.page.wait_for_selector("#upload >> text=Beta.dcm")
    for part in ("table.findings", "#stage canvas", "#cases h2"):
        here.page.wait_for_selector(part, state="hidden", timeout=5000)
    here.drop_on_the_image(images[2])  # Gradio's drop zone takes no file now
    sent[0].continue_()
    expected = _probabilities(gates, images[2])
    here.page.wait_for_function(
        "expected => JSON.stringify([...document.querySelectorAll('tr[data-probability]')]"
        ".map((row) => row.dataset.probability).sort()) === JSON.stringify(expected)",
        arg=expected,
    )
    assert here.page.locator("table.findings").is_visible() and here.errors == []


def test_a_page_that_is_told_to_wait_after_its_image_was_read_asks_for_it_again(
    visit: Open, images: list[Path]
) -> None:
    """Of two answers on a loaded machine the earlier one may come last."""
    here = visit()
    here.read(images[0])
    here.page.evaluate(
        """() => {
          for (const part of document.querySelectorAll(':is(#findings, #cases, #evidence) [data-of]')) part.remove();
          document.querySelector('#radiograph [data-of]').outerHTML = '<i class="spinner"></i>';
        }"""
    )
    here.page.wait_for_selector("#radiograph .spinner", state="detached", timeout=30_000)
    here.page.wait_for_selector("#stage:not(.bare) canvas")
    assert here.errors == []
