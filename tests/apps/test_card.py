"""The tab "Model": facts of the bundle, and a card that cannot act or fetch."""

from __future__ import annotations

import json
from pathlib import Path

from medsd.apps.web.card import card_html, facts, summary
from medsd.bundle.layout import Bundle
from medsd.inference.words import percent
from medsd.results.result import SYNTHETIC
from tests.apps.reading_room import copy_bundle

MODELS = Path(__file__).parents[2] / "models"


def test_facts_name_model_version_provider_and_hash(bundle: Bundle) -> None:
    html = facts(bundle, "CPUExecutionProvider")
    for word in (bundle.description.name, bundle.description.version, "CPUExecutionProvider", bundle.model_sha256):
        assert f"<dd>{word}</dd>" in html


def test_half_a_page_says_what_the_model_reads_says_and_learned_from(bundle: Bundle) -> None:
    html, about = summary(bundle, 1400), bundle.description
    assert "chest radiographs and clinical notes" in html and "1,400 earlier cases" in html
    assert about.provenance.data in html and f"each of {len(bundle.findings)} findings" in html
    for finding in bundle.findings.findings:
        point = about.operating_points[finding.name]
        row = html.split(f'<th scope="row">{finding.title}</th>')[1].split("</tr>")[0]
        assert (percent(point.threshold) if point.threshold is not None else "no call") in row
    assert "AUROC" not in html  # nothing was measured of this bundle


def test_a_bundle_that_was_measured_says_how_well_it_did() -> None:
    phantom = Bundle.open(MODELS / "phantom", verify=False)
    report = json.loads((MODELS / "phantom" / "evaluation.json").read_text(encoding="utf-8"))
    html = summary(phantom, 0)
    assert SYNTHETIC in html and "earlier cases" not in html
    for finding in report["findings"]:
        assert f"{finding['auroc']['value']:.3f} (" in html.split(finding["title"])[1].split("</tr>")[0]


def test_pictures_beside_the_card_are_put_into_it(bundle: Bundle) -> None:
    assert '<img src="data:image/png;base64,' in card_html(bundle)


def test_pictures_from_elsewhere_and_html_are_left_out(bundle: Bundle) -> None:
    text = card_html(bundle)
    assert '<img src="" alt="Elsewhere"' in text and "pixel.png" not in text
    assert "<script" not in text and 'src="https://' not in text and text.count("<img") == 2


def test_a_picture_outside_of_the_bundle_is_not_read(bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_bundle(bundle, tmp_path / "copy")
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    (copy / "README.md").write_text("![x](../secret.png)", encoding="utf-8")
    assert card_html(Bundle.open(copy, verify=False)) == '<p><img src="" alt="x" /></p>\n'


def test_a_bundle_without_a_card_says_so(bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_bundle(bundle, tmp_path / "copy")
    (copy / "README.md").unlink()
    assert card_html(Bundle.open(copy, verify=False)) == "<p>This bundle ships no card.</p>\n"
