"""Other cases beside a study: those alike in a box of its image, and those like one of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsd.apps.web import case_cards
from medsd.apps.web.near import read_box
from medsd.apps.web.reading import Reader, Reading, Wish
from medsd.apps.web.server import prepare_environment
from medsd.cases.case import CaseFilter
from medsd.cases.explain import box_embedding, signed
from medsd.cases.pictures import PictureFolder
from medsd.errors import DataError
from medsd.privacy import KeyedHasher
from medsd.studies.phantom import generate_study
from tests.apps.reading_room import SEED
from tests.studies.images import write_png

prepare_environment()
gr = pytest.importorskip("gradio")

from medsd.apps.web.desk import Desk  # noqa: E402
from medsd.apps.web.pins import Board  # noqa: E402
from medsd.apps.web.seat import Asked, Seat  # noqa: E402

BOX = (0.1, 0.5, 0.6, 0.9)
SAME = (gr.skip(),) * 2


def _keys(cases: Any) -> list[str]:
    return [each.case.study_key for each in cases]


def _event(**said: Any) -> Any:
    return gr.EventData(None, said)


def test_cases_in_a_box_come_by_the_part_of_the_cosine_inside(reader: Reader, reading: Reading) -> None:
    near = reader.near(reading, BOX, CaseFilter()).near
    assert near is not None and reader.index is not None
    inside, whole = box_embedding(reading.prediction, BOX), reading.prediction.embedding
    parts = {case.study_key: float(vector @ inside) for case, vector in reader.index.records()}
    assert _keys(near.cases) == sorted(parts, key=lambda key: -parts[key])[: len(near.cases)]
    for case, share, picture in zip(near.cases, near.shares, near.pictures, strict=True):
        assert share == pytest.approx(parts[case.case.study_key], abs=1e-6)
        assert case.similarity == pytest.approx(float(case.embedding @ whole), abs=1e-5)
        assert case.percentile is not None and (picture is None) == (case.case.thumbnail is None)
    assert _keys(near.cases) != _keys(reading.cases)


def test_a_case_as_the_query_is_not_among_those_like_it(reader: Reader, reading: Reading) -> None:
    case = reading.cases[2]
    near = reader.near(reading, (case, 3), CaseFilter()).near
    assert near is not None and near.title == "Like case 3" and case.embedding is not None
    assert case.case.study_key not in _keys(near.cases) and len(near.cases) == len(reading.cases)
    for other in near.cases:
        assert other.similarity == pytest.approx(float(other.embedding @ case.embedding), abs=1e-5)
        assert other.case.patient_key != case.case.patient_key
        assert set(other.shared) == set(other.case.findings) & set(case.case.findings)


def test_filters_hold_and_other_calls_keep_the_box(reader: Reader, reading: Reading) -> None:
    boxed = reader.near(reading, BOX, CaseFilter())
    again = reader.again(boxed, Wish(0.9, CaseFilter(view="PA")))
    assert again.near is not None and again.near.of == BOX
    assert {case.case.view for case in again.near.cases} == {case.case.view for case in again.cases} == {"PA"}


def test_the_page_shows_those_cases_with_a_way_back(reader: Reader, reading: Reading) -> None:
    desk, seat = Desk(reader), Seat(reading)
    boxed, html = desk.near(seat, _event(box=[BOX[2], BOX[3], BOX[0], BOX[1]], key=reading.key))
    assert boxed is seat.reading and boxed.near.of == BOX
    assert "Alike in the box" in html and "data-back" in html and f"{signed(boxed.near.shares[0])} in the box" in html
    first = boxed.near.cases[0].case.study_key
    # In the order of the parts, whatever the relations; the nearest cases stand in groups.
    assert re.findall(r'class="rank">(\d)', html) == [str(rank) for rank in range(1, 9)] and "<h3" not in html
    assert "<h3" in case_cards.cases(reading)
    like, html = desk.near(seat, _event(like=first))
    assert like.near.title == "Like case 1" and first not in _keys(like.near.cases)
    back, html = desk.near(seat, _event(back=1))
    assert back.near is None and html == case_cards.cases(reading)


def test_a_part_that_speaks_against_a_case_has_a_true_minus(reader: Reader, reading: Reading) -> None:
    boxed = reader.near(reading, BOX, CaseFilter())
    assert boxed.near is not None
    shares = (-0.034, -0.001, *boxed.near.shares[2:])
    html = case_cards.cases(replace(boxed, near=replace(boxed.near, shares=shares)))
    assert ">−0.03 in the box<" in html and ">0.00 in the box<" in html and "-0.0" not in html


def test_a_pin_is_of_the_case_that_is_seen(reader: Reader, reading: Reading) -> None:
    boxed = reader.near(reading, BOX, CaseFilter())
    assert boxed.near is not None
    for case in boxed.near.cases:
        with gr.Blocks():
            _, pins = Board(reader).pin((), boxed, _event(pin=case.case.study_key))
        assert pins[0].case is case


@pytest.mark.parametrize(
    "said",
    [
        {"box": BOX, "key": "of another image"},
        {"box": [0, 0, 1], "key": None},
        {"box": [0, 0, "x", float("nan")], "key": None},
        {"box": [0.3, 0.3, 0.3, 0.3], "key": None},
        {"like": "nobody"},
    ],
)
def test_what_cannot_be_asked_changes_nothing(reader: Reader, reading: Reading, said: dict[str, Any]) -> None:
    seat = Seat(reading)
    if "key" in said:
        said = said | {"key": said["key"] or reading.key}
    assert Desk(reader).near(seat, _event(**said)) == SAME and seat.reading is reading


def test_cases_of_an_earlier_image_or_question_come_too_late(
    reader: Reader, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, seat, near = Desk(reader), Seat(reading), Reader.near

    def slow(*about: Any) -> Reading:
        seat.ask(Asked(b"another image"))
        return near(reader, *about)

    monkeypatch.setattr(reader, "near", slow)
    assert desk.near(seat, _event(box=BOX, key=reading.key)) == SAME and seat.reading is None
    seat = Seat(reading)

    def overtaken(*about: Any) -> Reading:
        assert desk.near(seat, _event(back=1))[0].near is None
        return near(reader, *about)

    monkeypatch.setattr(reader, "near", overtaken)
    assert desk.near(seat, _event(box=BOX, key=reading.key)) == SAME
    assert seat.reading is not None and seat.reading.near is None


def test_a_box_is_read_with_its_corners_in_any_order_and_within_the_image() -> None:
    assert read_box([0.9, -3, 0.2, 0.5]) == (0.2, 0.0, 0.9, 0.5)
    with pytest.raises(DataError, match="Draw a box"):
        read_box("abcd")


def test_every_pixel_of_a_case_comes_from_the_persons_own_folder(
    reader: Reader, reading: Reading, tmp_path: Path
) -> None:
    class NamesAsKeys(KeyedHasher):
        def study_key(self, uid: str) -> str:
            return uid

    study = generate_study(0, seed=SEED, size=500)
    write_png(study, tmp_path / f"{study.study}.png")
    own = Reader(reader.bundle, reader._predict, reader.index, PictureFolder(tmp_path, NamesAsKeys(b"x" * 16)))
    [case] = [case for case, _ in own.index.records() if case.study_key == study.study]  # type: ignore[union-attr]
    shown = replace(reading, cases=(replace(reading.cases[0], case=case), *reading.cases[1:]))
    html = Desk(own).beside(Seat(shown), _event(beside=study.study))
    assert 'data-size="500 500"' in html and f'data-key="{study.study}"' in html
    for seat, key in ((Seat(shown), "nobody"), (Seat(), study.study)):
        assert Desk(own).beside(seat, _event(beside=key)) == gr.skip()
    assert reader.original(shown.cases[0]) is None  # without a folder
