"""The handlers of the page, called directly, and what the built page exposes."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medsd.apps.web import markup
from medsd.apps.web.case_cards import MOST_PINNED
from medsd.apps.web.export import _figures, read_look
from medsd.apps.web.reading import Reader, Reading
from medsd.apps.web.server import open_reader, prepare_environment
from medsd.bundle.layout import Bundle
from medsd.cases.pictures import PictureFolder
from medsd.privacy import KeyedHasher
from medsd.results.render import DISPLAY_SIDE, Window
from medsd.studies.phantom import generate_study
from tests.bundles import tiny_bundle

prepare_environment()
gr = pytest.importorskip("gradio")

from medsd.apps.web.app import build_page, theme  # noqa: E402
from medsd.apps.web.desk import Desk, Scene  # noqa: E402
from medsd.apps.web.pins import Board  # noqa: E402
from medsd.apps.web.seat import Asked, Seat  # noqa: E402
from tests.apps.reading_room import SEED  # noqa: E402
from tests.apps.scenes import read  # noqa: E402
from tests.studies.images import write_png  # noqa: E402

LOOK = {"level": 0.5, "width": 1, "inverted": False, "opacity": 0.4}


@pytest.fixture(scope="module")
def desk(reader: Reader) -> Desk:
    return Desk(reader)


def _click(finding: str) -> Any:
    return gr.EventData(None, {"finding": finding})


def test_an_upload_is_read_and_its_copy_deleted(desk: Desk, dropped: Path) -> None:
    seat = Seat()
    busy = desk.take_upload(str(dropped), "", seat)
    assert not dropped.exists()
    # The drop zone is empty again, so no file name stays on the page, and nothing of an earlier study does.
    assert "Reading" in busy.image and busy.upload is None and busy.reading is None and "<table" not in busy.findings
    done = read(desk, seat)
    assert done.reading.prediction.status == "scored" and "<table" in done.findings and "<li" in done.cases


def test_the_image_comes_first_then_the_findings_then_the_cases(desk: Desk, dropped: Path) -> None:
    seat = Seat()
    desk.take_upload(str(dropped), "", seat)
    steps = desk.read(seat)
    seen = next(steps)
    [key] = re.findall(r'data-key="(\w+)"', seen.image)
    assert seen == Scene(image=seen.image) and seat.reading is None  # nothing of it can be saved
    assert desk.detail(seat, gr.EventData(None, {"detail": key})) == ""  # it has no more pixels, and is known
    found = next(steps)
    assert "<table" in found.findings and found.image == found.cases == found.reading == gr.skip()
    assert found.evidence and desk.choose(seat, _click(seat.reading.ranked[-1]))[2] == seat.reading.ranked[-1]
    whole = next(steps)
    assert "<li" in whole.cases and whole.reading is seat.reading and whole.image == whole.evidence == gr.skip()
    assert whole.shown == seat.reading.ranked[-1]  # what was chosen meanwhile
    assert {*re.findall(r'data-of="(\w+)"', f"{found.findings}{found.evidence}{whole.findings}{whole.cases}")} == {key}
    assert list(steps) == [Scene()]


@pytest.mark.parametrize("stages", [1, 2])
def test_a_study_that_is_overtaken_between_its_stages_shows_no_more(desk: Desk, dropped: Path, stages: int) -> None:
    seat = Seat()
    desk.take_upload(str(dropped), "", seat)
    steps = desk.read(seat)
    for _ in range(stages):
        next(steps)
    seat.ask(Asked(b"another image"))
    assert list(steps) == [Scene()] and seat.reading is None and seat.image is None


def test_the_most_probable_finding_that_is_called_present_is_shown_first(desk: Desk, dropped: Path) -> None:
    seat = Seat()
    desk.take_upload(str(dropped), "", seat)
    done = read(desk, seat)
    prediction = done.reading.prediction
    assert prediction.present and done.shown == max(prediction.present, key=prediction.probabilities.__getitem__)
    assert "Evidence for" in done.evidence and "called absent" not in done.evidence


def test_no_hot_spot_lies_over_an_image_on_which_nothing_is_called_present(
    desk: Desk, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = dict.fromkeys(reading.prediction.findings, "absent") | {reading.ranked[1]: "undecided"}
    normal = replace(reading, prediction=replace(reading.prediction, calls=calls))
    monkeypatch.setattr(desk.reader, "stages", lambda *_: iter([normal]))
    seat = Seat()
    seat.ask(Asked(b"an image"))
    done = read(desk, seat)
    assert done.shown is None and done.evidence == "" and "vidence" not in done.image
    for name, words in ((reading.ranked[0], "which is called absent"), (reading.ranked[1], "which is undecided")):
        evidence = desk.choose(seat, _click(name))[0]
        assert (
            words in re.findall(r'<p class="legend"[^>]*><span>([^<]*)', evidence)[0]
            and words in re.findall('alt="([^"]*)"', evidence)[0]
        )


def test_the_legend_follows_the_call(desk: Desk, reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coverage that makes a present finding undecided changes what is said of the evidence."""
    name = reading.prediction.present[0]
    calls = {**reading.prediction.calls, name: "absent"}
    other = replace(reading, prediction=replace(reading.prediction, calls=calls))
    monkeypatch.setattr(desk.reader, "again", lambda *_: other)
    assert "which is called absent" in desk.again(Seat(reading), name)[1]
    monkeypatch.setattr(desk.reader, "again", lambda *_: reading)
    assert desk.again(Seat(reading), name)[1] == gr.skip()


