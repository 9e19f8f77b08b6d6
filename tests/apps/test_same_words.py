"""Fifty readings drawn at random on the bundles that ship: page, PDF, JSON and CSV say the same words and numbers."""

import base64
import csv
import html
import io
import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from medsd.apps.web.reading import Reader, Reading
from medsd.apps.web.server import open_reader, prepare_environment
from medsd.bundle.layout import Bundle
from medsd.inference.coverage import offered
from medsd.inference.words import GROUPS, percent
from medsd.privacy import KEY_VARIABLE
from medsd.results.result import DISCLAIMER, SYNTHETIC
from medsd.scoring.table import columns, row, write_csv
from medsd.studies.phantom import generate_study, write_dicom
from tests.apps.reading_room import KEY
from tests.apps.scenes import read
from tests.results.test_pdf import _words

prepare_environment()
pytest.importorskip("gradio")

from medsd.apps.web.desk import Desk, Scene  # noqa: E402
from medsd.apps.web.seat import Seat  # noqa: E402

BUNDLES = ("phantom", "nih14")
DRAWN = 25  # readings of each
NOTES = ("", "Short of breath, known heart failure.", "Fever and productive cough for a week.")
NOT_READ = b"neither DICOM nor an image"


class Line(NamedTuple):
    """A row of the table of findings as a person sees it."""

    group: str
    name: str
    title: str
    reason: str
    call: str
    number: str
    threshold: str
    vote: str
    probability: float
    share: float


class Card(NamedTuple):
    """A card of a similar case as a person sees it."""

    relation: str
    words: str  # heading and sentence
    alike: str
    percentile: str
    who: str


class Drawn(NamedTuple):
    """A reading, and what each form says of it."""

    reading: Reading
    page: Scene
    record: dict[str, Any]
    document: str  # without white space, as lines are broken anywhere, and without the foot of the pages
    table: dict[str, str]


