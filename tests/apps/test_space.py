"""The tab "Space": every case a point, the image in its place, a point opens its case."""

from __future__ import annotations

import re

import pytest

from medsd.apps.web.reading import Reader, Reading
from medsd.apps.web.server import prepare_environment
from tests.apps.reading_room import CASES

prepare_environment()
gr = pytest.importorskip("gradio")

from medsd.apps.web.space import SpaceDesk  # noqa: E402


@pytest.fixture(scope="module")
def desk(reader: Reader) -> SpaceDesk:
    return SpaceDesk(reader)


def test_every_case_is_a_point_coloured_by_what_it_has(desk: SpaceDesk, reader: Reader) -> None:
    html = desk.draw("Effusion", None)
    assert reader.index is not None
    wanted = int((reader.index.table()["Effusion"] == 1).sum())
    assert len(re.findall(r"data-point=", html)) == CASES
    assert len(re.findall(r'<circle class="present"', html)) == wanted and "your image" not in html


def test_the_image_at_hand_is_in_the_map(desk: SpaceDesk, reading: Reading) -> None:
    html = desk.draw("Mass", reading)
    assert html.count('<g class="query"') == 1 and "your image" in html
    x, y = (float(value) for value in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", html)[0])
    assert 0 <= x <= 1000 and 0 <= y <= 560


def test_a_point_opens_its_case(desk: SpaceDesk, reader: Reader, reading: Reading) -> None:
    desk.draw(None, None)
    assert reader.index is not None
    table = reader.index.table()
    for point in (0, CASES - 1):
        html = desk.open(reading, gr.EventData(None, {"point": point}))
        assert html.count('<li class="case"') == 1 and 'class="badge' in html
        for name in filter(None, table["findings"].iloc[point].split("|")):
            assert reader.bundle.findings.title(name) in html
        assert 'class="badge' not in desk.open(None, gr.EventData(None, {"point": point}))


@pytest.mark.parametrize("point", [None, -1, CASES, "0"])
def test_what_is_no_point_opens_nothing(desk: SpaceDesk, point: object) -> None:
    assert "<li" not in desk.open(None, gr.EventData(None, {"point": point}))


def test_without_cases_the_map_says_so(reader: Reader) -> None:
    assert "ships without earlier cases" in SpaceDesk(Reader(reader.bundle, reader._predict)).draw(None, None)
