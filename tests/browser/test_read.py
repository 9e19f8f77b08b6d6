"""The tab "Read" in a real browser: from a dropped file to findings, evidence and cases."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medsd.bundle.layout import Bundle
from tests.browser.conftest import Visit
from tests.browser.test_tabs import _serious

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
RELATIONS = {"equal", "superset", "subset", "overlap", "disjoint", "undetermined"}


def _names(visit: Visit) -> list[str]:
    return [
        str(row.get_attribute("data-name")) for row in visit.page.query_selector_all("table.findings tr[data-name]")
    ]


def test_a_dicom_file_becomes_findings_and_cases(visit: Open, image: Path, room: Bundle) -> None:
    here = visit()
    here.read(image)
    assert sorted(_names(here)) == sorted(room.findings)
    for group in here.page.locator("table.findings tbody").all():
        numbers = group.locator("tr[data-name]").evaluate_all(
            "rows => rows.map(row => Number(row.dataset.probability))"
        )
        assert numbers == sorted(numbers, reverse=True)
    assert f"of {len(room.findings)} findings called present" in here.page.inner_text(".impression")
    here.page.click("button[data-fold]")
    assert all(row.is_visible() for row in here.page.locator("tr[data-name]").all())
    cards = here.page.query_selector_all("li.case")
    assert len(cards) == 8 and {card.get_attribute("data-relation") for card in cards} <= RELATIONS
    assert all(card.query_selector(".sentence").inner_text() and card.query_selector(".alike[title]") for card in cards)
    assert here.errors == [] and here.elsewhere == []


def test_a_file_dropped_on_the_reading_area_is_read(visit: Open, image: Path) -> None:
    here = visit()
    here.drop_on_the_image(image)
    here.page.wait_for_selector("table.findings tbody tr")
    assert here.page.locator("#stage canvas").is_visible() and here.errors == []


def test_choosing_another_finding_by_mouse_and_keyboard_changes_the_evidence_over_the_image(
    visit: Open, image: Path
) -> None:
    here = visit()
    here.read(image)
    before, seen_before = here.picture("#stage img.evidence"), here.page.locator("#stage").screenshot()
    here.page.click("button[data-fold]")
    other = _names(here)[-1]
    here.page.click(f'button[data-finding="{other}"]')
    here.page.wait_for_selector(f'button[data-finding="{other}"][aria-pressed="true"]')
    assert here.picture("#stage img.evidence") != before and here.page.locator("#stage").screenshot() != seen_before
    assert here.page.locator("tr.shown").count() == 1 and here.errors == []
    second = _names(here)[1]
    here.page.focus(f'button[data-finding="{second}"]')
    here.page.keyboard.press("Enter")
    here.page.wait_for_selector(f'button[data-finding="{second}"][aria-pressed="true"]')


def test_a_case_opens_beside_the_image_and_closes_by_keyboard(visit: Open, image: Path, shots: Path) -> None:
    here = visit()
    here.read(image)
    here.page.click("li.case >> nth=0 >> button.open")
    dialog = here.page.locator(".pair:popover-open")
    here.page.wait_for_selector(".pair:popover-open .pane.drawn[data-own]")
    assert (
        dialog.is_visible()
        and dialog.locator(".badge").is_visible()
        and dialog.locator(".pane[data-own] canvas").is_visible()
    )
    here.page.screenshot(path=shots / "side-by-side.png")
    here.page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_the_first_screen_says_what_the_page_does_and_offers_examples(visit: Open, image: Path, shots: Path) -> None:
    here = visit((1440, 900))
    here.page.screenshot(path=shots / "first.png")
    assert "Drop a chest radiograph" in here.page.inner_text("#stage") and _serious(here) == []
    with here.page.expect_file_chooser():
        here.page.click("[data-choose]")
    if here.page.locator("[data-example]").count():
        here.page.click("[data-example] >> nth=0")
        here.whole()
        assert here.page.locator("#stage canvas").is_visible()
    assert here.errors == []


def test_the_page_is_dark_until_the_reader_chooses_light_which_stays(visit: Open) -> None:
    page = visit().page  # in a browser that prefers light
    page.wait_for_selector("body.dark")
    page.click("[aria-label='Switch between light and dark']")
    page.wait_for_selector("body:not(.dark)")
    page.reload()
    page.wait_for_selector("#stage .first")
    page.wait_for_timeout(500)
    assert page.evaluate("document.body.className").split().count("dark") == 0


def test_the_note_is_read_with_the_image(visit: Open, image: Path, room: Bundle) -> None:
    if room.description.note is None:
        pytest.skip("this bundle reads no notes")
    here = visit()
    here.read(image)
    before = here.page.inner_text("table.findings")
    here.page.fill("#note textarea", "short of breath, known heart failure")
    here.page.click("#again")
    here.page.wait_for_function(
        "before => { const t = document.querySelector('table.findings'); return t && t.innerText !== before }",
        arg=before,
    )
    assert here.page.input_value("#note textarea").startswith("short of breath")


def test_what_is_no_image_is_refused_in_the_place_of_the_findings(
    visit: Open, image: Path, tmp_path: Path, shots: Path
) -> None:
    wrong, here = tmp_path / "wrong.dcm", visit()
    for content in (b"neither DICOM nor an image", b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        wrong.write_bytes(content)
        here.read(image)
        here.drop(wrong)
        here.page.wait_for_selector(".notice.refused")
        here.page.screenshot(path=shots / "refused.png")
        assert here.page.locator("table.findings").count() == 0 and here.page.locator("li.case").count() == 0
        assert "Traceback" not in here.page.content() and here.errors == []


def test_two_visitors_see_their_own_images(visit: Open, image: Path, tmp_path: Path) -> None:
    from medsd.studies.phantom import generate_study, write_dicom

    other = tmp_path / "other.dcm"
    write_dicom(generate_study(77, seed=4, size=320), other)
    first, second = visit(), visit()
    first.read(image)
    shades = "document.querySelector('#stage canvas').toDataURL()"
    picture = first.page.evaluate(shades)
    second.read(other)
    first.page.click("[data-act=invert]")
    first.page.wait_for_function(f"old => {shades} !== old", arg=picture)
    first.page.click("[data-act=invert]")
    first.page.wait_for_function(f"old => {shades} === old", arg=picture)
    assert second.page.evaluate(shades) != picture


def test_the_name_of_the_file_is_nowhere_after_reading(visit: Open, image: Path, tmp_path: Path) -> None:
    named = tmp_path / "Canary_Carla_1950.dcm"
    named.write_bytes(image.read_bytes())
    here = visit()

    def kept() -> set[Path]:
        return {path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()}

    before = kept()  # by tests of batches in this process
    here.read(named)
    stored = here.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert "Canary" not in here.page.content() and "Canary" not in stored
    assert not any("Canary" in path.name or path.stat().st_size for path in kept() - before)


def test_the_page_fits_a_tablet_that_lies(visit: Open, image: Path, shots: Path) -> None:
    """Others: test_tabs.py."""
    here = visit((1180, 820))
    here.page.screenshot(path=shots / "tablet-landscape-empty.png")
    here.read(image)
    here.fits()
    here.page.screenshot(path=shots / "tablet-landscape.png", full_page=True)


def test_the_model_tab_shows_facts_and_a_card_that_cannot_act(visit: Open, room: Bundle, shots: Path) -> None:
    here = visit()
    here.page.get_by_role("tab", name="Model").click()
    here.page.wait_for_selector("dl.facts")
    assert room.model_sha256 in here.page.inner_text("dl.facts")
    here.page.screenshot(path=shots / "model.png")
    assert here.page.evaluate("window.acted === undefined") and here.errors == [] and here.elsewhere == []