@pytest.mark.parametrize("opacity", [0, 40])
def test_a_document_names_the_evidence_that_it_shows_and_no_other(reading: Reading, opacity: float) -> None:
    name = reading.prediction.present[0]
    figures = _figures(reading, Window(), name, opacity / 100)
    said = [figure.caption for figure in figures if "Evidence" in figure.caption]
    marked = [figure for figure in figures if _is_coloured(figure.content)]
    assert len(said) == len(marked) == (1 if opacity else 0) and figures[0].caption == "The image"
    flat = replace(reading.prediction, evidence_maps=np.zeros_like(reading.prediction.evidence_maps))
    [only] = _figures(replace(reading, prediction=flat), Window(), name, 0.4)
    assert "no region stands out" in only.caption and not _is_coloured(only.content)


def _is_coloured(content: bytes) -> bool:
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=int)
    return bool((pixels.max(2) - pixels.min(2)).max() > 30)


def test_an_example_is_read_with_its_note(desk: Desk, reader: Reader) -> None:
    seat = Seat()
    busy, done = desk.take_example(1, seat), read(desk, seat)
    assert busy.note == reader.examples[1].note and done.reading.ranked


def test_the_first_screen_offers_the_examples_with_pictures(desk: Desk, reader: Reader) -> None:
    html = markup.first_screen(reader.bundle, reader.examples)
    assert re.findall(r'data-example="(\d)"', html) == ["0", "1"] and html.count("data:image/webp") == 2
    seat = Seat()
    assert desk.take_offer(seat, gr.EventData(None, {"example": 1})).note == reader.examples[1].note
    assert seat.asked is not None and seat.asked.content == reader.examples[1].path.read_bytes()
    for wrong in (2, -1, "0", None):
        assert desk.take_offer(Seat(), gr.EventData(None, {"example": wrong})) == Scene()


