"""A reading as PDF: what stands on its pages, what does not, and the same bytes for the same reading."""

from __future__ import annotations

import base64
import io
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd.apps.web import markup
from medsd.apps.web.reading import Reading
from medsd.bundle.layout import Bundle
from medsd.calibration.types import CalibrationChoice
from medsd.cases.case import Case, Hit
from medsd.cases.explain import explain
from medsd.cases.vote import FindingVote
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.results.pdf import Figure, reading_pdf
from medsd.results.record import reading_record
from medsd.studies.phantom import generate_study
from tests.bundles import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def prediction(bundle: Bundle) -> Prediction:
    return Predictor(bundle)(generate_study(3, seed=1, size=200).pixels)


def _picture(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (40, 60), 90).save(buffer, kind)
    return buffer.getvalue()


def _words(content: bytes) -> list[str]:
    """The text of each page. DejaVu is embedded with a map of its own, so the letters are looked up in it."""
    objects = {int(number): body for number, body in re.findall(rb"(\d+) 0 obj\n(.*?)\nendobj", content, re.DOTALL)}

    def stream(body: bytes) -> bytes:
        raw = body.split(b"stream\n", 1)[1].split(b"endstream", 1)[0].strip()
        if b"/ASCII85Decode" in body:
            raw = base64.a85decode(raw.removesuffix(b"~>"))
        return zlib.decompress(raw) if b"/FlateDecode" in body else raw

    letters: dict[str, dict[int, str]] = {}
    for body in objects.values():
        for name, number in re.findall(rb"/(F\d\+\d) (\d+) 0 R", body):
            unicode = re.search(rb"/ToUnicode (\d+) 0 R", objects[int(number)])
            if unicode:
                pairs = re.findall(rb"<(\w\w)> <(\w{4})>", stream(objects[int(unicode[1])]))
                rows = re.findall(rb"<(\w\w)> <(\w\w)> \[?<(\w{4})>", stream(objects[int(unicode[1])]))
                letters[name.decode()] = {int(a, 16): chr(int(b, 16)) for a, b in pairs}
                letters[name.decode()] |= {int(a, 16): chr(int(c, 16)) for a, _, c in rows}
    pages = []
    for body in objects.values():
        if re.search(rb"/Type /Page\b(?!s)", body):
            found = re.search(rb"/Contents (\d+) 0 R", body)
            assert found
            pages.append(_decoded(stream(objects[int(found[1])]).decode("latin-1"), letters))
    return pages


def _decoded(page: str, letters: dict[str, dict[int, str]]) -> str:
    """The paragraphs of a page; the pieces of a line belong together, however they were cut."""
    paragraphs, font = [], ""
    for block in re.findall(r"BT (.*?) ET", page, re.DOTALL):
        said = ""
        for name, text in re.findall(r"/(F\d\+\d) [\d.]+ Tf|\(((?:\\.|[^\\)])*)\) Tj", block, re.DOTALL):
            if name:
                font = name
                continue
            raw = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), text)
            raw = re.sub(r"\\(.)", r"\1", raw)
            said += "".join(letters.get(font, {}).get(ord(letter), letter) for letter in raw)
        paragraphs.append(said)
    return " ".join(paragraphs)


def test_the_same_reading_gives_the_same_bytes(bundle: Bundle, prediction: Prediction) -> None:
    first, second = (reading_pdf(prediction, bundle, figures=[Figure(_picture(), "image")]) for _ in range(2))
    assert first == second and first.startswith(b"%PDF-") and reading_pdf(prediction, bundle) != first


def test_findings_model_and_hash_are_there_and_the_disclaimer_on_every_page(
    bundle: Bundle, prediction: Prediction
) -> None:
    hits = [Hit(Case(f"case{n}", labels=np.zeros(14, np.float32)), 0.5, np.zeros(16, np.float32)) for n in range(12)]
    pages = _words(
        reading_pdf(prediction, bundle, explain(prediction, hits), pictures=[_picture("WEBP")] * 12, when="2026-05-06")
    )
    whole = " ".join(pages)
    assert len(pages) >= 2 and all("no medical device" in page and "synthetic phantoms" in page for page in pages)
    assert bundle.label in whole and bundle.model_sha256 in whole and "2026-05-06" in whole and "case11" in whole
    assert all(bundle.findings.title(name).split()[0] in whole for name in bundle.findings)


def test_a_calibration_of_all_findings_together_is_named(bundle: Bundle, prediction: Prediction) -> None:
    choice = CalibrationChoice(method="pooled", positives=3, negatives=90, reason="too few")
    told = bundle.description.model_copy(update={"calibration_choices": {"Hernia": choice}})
    words = "Calibrated with all findings together, as these have too few cases of their own: Hiatal hernia."
    pooled = replace(bundle, description=told)
    assert words in " ".join(" ".join(_words(reading_pdf(prediction, pooled))).split())
    assert words in markup.findings(Reading(prediction), told, None)
    record = {each["name"]: each["calibration"] for each in reading_record(prediction, pooled)["findings"]}
    assert record["Hernia"] == "pooled" and record["Mass"] is None
    assert "Calibrated with" not in " ".join(_words(reading_pdf(prediction, bundle)))


def test_the_vote_is_told_where_it_disagrees(bundle: Bundle, prediction: Prediction) -> None:
    votes = [FindingVote("Mass", 0.75, 0.1, "present", "absent", True)]
    assert "75 % ⚑ present" in re.sub(r"\s+", " ", " ".join(_words(reading_pdf(prediction, bundle, votes=votes))))


def test_a_refused_study_is_said_in_the_place_of_findings(bundle: Bundle) -> None:
    refused = Predictor(bundle)(np.zeros((4, 4), np.float32))
    whole = " ".join(_words(reading_pdf(refused, bundle)))
    assert "Not read: the image has 4 × 4 pixels" in whole and "Probability" not in whole


def test_what_looks_like_mark_up_is_printed_as_it_stands(bundle: Bundle, prediction: Prediction) -> None:
    figure = Figure(_picture("JPEG"), '<b>bold</b> & <img src="http://example.org/x.png"/>')
    assert "<b>bold</b>" in " ".join(_words(reading_pdf(prediction, bundle, figures=[figure])))


def test_nothing_is_fetched_or_run_by_the_document(bundle: Bundle, prediction: Prediction) -> None:
    content = reading_pdf(prediction, bundle, figures=[Figure(_picture())])
    assert all(key not in content for key in (b"/JavaScript", b"/URI", b"/Launch", b"/EmbeddedFile"))


def test_the_document_is_a_file_that_readers_open(bundle: Bundle, prediction: Prediction, tmp_path: Path) -> None:
    content = reading_pdf(prediction, bundle)
    assert content.rstrip().endswith(b"%%EOF") and int(re.findall(rb"startxref\s+(\d+)", content)[-1]) < len(content)
