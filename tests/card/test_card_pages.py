"""The card as a page, and as what the bundle's own JSON files make: nothing from outside, no number from nowhere."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from medsd.bundle import layout
from medsd.card import CARD, PAGE, different_pages, html_page
from medsd.cli import app
from medsd.errors import BundleError, MedsdError
from medsd.evaluation.report import EvaluationReport
from tests.bundles import tiny_bundle
from tests.card.test_card import measured, write  # noqa: F401
from tests.card_numbers import unexplained_numbers

MODELS = Path(__file__).parents[2] / "models"
Measured = tuple[layout.Description, EvaluationReport]


class Links(HTMLParser):
    """Every address that a page would load or lead to, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


@pytest.fixture
def bundle(measured: Measured, tmp_path: Path) -> layout.Bundle:  # noqa: F811
    """A bundle with a card."""
    folder = tmp_path / "bundle"
    tiny_bundle(folder)
    (folder / "plots").mkdir()
    Image.new("L", (4, 4)).save(folder / "plots" / "roc.png")
    write(folder, *measured)
    layout.write_description(folder, measured[0])
    return layout.Bundle.open(folder)


def test_the_page_has_its_pictures_inside_and_loads_nothing(bundle: layout.Bundle) -> None:
    links = Links((bundle.folder / PAGE).read_text(encoding="utf-8"))
    assert links.addresses and all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert not links.tags & {"script", "link", "iframe", "object", "form"}
    assert {"table", "details", "img"} <= links.tags


def test_the_page_is_for_light_and_dark_and_paper_and_can_be_signed(bundle: layout.Bundle) -> None:
    text = (bundle.folder / PAGE).read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    signature = text.split('<h2 id="review">', 1)[1]
    assert all(word in signature for word in ("Reviewer", "Date", "Decision", "Signature"))


def test_what_looks_like_html_in_a_description_stays_text(tmp_path: Path) -> None:
    page = html_page("# A\n\n<script>alert(1)</script> ![x](../secret.png) <img src=x>", tmp_path, title="<b>")
    assert "<script>" not in page and "<img src=x" not in page and "<title>&lt;b&gt;</title>" in page
    assert Links(page).addresses == [""]


def test_every_number_of_the_tables_is_a_value_of_the_json_files(bundle: layout.Bundle) -> None:
    count, missing = unexplained_numbers((bundle.folder / CARD).read_text(encoding="utf-8"), bundle.folder)
    assert count > 300 and missing == []


def test_a_number_from_nowhere_is_found_out(bundle: layout.Bundle) -> None:
    text = (bundle.folder / CARD).read_text(encoding="utf-8")
    changed = re.sub(r"\| AUROC \| 0\.\d{3}", "| AUROC | 0.9137", text, count=1)
    assert unexplained_numbers(changed, bundle.folder)[1]


def test_the_verb_writes_the_same_pages_and_the_check_holds(bundle: layout.Bundle, tmp_path: Path) -> None:
    before = {name: (bundle.folder / name).read_bytes() for name in (CARD, PAGE, "bundle.json")}
    assert CliRunner().invoke(app, ["card", str(bundle.folder), "--check"]).exit_code == 0
    assert CliRunner().invoke(app, ["card", str(bundle.folder)]).exit_code == 0
    assert {name: (bundle.folder / name).read_bytes() for name in before} == before
    assert CliRunner().invoke(app, ["card", str(bundle.folder), "--out", str(tmp_path / "other")]).exit_code == 0
    assert (tmp_path / "other" / CARD).read_bytes() == before[CARD]


def test_a_page_that_says_something_else_than_the_files_is_named(bundle: layout.Bundle) -> None:
    path = bundle.folder / CARD
    path.write_text(path.read_text(encoding="utf-8").replace("AUROC", "AUROG"), encoding="utf-8")
    with pytest.raises(BundleError, match="was changed after export"):
        layout.Bundle.open(bundle.folder)
    layout.write_description(bundle.folder, bundle.description)
    assert different_pages(layout.Bundle.open(bundle.folder)) == [CARD]
    said = CliRunner().invoke(app, ["card", str(bundle.folder), "--check"])
    assert isinstance(said.exception, MedsdError) and "README.md is not what" in str(said.exception)


@pytest.mark.parametrize("name", ["nih14", "phantom"])
def test_the_cards_that_ship_are_what_their_files_make(name: str) -> None:
    folder = MODELS / name
    if not (folder / PAGE).is_file():
        pytest.skip(f"{folder} was exported before cards were pages")
    assert different_pages(layout.Bundle.open(folder)) == []
    count, missing = unexplained_numbers((folder / CARD).read_text(encoding="utf-8"), folder)
    assert count > 200 and missing == []


@pytest.mark.parametrize("name", ["phantom", "nih14"])
def test_every_table_is_shown_as_a_table(name: str) -> None:
    page = (MODELS / name / PAGE).read_text(encoding="utf-8")
    assert "<p>|" not in page and page.count("<table>") > 10
    assert not re.search(r"<th\b[^>]*></th>", page)  # which a screen reader would read as a column without a name