def test_an_image_of_the_folder_of_images_is_offered(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    pictures = PictureFolder(tmp_path, KeyedHasher(b"sixteen bytes or more"))
    assert Reader(reader.bundle, reader._predict, None, pictures).examples == reader.examples
    write_png(generate_study(3, seed=SEED, size=128), tmp_path / "Canary.png")
    [*_, own] = Reader(reader.bundle, reader._predict, None, pictures).examples
    assert own.path.name == "Canary.png" and "Canary" not in markup.first_screen(reader.bundle, [own])
    (tmp_path / "Canary.png").write_bytes(b"torn")
    assert own.thumbnail() is None and "data-example" in markup.first_screen(reader.bundle, [own])


def test_reading_again_with_another_note_changes_the_findings(desk: Desk, dropped: Path, image: bytes) -> None:
    seat = Seat()
    desk.take_upload(str(dropped), "", seat)
    first = read(desk, seat)
    desk.take_note("short of breath", seat)
    second = read(desk, seat)
    assert first.findings != second.findings and seat.asked is not None and seat.asked.content == image


def test_a_bundle_that_reads_no_notes_has_no_note_and_keeps_no_image(dropped: Path, tmp_path: Path) -> None:
    desk, seat = Desk(open_reader(tiny_bundle(tmp_path / "plain"))), Seat()
    desk.take_upload(str(dropped), None, seat)  # Gradio gives None for a textbox that is hidden
    done = read(desk, seat)
    assert done.reading.prediction.status == "scored" and seat.asked is not None and seat.asked.content is None
    assert "ships without earlier cases" in done.cases


def test_nothing_is_read_where_there_is_neither_image_nor_note(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    seat = Seat()
    assert desk.take_note("  ", seat) == read(desk, seat) == Scene() and len(said) == 1


def test_an_upload_that_is_gone_is_said_in_a_sentence(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    seat = Seat()
    assert desk.take_upload(str(tmp_path / "gone.dcm"), "", seat) == Scene(upload=None) and "again" in said[0]
    assert read(desk, seat) == Scene()


def test_what_is_no_file_is_neither_read_nor_deleted(
    desk: Desk, dropped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    link = tmp_path / "link"
    link.symlink_to(dropped)
    for path in (tmp_path, link):
        assert desk.take_upload(str(path), "", Seat()) == Scene(upload=None)
    assert len(said) == 2 and link.is_symlink() and dropped.is_file()


def test_the_look_that_the_browser_tells_is_that_of_the_document(desk: Desk, reading: Reading) -> None:
    looks = [LOOK, LOOK | {"level": 0.3}, LOOK | {"width": 0.4}, LOOK | {"inverted": True}]
    saved = [desk.export("PDF", Seat(reading), None, look) for look in looks]
    assert len({re.findall('data-content="([^"]+)"', each)[0] for each in saved}) == len(looks)
    key = {"key": reading.key}
    assert desk.export("JSON", Seat(reading), None, LOOK | key) != gr.skip()
    assert desk.export("JSON", Seat(reading), None, LOOK | {"key": "of another image"}) == gr.skip()


@pytest.mark.parametrize(
    "look",
    [None, 3, [], {}, "x", {**LOOK, "level": "x"}, {**LOOK, "width": float("nan")}, {**LOOK, "opacity": 10**400}],
)
def test_what_is_no_look_is_the_image_as_it_is_stored(look: Any) -> None:
    assert read_look(look) == (Window(), 0.4)


def test_a_click_on_a_finding_changes_image_and_table(desk: Desk, reading: Reading) -> None:
    last = reading.ranked[-1]
    evidence, table, shown = desk.choose(Seat(reading), _click(last))
    assert shown == last and f'data-finding="{last}" aria-pressed="true"' in table
    assert evidence != desk.choose(Seat(reading), _click(reading.ranked[0]))[0]


@pytest.mark.parametrize("finding", ["", "NoSuchFinding", "<b>"])
def test_a_click_on_nothing_changes_nothing(desk: Desk, reading: Reading, finding: str) -> None:
    assert desk.choose(Seat(reading), _click(finding)) == (gr.skip(),) * 3


def test_every_pixel_of_a_large_image_comes_when_the_browser_asks(desk: Desk, reader: Reader, reading: Reading) -> None:
    ramp = np.linspace(0, 1, DISPLAY_SIDE + 600, dtype=np.float32)
    large = reader.read(np.tile(ramp, (300, 1)))  # type: ignore[arg-type]  # an array is a source too

    def ask(reading: Reading, key: str) -> Any:
        return desk.detail(Seat(reading), gr.EventData(None, {"detail": key}))

    assert 'data-detail="more"' in markup.image(large, "") and f'data-size="{DISPLAY_SIDE} ' in markup.image(large, "")
    assert f'data-size="{DISPLAY_SIDE + 600} 300"' in ask(large, large.key)
    assert ask(large, "another image") == gr.skip() and ask(reading, reading.key) == ""  # this one has no more to show


def test_no_handler_can_be_called_from_outside_of_the_page(reader: Reader) -> None:
    page = build_page(reader)
    calls = [call for call in page.get_config_file()["dependencies"] if call["backend_fn"]]
    assert calls and all(call["api_visibility"] == "private" for call in calls)


def test_the_fonts_are_those_of_the_system() -> None:
    assert not theme()._stylesheets and not theme()._font_css and "url(http" not in theme()._get_theme_css()


def test_other_cases_and_other_calls_stand_beside_the_same_image(desk: Desk, reading: Reading) -> None:
    boxes = ([], [], ["PA"], [], [], [])
    state, _, table, cases = desk.again(Seat(reading), None, 0, *boxes)
    assert (
        state.cases
        and {case.case.view for case in state.cases} == {"PA"}
        and cases != desk.again(Seat(reading), None)[3]
    )
    assert state.votes == reading.votes  # the vote's thresholds were chosen without filters
    covered, _, table, _ = desk.again(Seat(reading), None, 90, *([[]] * 6))
    assert covered.prediction.coverage == 0.9 and "90 %" in table


def test_a_filter_that_leaves_no_case_says_so(desk: Desk, reading: Reading) -> None:
    every = list(reading.prediction.findings)
    state, _, _, cases = desk.again(Seat(reading), None, 0, every, [], [], [], [], [])
    assert state.cases == () and "widen the filters" in cases


def test_a_reading_is_saved_as_pdf_and_json_without_a_name(desk: Desk, reading: Reading) -> None:
    pdf, record = (desk.export(kind, Seat(reading), reading.ranked[0], LOOK) for kind in ("PDF", "JSON"))
    content = [base64.b64decode(re.findall(r'data-content="([^"]+)"', link)[0]) for link in (pdf, record)]
    assert content[0].startswith(b"%PDF-") and 'download="medsd-reading.pdf"' in pdf
    told = json.loads(content[1])
    assert len(told["cases"]) == 8 and told["read"] == reading.read and b"short of breath" not in b"".join(content)


def test_an_opinion_is_kept_where_a_folder_is_given(bundle: Bundle, image: bytes, tmp_path: Path) -> None:
    desk = Desk(open_reader(bundle, feedback=tmp_path / "kept"))
    reading = desk.reader.read(image)
    name = reading.ranked[0]
    event = gr.EventData(None, {"finding": name, "opinion": "absent"})
    state, table = desk.opine(Seat(reading), None, event, gr.Request(username="anna"))
    assert state.opinions == {name: "absent"} and "saved" in table and 'aria-pressed="true"' in table
    back = gr.EventData(None, {"finding": name, "opinion": "withdrawn"})
    state, table = desk.opine(Seat(state), None, back, gr.Request(username="anna"))
    assert state.opinions == {} and "saved" not in table and not list((tmp_path / "kept" / "images").iterdir())
    assert "anna" not in (tmp_path / "kept" / "opinions.csv").read_text()


@pytest.mark.parametrize(
    "said", [None, "x", [], {}, {"finding": "x", "opinion": "absent"}, {"finding": "Mass", "opinion": "<b>"}]
)
def test_what_is_no_opinion_changes_nothing(desk: Desk, reading: Reading, said: Any) -> None:
    assert desk.opine(Seat(reading), None, gr.EventData(None, said), gr.Request()) == (gr.skip(), gr.skip())


def test_a_case_is_pinned_once_and_let_go(reader: Reader, reading: Reading) -> None:
    with gr.Blocks():
        board = Board(reader)
    keys = [case.case.study_key for case in reading.cases]
    _, pins = board.pin((), reading, gr.EventData(None, {"pin": keys[1]}))
    assert pins[0].case == reading.cases[1]
    assert board.pin(pins, reading, gr.EventData(None, {"pin": keys[1]})) == (gr.skip(), gr.skip())
    for key in keys[2:]:
        html, pins = board.pin(pins, reading, gr.EventData(None, {"pin": key}))
    assert len(pins) == MOST_PINNED == html.count("data-unpin") and pins[-1].case == reading.cases[7]
    assert board.unpin(pins, gr.EventData(None, {"unpin": 0}))[1] == pins[1:]


@pytest.mark.parametrize("key", [None, 0, 2, "2", ""])
def test_what_is_no_card_is_not_pinned(reader: Reader, reading: Reading, key: object) -> None:
    with gr.Blocks():
        board = Board(reader)
    assert board.pin((), reading, gr.EventData(None, {"pin": key})) == (gr.skip(), gr.skip())
