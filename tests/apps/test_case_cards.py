"""Cards of cases: where a similarity stands, what makes two images alike, and words that fit what was compared."""

from __future__ import annotations

import re
from dataclasses import replace

from medsd.apps.web import case_cards
from medsd.apps.web.case_cards import Gallery, Pinned
from medsd.apps.web.reading import Reading
from medsd.bundle.layout import Bundle


def test_likeness_is_a_word_with_the_percentile_in_its_tooltip(reading: Reading) -> None:
    html = case_cards.cases(reading)
    for case in reading.cases:
        assert f"more alike than {case.percentile:.0f} % of training pairs with this relation" in html
    assert html.count('<span class="alike" title="similarity') == len(reading.cases)
    bare = replace(reading, cases=tuple(replace(case, percentile=None) for case in reading.cases))
    assert "more alike than" not in case_cards.cases(bare)


def test_what_makes_two_images_alike_can_be_laid_over_the_image(reading: Reading) -> None:
    html = case_cards.cases(replace(reading, alike=()))
    assert html.count('class="likeness"') == html.count("Show what makes them alike") == len(reading.cases)

    both, layers = case_cards.cases(reading), [layer for layer in reading.alike if layer]
    assert len(layers) > len(reading.cases) / 2  # a thumbnail may be refused, as any image
    assert both.count('class="likeness"') == len(reading.cases) + len(layers)
    assert all(f'<img class="likeness" src="{layer}"' in both for layer in layers)
    without = replace(reading, prediction=replace(reading.prediction, regions=None))
    assert 'class="likeness"' not in case_cards.cases(replace(without, alike=()))


def test_cases_that_were_searched_for_are_compared_with_what_was_asked(bundle: Bundle, reading: Reading) -> None:
    about = Gallery("found-", "Cases", here="asked for")
    html = case_cards.gallery(about, reading.cases, reading.pictures, bundle.findings)
    assert "your image" not in html and 'id="found-case-1"' in html
    assert any(case.missing for case in reading.cases) and "acks " in html


def test_dialogs_follow_each_other_by_rank_whatever_the_groups(reading: Reading) -> None:
    html = case_cards.cases(reading)
    numbers = [str(rank) for rank in range(1, len(reading.cases) + 1)]
    assert re.findall(r'class="pair" id="case-(\d)"', html) == numbers
    assert sorted(re.findall(r'class="rank">(\d)', html)) == numbers


def test_cases_without_a_relation_have_no_badge(bundle: Bundle, reading: Reading) -> None:
    html = case_cards.gallery(Gallery("x-", "Cases", related=False), reading.cases, reading.pictures, bundle.findings)
    assert 'class="badge' not in html and "<h3" not in html and "hares" not in html
    assert re.findall(r'class="rank">(\d)', html) == [str(rank) for rank in range(1, len(reading.cases) + 1)]


def test_pinned_cases_stand_side_by_side(bundle: Bundle, reading: Reading) -> None:
    pins = [Pinned(case, picture) for case, picture in zip(reading.cases[:3], reading.pictures[:3], strict=True)]
    html = case_cards.pinned(pins, bundle.findings)
    assert html.count("<figure>") == html.count("data-unpin") == 3 and case_cards.pinned([], bundle.findings) == ""