def _said(markup: str) -> str:
    """The text of a piece of the page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def _part(pattern: str, markup: str) -> str:
    found = re.search(pattern, markup, re.DOTALL)
    return found[1] if found else ""


def _close(words: str) -> str:
    return "".join(words.split())


_FOOT = f"{_close(DISCLAIMER)}({_close(SYNTHETIC)})?page\\d+"


def lines(table: str) -> list[Line]:
    """The rows of the page in their order."""
    found = []
    for group, body in re.findall(r'<tbody class="(\w+)">(.*?)</tbody>', table, re.DOTALL):
        assert _said(_part(r'<tr class="heading">(.*?)</tr>', body)) == f"{GROUPS[group]} {body.count('data-name')}"
        for call, name, about, cells in re.findall(
            r'<tr class="([\w-]+)[^"]*"\s+data-name="([^"]+)"([^>]*)>(.*?)</tr>', body, re.DOTALL
        ):
            head, number, *vote = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", cells, re.DOTALL)
            reason, small = (_part("<small>(.*?)</small>", cell) for cell in (head, number))
            found.append(
                Line(
                    group, name, _said(head.replace(f"<small>{reason}</small>", "")), _said(reason),
                    call.replace("-", " "), _said(_part('<span class="number">(.*?)</span>', number)),
                    _said(small).removeprefix("from ") or "–", _said("".join(vote)),
                    float(_part('data-probability="([^"]*)"', about)), float(_part('data-cases="([^"]*)"', about)),
                )
            )  # fmt: skip
    return found


def cards(shown: str) -> list[Card]:
    """The cards of the page, nearest first."""
    found = {}
    for relation, group in re.findall(r'<div class="group (\w+)">(.*?)</ol>', shown, re.DOTALL):
        heading = _said(_part(r"<h3[^>]*>(.*?)<span>", group))
        for card in re.findall(r'<li class="case".*?</li>', group, re.DOTALL):
            said = _said(_part(r'<p class="sentence"[^>]*>(.*?)</p>', card))
            alike = _said(_part(r'<span class="alike"[^>]*>(.*?)</span>', card))
            percentile, who = (
                html.unescape(_part(rf'class="{part}" title="([^"]*)"', card)) for part in ("alike", "who")
            )
            rank = int(_part(r'class="rank">(\d+)', card))
            found[rank] = Card(relation, f"{heading}: {said[0].lower()}{said[1:]}", alike, percentile, who)
    return [found[rank] for rank in sorted(found)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate((200, 260, 330, 400, 520)):
        write_dicom(generate_study(number, seed=83, size=size), folder / f"{number}.dcm")
    return [(folder / f"{number}.dcm").read_bytes() for number in range(5)]


@pytest.fixture(scope="module")
def drawn(images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Drawn]:
    chance, folder, found = random.Random(41), tmp_path_factory.mktemp("dropped"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        patch.setattr("medsd.apps.web.reading.ALIKE_S", 0.0)
        for name in BUNDLES:
            reader = open_reader(Bundle.open(Path(__file__).parents[2] / "models" / name))
            found += [_draw(reader, chance, images, folder / f"{name}{number}.dcm") for number in range(DRAWN)]
    return found


def _draw(reader: Reader, chance: random.Random, images: list[bytes], dropped: Path) -> Drawn:
    desk, seat, about = Desk(reader), Seat(), reader.bundle.findings
    coverages = (0, 0, *(round(share * 100) for share in offered(reader.bundle)))
    note = chance.choice(NOTES)
    kind = chance.choice(["image", "image", *["example"] * bool(reader.examples), *["note"] * reader.takes_notes])
    if kind == "example":
        desk.take_example(chance.randrange(len(reader.examples)), seat)
    elif kind == "note" and note:
        desk.take_note(note, seat)
    else:
        dropped.write_bytes(chance.choice([*images, NOT_READ]))
        desk.take_upload(str(dropped), note, seat)
    page = read(desk, seat, chance.choice(coverages))
    if not page.reading.prediction.refused:
        _, evidence, findings, cases = desk.again(seat, page.shown, chance.choice(coverages))
        page = page._replace(findings=findings, cases=cases)
        page = page._replace(evidence=evidence) if isinstance(evidence, str) else page
    assert seat.reading is not None
    prediction, text = seat.reading.prediction, io.StringIO()
    write_csv(text, [row("image", prediction)], columns(about))
    pdf, record = (
        base64.b64decode(_part('data-content="([^"]+)"', desk.export(form, seat, page.shown, None)))
        for form in ("PDF", "JSON")
    )
    [table] = csv.DictReader(io.StringIO(text.getvalue(), newline=""))
    document = re.sub(_FOOT, "", _close("".join(_words(pdf))))
    return Drawn(seat.reading, page, json.loads(record), document, table)


def test_impression_and_notice_are_the_same_everywhere(drawn: list[Drawn]) -> None:
    for each in drawn:
        notice, impression = _said(each.page.notice), each.record["impression"]
        assert _said(_part(r'<p class="impression"[^>]*>(.*?)</p>', each.page.findings)) == (
            f"{impression}." if impression else ""
        )
        assert _close(impression) in each.document and each.record["status"] == each.table["status"]
        assert each.record["message"] == each.table["message"]
        heading, _, message = notice.partition(". ")
        assert message.lower().startswith(each.record["message"].lower()) and bool(notice) == bool(message)
        assert _close(f"{heading}: {message}").lower() in each.document.lower() or not notice
        told = _said(_part(r'<details class="help">.*?<p>(.*?)</p>', each.page.findings))
        assert _close(told.removeprefix("Choose a finding to see where its evidence lies.")) in each.document
    assert {each.record["status"] for each in drawn} >= {"scored", "refused"}


def test_every_finding_has_its_group_place_words_and_numbers_everywhere(drawn: list[Drawn]) -> None:
    for each in drawn:
        shown, told = lines(each.page.findings), {finding["name"]: finding for finding in each.record["findings"]}
        votes = {vote["finding"]: vote for vote in each.record["votes"]}
        assert len(shown) == len(told) and [line.name for line in shown] == sorted(
            told, key=lambda name: list(GROUPS).index(told[name]["group"])
        )  # sorted() keeps the order of the record within a group
        at, group = 0, ""
        for line in shown:
            finding, vote = told[line.name], votes.get(line.name)
            assert (line.title, line.group, line.reason, line.call) == tuple(
                finding[part] for part in ("title", "group", "reason", "call")
            )
            assert each.table[f"call_{line.name}"] == line.call
            for number, words in (("probability", line.number), ("operating_point", line.threshold)):
                assert words == ("–" if finding[number] is None else percent(finding[number]))
            if finding["probability"] is None:
                assert line.probability == -1 and each.table[f"probability_{line.name}"] == ""
            else:
                assert float(each.table[f"probability_{line.name}"]) == line.probability == finding["probability"]
            if vote is not None:
                assert line.share == (-1 if vote["share"] is None else vote["share"])
                assert ("⚑" in line.vote) == vote["disagrees"] and (
                    vote["share_call"] in line.vote or "⚑" not in line.vote
                )
                assert vote["share"] is None or abs(float(line.vote.split()[0]) - vote["share"] * 100) <= 0.51
            if line.group != group:
                group = line.group
                at = each.document.index(_close(f"{GROUPS[group]} ({[one.group for one in shown].count(group)})"), at)
            words = _close(f"{line.title} {line.reason} {line.number} {line.threshold} {line.vote}")
            at = each.document.index(words, at)  # after the one before
    seen = {line.reason for each in drawn for line in lines(each.page.findings)}
    assert seen >= {f"{words} its threshold" for words in ("above", "just above", "just below", "below")}
    assert any(words.startswith("both calls conform") for words in seen)


def test_every_case_has_its_relation_sentence_and_likeness_everywhere(drawn: list[Drawn]) -> None:
    for each in drawn:
        shown, at = cards(each.page.cases), 0
        assert len(shown) == len(each.record["cases"]) and (shown or each.reading.prediction.refused)
        for rank, (card, told) in enumerate(zip(shown, each.record["cases"], strict=True), 1):
            assert (card.relation, card.words, card.alike) == (told["relation"], told["sentence"], told["likeness"])
            similarity, *percentile = re.findall(r"[\d.]+", card.percentile.replace("−", "-"))
            assert abs(float(similarity) - abs(told["similarity"])) <= 0.0051
            assert not percentile or abs(float(percentile[0]) - told["percentile"]) <= 0.56
            line = f"{rank}. {card.who} · {told['study_key']} {card.alike}; {card.percentile} {card.words}"
            at = each.document.index(_close(line), at)
    assert len({card.relation for each in drawn for card in cards(each.page.cases)}) >= 3


def test_evidence_that_the_document_names_is_that_of_the_page(drawn: list[Drawn]) -> None:
    for each in drawn:
        legend = _said(_part(r'<p class="legend"[^>]*>\s*(?:<span>)?(.*?)<', each.page.evidence))
        assert _close(legend.removesuffix(". No region stands out.")) in each.document
        assert ("Evidencefor" in each.document) == bool(legend)
