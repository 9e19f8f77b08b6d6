"""Every tab in a real browser: at two sizes, light and dark, without serious findings of axe; and what each is for."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medsd.bundle.layout import Bundle
from tests.browser.conftest import Visit

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
SIZES = {"desk": (1280, 900), "tablet": (820, 1180)}
# A tab, and what stands in it once it has been opened.
TABS = {
    "Read": "table.findings tbody tr",
    "Findings search": "#found section.cases",
    "Space": "circle[data-point]",
    "Batch": "#batch-rows",
    "Model": "dl.facts",
}


def _serious(visit: Visit) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="browser: axe is not installed")
    found = axe.Axe().run(visit.page).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:120]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(("size", "scheme"), [("desk", "dark"), ("tablet", "light")])
def test_every_tab_fits_its_screen_and_can_be_used_by_everybody(
    visit: Open, image: Path, shots: Path, size: str, scheme: str
) -> None:
    here = visit(SIZES[size], scheme)
    here.read(image)
    here.fits()
    for tab, content in TABS.items():
        here.open_tab(tab)
        here.page.wait_for_selector(content)
        here.page.wait_for_timeout(250)
        here.page.screenshot(path=shots / f"{tab.split()[0].lower()}-{size}-{scheme}.png", full_page=True)
        assert here.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab
        assert _serious(here) == [], tab
    assert here.errors == [] and here.elsewhere == []


def test_a_case_beside_the_image_is_accessible_and_shows_what_makes_them_alike(
    visit: Open, image: Path, shots: Path
) -> None:
    here = visit()
    here.read(image)
    here.page.click("li.case >> nth=0 >> button.open")
    dialog = here.page.locator(".pair:popover-open")
    dialog.get_by_label("Show what makes them alike").check()
    opacity = "getComputedStyle(document.querySelector('.pair:popover-open .likeness')).opacity"
    here.page.wait_for_function(f"{opacity} > 0.5")
    here.page.screenshot(path=shots / "alike.png")
    assert "more alike than" in dialog.inner_text() and _serious(here) == []


def test_findings_are_sorted_by_their_heads_and_stay_so_and_an_opinion_is_kept(visit: Open, image: Path) -> None:
    here = visit()
    here.read(image)
    titles = "[...document.querySelectorAll('tbody.absent tr[data-title]')].map(row => row.dataset.title)"
    before = here.page.evaluate(titles)
    here.page.click('button[data-sort="title"]')
    here.page.wait_for_selector('th[aria-sort="ascending"] button[data-sort="title"]')
    assert here.page.evaluate(titles) == sorted(before) != before
    here.page.click("button[data-fold]")
    here.page.locator("button[data-finding]").last.click()
    here.page.wait_for_selector('button[data-finding][aria-pressed="true"]')
    assert here.page.evaluate(titles) == sorted(before) and here.errors == []
    assert here.page.get_attribute("button[data-fold]", "aria-expanded") == "true"  # as it was before the drawing
    here.page.click("button[data-opinion] >> nth=1")
    here.page.wait_for_selector('button[data-opinion][aria-pressed="true"]')
    assert here.page.locator('button[data-opinion][aria-pressed="true"]').count() == 1
    here.page.click(".kept >> text=undo")
    here.page.wait_for_selector(".kept", state="detached")
    assert here.page.locator('button[data-opinion][aria-pressed="true"]').count() == 0 and here.errors == []


def test_a_reading_is_saved_as_pdf_and_json_and_another_coverage_calls_anew(
    visit: Open, image: Path, tmp_path: Path
) -> None:
    here = visit()
    here.read(image)
    for kind in ("pdf", "json"):
        here.page.click(f"#save-{kind}")
        here.page.wait_for_selector(f'#saved a[download="medsd-reading.{kind}"][href^="blob:"]')
        with here.page.expect_download() as download:
            here.page.click("#saved a")
        download.value.save_as(tmp_path / kind)
    assert (tmp_path / "pdf").read_bytes().startswith(b"%PDF-")
    with here.page.expect_download():
        here.page.click("#save-json")  # once more
    assert len(json.loads((tmp_path / "json").read_text())["cases"]) == 8
    assert "similar cases disagree on" in here.page.inner_text(".impression")
    assert all(flag.is_visible() for flag in here.page.locator("td.against .flag").all())  # folded or not
    here.page.get_by_label("95 %", exact=True).check()
    here.page.wait_for_selector(".impression:has-text('95 %')")
    assert here.page.locator("tr.undecided").count() and here.errors == []


def test_filters_narrow_the_cases_of_an_image(visit: Open, image: Path) -> None:
    here = visit()
    here.read(image)
    here.page.get_by_role("button", name="Filter the cases").click()
    here.page.get_by_label("View", exact=True).first.click()
    here.page.get_by_role("option", name="PA", exact=True).click()
    shown = "[...document.querySelectorAll('#cases li.case .who')].map(who => who.innerText)"
    here.page.wait_for_function(f"{shown}.every(text => text.startsWith('PA'))")
    assert here.page.evaluate(shown) and here.errors == []


def test_cases_are_found_by_findings_and_pinned(visit: Open) -> None:
    here = visit()
    here.open_tab("Findings search")
    here.page.fill("#search-sentence input, #search-sentence textarea", "effusion without cardiomegaly")
    here.page.click("#search-go")
    here.page.wait_for_selector("#found li.case")
    assert "without Cardiomegaly" in here.page.inner_text("#found h2")
    here.page.click("#found-save")
    with here.page.expect_download() as download:
        here.page.wait_for_selector("#found-saved a[href^=blob]")
        here.page.click("#found-saved a")
    assert download.value.suggested_filename == "medsd-cases.csv"
    here.page.click("#found [data-pin] >> nth=0")
    here.page.wait_for_selector("#pinned figure")
    here.open_tab("Read")
    assert here.page.locator("#pinned figure").is_visible()  # it stays while other images are read
    here.page.click("[data-unpin]")
    here.page.wait_for_selector("#pinned figure", state="detached")
    assert here.errors == []


def test_a_point_of_the_map_opens_by_mouse_and_by_keyboard(visit: Open) -> None:
    here = visit()
    here.open_tab("Space")
    here.page.wait_for_selector("circle[data-point]")
    here.page.locator("circle[data-point]").last.dispatch_event("click", {"bubbles": True})
    here.page.wait_for_selector("#space-case li.case")
    first = here.page.inner_html("#space-case")
    here.page.focus(".map")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowUp"):
        here.page.keyboard.press(key)
    assert here.page.locator("circle.chosen").count() == 1 and here.page.inner_text(".said").startswith("Case")
    if here.page.get_attribute("circle.chosen", "data-point") in first:
        here.page.keyboard.press("ArrowDown")
    here.page.keyboard.press("Enter")
    here.page.wait_for_function("old => document.querySelector('#space-case').innerHTML !== old", arg=first)
    assert here.errors == []


def test_a_batch_is_scored_and_its_table_downloaded(visit: Open, room: Bundle, image: Path, tmp_path: Path) -> None:
    named = [tmp_path / f"Canary_Carla_{number}.dcm" for number in range(2)]
    for path in named:
        path.write_bytes(image.read_bytes())
    (tmp_path / "no.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    here = visit()
    here.open_tab("Batch")
    here.page.set_input_files("#batch-files input[type=file]", [*map(str, named), str(tmp_path / "no.svg")])
    here.page.wait_for_selector("#batch-saved a[href^=blob]")
    assert "3 of 3" in here.page.inner_text(".progress") and "Canary" not in here.page.content()
    with here.page.expect_download() as download:
        here.page.click("#batch-saved a")
    download.value.save_as(tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert [row["status"] == "refused" for row in rows] == [False, False, True] and here.errors == []
    here.page.get_by_label("Names of the files").check()
    here.page.wait_for_selector("#batch-rows >> text=Canary_Carla_0.dcm")
    here.page.get_by_label("Names of the files").uncheck()
    here.page.wait_for_selector("#batch-rows >> text=Canary_Carla_0.dcm", state="detached")
    here.page.click("[data-open='1']")
    here.page.wait_for_selector("table.findings tbody tr")
    assert here.page.locator("#stage canvas").is_visible() and here.page.locator("td.thumb img").count() == 2
    here.page.wait_for_selector("#onward")  # Gradio draws what was hidden a moment later
    here.page.keyboard.press("n")  # the last, which was refused
    here.page.wait_for_selector(".notice.refused")
    assert not here.page.locator("#onward").is_visible() and "Canary" not in here.page.content()
    assert _serious(here) == [] and here.errors == []


def test_a_file_of_300_mb_is_refused_in_a_sentence(visit: Open, tmp_path: Path, shots: Path) -> None:
    large = tmp_path / "large.dcm"
    with large.open("wb") as file:
        file.truncate(300_000_000)  # a hole: nothing is written
    here = visit()
    here.drop(large)
    here.page.wait_for_selector("text=/exceed|too large|maximum/i")
    here.page.screenshot(path=shots / "too-large.png")
    assert "Traceback" not in here.page.content() and here.page.locator("#upload input[type=file]").count()
