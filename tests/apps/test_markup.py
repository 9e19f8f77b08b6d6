"""The HTML of the page: what it says, in which order, and that no text from elsewhere becomes markup."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest

from medsd.apps.web import case_cards, markup
from medsd.apps.web.reading import Reader, Reading, Wish
from medsd.bundle.layout import Bundle
from medsd.cases.explain import RELATION_TITLES, likeness, percentile_words, sentence
from medsd.inference.prediction import Prediction
from medsd.inference.words import grouped, reason
from medsd.results.pdf import reading_pdf
from medsd.results.record import reading_record
from medsd.results.render import PRESETS, preset_window
from tests.results.test_pdf import _words

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{value}}${value}"


def test_findings_stand_under_headings_most_probable_first_with_words_number_and_bar(
    bundle: Bundle, reading: Reading
) -> None:
    table = markup.findings(reading, bundle.description, reading.ranked[0])
    names = re.findall(r'data-name="([^"]+)"', table)
    assert tuple(names) == tuple(chain.from_iterable(grouped(reading.prediction).values()))
    assert sorted(names) == sorted(bundle.findings) and table.count("<b style=") == len(names)
    for name in names:
        threshold = bundle.description.operating_points[name].threshold
        words = reason(reading.prediction, name, threshold)
        assert words.endswith("its threshold") and f"{bundle.findings.title(name)}<small>{words}</small>" in table


def test_page_document_and_record_say_the_same(bundle: Bundle, reader: Reader, reading: Reading) -> None:
    for each in (reading, reader.again(reading, Wish(coverage=0.95))):
        about = (each.prediction, bundle, each.cases, each.votes)
        record, page = reading_record(*about), markup.findings(each, bundle.description, None)
        document = "".join("".join(_words(reading_pdf(*about))).split())  # lines are broken anywhere
        assert f">{record['impression']}." in page and _close(record["impression"]) in document
        for said in record["findings"]:
            assert said["reason"] in page and _close(said["reason"]) in document
        for case in record["cases"]:
            assert _close(case["sentence"]) in document


def _close(words: str) -> str:
    return "".join(words.split())


def test_the_findings_say_which_note_was_read(bundle: Bundle, reading: Reading) -> None:
    assert ">Read with the note: short of breath<" in markup.findings(reading, bundle.description, None)
    assert ">Read without a note<" in markup.findings(replace(reading, note=""), bundle.description, None)
    images_only = bundle.description.model_copy(update={"note": None})
    assert "note" not in markup.findings(reading, images_only, None)


def test_only_the_shown_finding_is_pressed(bundle: Bundle, reading: Reading) -> None:
    table = markup.findings(reading, bundle.description, "Mass")
    assert re.findall(r'data-finding="([^"]+)" aria-pressed="true"', table) == ["Mass"]


def test_a_call_says_where_it_comes_from(bundle: Bundle, reading: Reading) -> None:
    points = bundle.description.operating_points
    without = points | {"Mass": points["Mass"].model_copy(update={"threshold": None})}
    about = bundle.description.model_copy(update={"operating_points": without})
    undecided = replace(reading.prediction, calls=reading.prediction.calls | {"Mass": "undecided"})
    table = markup.findings(replace(reading, prediction=undecided), about, None)
    assert table.count("sensitivity 70 %, specificity 80 % in validation") == len(bundle.findings) - 1
    assert table.count("<small>too few validation images</small>") == 1


def test_the_image_carries_the_evidence_of_the_chosen_finding(reading: Reading) -> None:
    with_mass, with_edema = (markup.evidence(reading, name) for name in ("Mass", "Edema"))
    assert 'class="evidence"' in with_mass and "Evidence for Mass" in with_mass
    assert with_mass != with_edema and "Pulmonary oedema" in with_edema
    assert markup.evidence(reading, None) == "" and "evidence" not in markup.image(reading, "")


def test_a_refused_image_shows_the_notice_instead_of_findings(bundle: Bundle) -> None:
    refused = Reading(Prediction(bundle.findings, "refused", "modality", "the modality is CT."))
    assert "Not read" in markup.notice(refused) and "The modality is CT." in markup.notice(refused)
    assert markup.findings(refused, bundle.description, None) == "" and case_cards.cases(refused) == ""


def test_of_an_image_unlike_the_training_images_findings_and_cases_are_withheld_and_the_image_is_shown(
    bundle: Bundle, reading: Reading
) -> None:
    sentence = (
        "the image is unlike the radiographs that the model learned from (its outlines are not those of a chest)."
    )
    strange = Prediction(
        bundle.findings, "refused", "out_of_distribution", sentence, out_of_distribution=1.7, image=reading.display
    )
    withheld = Reading(strange, reading.display)
    told = markup.notice(withheld)
    assert "Findings withheld." in told and "its outlines are not those of a chest" in told and "No findings" in told
    assert "data-greys" in markup.image(withheld, "") and markup.evidence(withheld, "Mass") == ""
    assert markup.findings(withheld, bundle.description, None) == "" and case_cards.cases(withheld) == ""


def test_a_warning_stands_above_the_findings(bundle: Bundle, reading: Reading) -> None:
    warned = replace(reading, prediction=replace(reading.prediction, status="warned", message="bright and dark"))
    assert 'class="notice warned"' in markup.notice(warned)
    assert "<table" in markup.findings(warned, bundle.description, None)


def test_a_case_says_its_relation_and_the_findings_that_differ(bundle: Bundle, reading: Reading) -> None:
    cards = re.findall(r'<li class="case".*?</li>', case_cards.cases(reading))
    assert len(cards) == len(reading.cases) == 8
    ranks = [int(re.findall(r'class="rank">(\d)', card)[0]) for card in cards]
    for card, case in zip(cards, [reading.cases[rank - 1] for rank in ranks], strict=True):
        assert f'data-relation="{case.relation}"' in card
        assert f'title="{percentile_words(case)}">{likeness(case)}</span>' in card
        assert f">{sentence(case, bundle.findings)}</p>" in card


def test_cases_stand_in_groups_by_relation_and_within_them_nearest_first(reading: Reading) -> None:
    groups = re.findall(r'<div class="group (\w+)">(.*?)</ol>', case_cards.cases(reading))
    relations = {case.relation for case in reading.cases}
    assert [group for group, _ in groups] == [relation for relation in RELATION_TITLES if relation in relations]
    for relation, cards in groups:
        ranks = [int(rank) for rank in re.findall(r'class="rank">(\d)', cards)]
        assert ranks == sorted(ranks) and {reading.cases[rank - 1].relation for rank in ranks} == {relation}


def test_a_case_without_a_picture_has_a_quiet_placeholder(reading: Reading) -> None:
    bare = replace(reading, pictures=(None,) * len(reading.cases))
    assert case_cards.cases(bare).count("No picture") == 2 * len(reading.cases)  # card and side by side


def test_text_from_files_never_becomes_markup(bundle: Bundle, reading: Reading) -> None:
    case = reading.cases[0]
    about = replace(case.case, view=HOSTILE, source=HOSTILE, age_band=HOSTILE, note_excerpt=HOSTILE)
    hostile = replace(
        reading,
        prediction=replace(reading.prediction, status="warned", message=HOSTILE),
        cases=(replace(case, case=about),),
        pictures=(b"<script>alert(1)</script>",),
        note=HOSTILE,
    )
    page = case_cards.cases(hostile) + markup.notice(hostile) + markup.header(bundle, HOSTILE)
    page += markup.findings(hostile, bundle.description, None)
    assert "<img src=x" not in page and "<script>" not in page and page.count("&lt;img src=x") >= 7


def test_a_synthetic_bundle_says_so(bundle: Bundle) -> None:
    assert "synthetic phantoms; not a medical result" in markup.header(bundle, "CPUExecutionProvider")
    assert "no medical device" in markup.header(bundle, "")


def test_a_reading_without_cases_says_why(reader: Reader, bundle: Bundle, image: bytes) -> None:
    alone = Reader(bundle, reader._predict).read(image)
    assert "ships without earlier cases" in case_cards.cases(alone)


def test_no_identity_of_the_image_is_on_the_page(bundle: Bundle, reader: Reader, build_dx, chest) -> None:  # type: ignore[no-untyped-def]
    stored = (chest * 4000).astype("uint16")
    read = reader.read(
        build_dx(stored, 12, PatientName="Canary^Carla", PatientID="CANARY-77", AccessionNumber="CANARY-A")
    )
    page = "".join(
        (
            markup.image(read, ""),
            markup.findings(read, bundle.description, None),
            case_cards.cases(read),
            markup.notice(read),
        )
    )
    assert read.prediction.values is not None and "canary" not in page.lower()


def test_what_the_nearest_cases_say_stands_beside_and_disagreement_is_flagged(bundle: Bundle, reading: Reading) -> None:
    table = markup.findings(reading, bundle.description, None)
    against = [vote for vote in reading.votes if vote.disagrees]
    assert against and table.count('class="flag"') == len(against)
    assert f"similar cases disagree on {len(against)}." in table
    assert 'data-sort="cases"' in table
    alone = markup.findings(replace(reading, votes=()), bundle.description, None)
    assert "disagree on" not in alone and 'data-sort="cases"' not in alone


def test_under_a_coverage_a_call_says_why_it_is_undecided(bundle: Bundle, reader: Reader, reading: Reading) -> None:
    covered = reader.again(reading, Wish(coverage=0.95))
    table = markup.findings(covered, bundle.description, None)
    assert "Conformal calls with a coverage of 95 %." in table and "its threshold</small>" not in table
    undecided = [name for name in bundle.findings if covered.prediction.calls[name] == "undecided"]
    assert undecided and table.count("<small>both calls conform at 95 %</small>") == len(undecided)


def test_feedback_is_asked_for_only_where_it_is_kept(bundle: Bundle, reading: Reading) -> None:
    assert "data-opinion" not in markup.findings(reading, bundle.description, None)
    name = reading.ranked[0]
    call = reading.prediction.calls[name]
    said = replace(reading, opinions={name: call})
    table = markup.findings(said, bundle.description, None, feedback=True)
    assert table.count("data-opinion") == 2 * len(bundle.findings) + 1 and table.count("saved") == 1  # with one "undo"
    assert table.count('class="opinion"') and table.count('aria-pressed="true"') == 1


def test_the_browser_is_told_the_size_of_the_image_its_windows_and_the_name_of_its_grey_values(
    reading: Reading,
) -> None:
    assert reading.display is not None
    told = dict(re.findall(r'data-([\w-]+)="([^"]*)"', markup.image(reading, "some-name")))
    assert told["size"] == "{1} {0}".format(*reading.display.shape) and told["greys"] == "some-name"
    assert json.loads(html.unescape(told["windows"]))[0] == [0.5, 1.0] and told["key"] == reading.key


def test_the_windows_of_a_large_image_are_those_of_all_its_pixels(bundle: Bundle) -> None:
    seed = np.random.default_rng(5)
    image = np.clip(np.linspace(0, 1, 1400) ** 2 + seed.normal(0, 0.02, (1300, 1400)), 0, 1).astype(np.float32)
    told = dict(
        re.findall(
            r'data-([\w-]+)="([^"]*)"',
            markup.image(Reading(Prediction(bundle.findings, "scored", image=image), image), ""),
        )
    )
    windows = [preset_window(preset, image) for preset in PRESETS]
    found = json.loads(html.unescape(told["windows"]))
    assert np.abs(np.array(found) - [(window.level, window.width) for window in windows]).max() < 0.01


@pytest.mark.parametrize("name", ["Pixel Spacing", "Imager Pixel Spacing"])
def test_the_browser_is_told_how_far_apart_pixels_are_and_what_says_so(
    reader: Reader, build_dx: Any, chest: Any, name: str
) -> None:
    stored = (chest * 4000).astype("uint16")
    read = reader.read(build_dx(stored, 12, **{name.replace(" ", ""): [0.2, 0.3]}))
    assert f'data-spacing="0.2 0.3" data-spacing-from="{name}"' in markup.image(read, "")
    assert 'data-spacing="" data-spacing-from=""' in markup.image(reader.read(build_dx(stored, 12)), "")
