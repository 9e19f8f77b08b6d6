"""The tab "Batch": rows as `medsd score` makes them, bounds, and nothing left behind."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import tempfile
import zipfile
from itertools import islice
from pathlib import Path

import pydicom
import pytest

from medsd.apps.web.reading import Reader
from medsd.apps.web.server import prepare_environment
from medsd.scoring import by_study
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from medsd.studies.phantom import generate_study, write_dicom

prepare_environment()
gr = pytest.importorskip("gradio")

from medsd.apps.web import batch  # noqa: E402
from medsd.apps.web.batch import BatchDesk, BatchRun, By  # noqa: E402
from medsd.apps.web.batch_rows import DROPPED, STATUS  # noqa: E402
from medsd.apps.web.desk import Desk, Scene  # noqa: E402
from medsd.apps.web.seat import Seat  # noqa: E402


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two images and a text, named after somebody, as Gradio hands them over; what is made has its own place."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "made"))
    (tmp_path / "made").mkdir()
    (tmp_path / "given").mkdir()
    paths = [tmp_path / "given" / f"Canary_{number}.dcm" for number in range(3)]
    for number, path in enumerate(paths[:2]):
        write_dicom(generate_study(50 + number, seed=9, size=200), path)
    paths[2].write_text("Canary")
    return [str(path) for path in paths]


def _scored(
    reader: Reader, paths: list[str], *, names: bool = False, by: By = "image", order: str = DROPPED
) -> tuple[str, str, BatchRun]:
    """The page, the download and the run of a batch that has ended."""
    desk = BatchDesk(reader)
    [*_, (_, run, _, _)] = desk.run(paths, None)
    return *desk.show(run, names, by, order), run


def _rows(saved: str) -> list[dict[str, str]]:
    content = base64.b64decode(re.findall(r'data-content="([^"]*)"', saved)[0]).decode()
    return list(csv.DictReader(io.StringIO(content, newline="")))


def test_every_file_is_a_row_and_nothing_is_left(reader: Reader, dropped: list[str], tmp_path: Path) -> None:
    desk = BatchDesk(reader)
    steps = list(desk.run(dropped, None))
    html, saved = desk.show(steps[-1][1], False, "image", DROPPED)
    rows = _rows(saved)
    assert [row["status"] for row in rows] == ["scored", "scored", "refused"] and rows[2]["message"]
    assert "3 of 3: 2 scored, 1 refused" in html and "0 of 3" in steps[0][0]
    assert "Canary" not in f"{steps}{rows}{html}"
    assert [row["path"] for row in rows] == ["Image 1", "Image 2", "Image 3"]
    assert not list((tmp_path / "given").iterdir())
    steps[-1][1].close()
    assert not list((tmp_path / "made").iterdir())


def test_a_row_can_be_opened_until_the_next_batch_begins(reader: Reader, dropped: list[str], tmp_path: Path) -> None:
    content = Path(dropped[1]).read_bytes()
    html, _, run = _scored(reader, dropped)
    assert re.findall(r'data-open="(\d)"', html) == ["0", "1", "2"] and run.content(1) == content
    assert html.count('src="data:image/webp') == 2  # a picture of each image that was read
    assert [run.after(place) for place in range(3)] == [1, 2, None]
    next(BatchDesk(reader).run([str(tmp_path / "none")], run))
    assert run.content(1) is None


def test_a_row_is_read_in_the_reading_view_and_the_next_one_follows(
    reader: Reader, dropped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    contents = [Path(path).read_bytes() for path in dropped]
    _, _, run = _scored(reader, dropped)
    desk, seat = Desk(reader), Seat()
    *scene, tab = desk.take_row(run, seat, gr.EventData(None, {"open": 1}))
    assert tab == gr.update(selected="read") and Scene(*scene).onward == gr.update(visible=True)
    assert seat.asked is not None and seat.asked.content == contents[1]
    assert desk.take_note("short of breath", seat).onward == gr.skip() and seat.asked.place == 1
    *scene, tab = desk.take_next(run, seat)
    assert seat.asked.content == contents[2] and Scene(*scene).onward == gr.update(visible=False)
    nothing = (*Scene(), gr.skip())
    assert desk.take_next(run, seat) == nothing and said == []
    for wrong in (3, -1, "1", None):
        assert desk.take_row(run, seat, gr.EventData(None, {"open": wrong})) == nothing
    run.close()
    assert desk.take_row(run, seat, gr.EventData(None, {"open": 0})) == nothing and "Drop them again" in said[0]


def test_images_are_kept_for_a_while(
    reader: Reader, dropped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "KEPT_S", 0.01)
    _, _, run = _scored(reader, dropped)
    run._end.join(60)
    assert run.content(0) is None and not list((tmp_path / "made").iterdir())


def test_names_are_shown_and_hidden_after_the_run(reader: Reader, dropped: list[str]) -> None:
    _, _, run = _scored(reader, dropped)
    html, saved = BatchDesk(reader).show(run, True, "image", DROPPED)
    assert "Canary_1.dcm" in html and _rows(saved)[1]["path"] == "Canary_1.dcm"
    html, saved = BatchDesk(reader).show(run, False, "image", DROPPED)
    assert "Canary" not in html + str(_rows(saved))


def test_rows_are_ordered_by_status_and_by_a_finding(reader: Reader, dropped: list[str]) -> None:
    html, _, run = _scored(reader, dropped, order=STATUS)
    assert re.findall(r'<tr class="(\w+)"', html)[0] == "refused" and run.order[0] == 2
    html, saved = BatchDesk(reader).show(run, False, "image", "Effusion")
    order = sorted(range(2), key=lambda place: -float(_rows(saved)[place]["probability_Effusion"]))
    assert run.order == [*order, 2] and run.after(run.order[0]) == run.order[1]


def test_findings_are_counted(reader: Reader, dropped: list[str]) -> None:
    html, saved, _ = _scored(reader, dropped)
    for finding in reader.bundle.findings.findings:
        count = sum(row[f"call_{finding.name}"] == "present" for row in _rows(saved))
        assert (f"{finding.title} {count}<" in html) == (count > 0)


def test_a_row_a_study_is_that_of_medsd_score(reader: Reader, tmp_path: Path) -> None:
    pair = [generate_study(50, seed=9, size=200), generate_study(51, seed=9, size=200)]
    paths = [tmp_path / f"{number}.dcm" for number in range(3)]
    for path, study in zip(paths, (*pair, pair[0]), strict=True):
        write_dicom(study, path)
    other = pydicom.dcmread(paths[1])
    other.StudyInstanceUID = pydicom.dcmread(paths[0]).StudyInstanceUID
    other.save_as(paths[1])
    out = tmp_path / "table.csv"
    by_study.score(score, ScoringRequest(reader.bundle, paths, out, batch_size=1))
    wanted = list(csv.DictReader(out.open(encoding="utf-8")))
    html, saved, run = _scored(reader, [str(path) for path in paths], by="study", names=True)
    assert len(wanted) == 1 and "1 of 1" in html and re.findall(r'data-open="(\d)"', html) == ["0", "1"]
    [row] = _rows(saved)
    assert json.loads(row["paths_used"]) == ["0.dcm", "1.dcm"] and row["images"] == wanted[0]["images"] == "2"
    for name in ("status", "reason", "study_key", "duplicates", *(f"call_{each}" for each in reader.bundle.findings)):
        assert row[name] == wanted[0][name]
    assert run.order == [0, 1]


def test_rows_are_those_of_medsd_score(reader: Reader, dropped: list[str], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    score(ScoringRequest(reader.bundle, [Path(path) for path in dropped], table, batch_size=1))
    wanted = list(csv.DictReader(table.open(encoding="utf-8")))
    _, saved, _ = _scored(reader, dropped, names=True)
    for row, expected in zip(_rows(saved), wanted, strict=True):
        assert row["path"] == Path(expected["path"]).name and row["study_key"] == expected["study_key"]
        for name in reader.bundle.findings:
            assert row[f"call_{name}"] == expected[f"call_{name}"]
            if expected[f"probability_{name}"]:
                assert float(row[f"probability_{name}"]) == pytest.approx(
                    float(expected[f"probability_{name}"]), abs=1e-5
                )


def test_a_name_that_a_spreadsheet_would_run_is_defused(reader: Reader, dropped: list[str]) -> None:
    named = Path(dropped[2]).rename(Path(dropped[2]).with_name("=HYPERLINK(1)\r2"))
    _, saved, _ = _scored(reader, [str(named)], names=True)
    assert [row["path"] for row in _rows(saved)] == ["'=HYPERLINK(1)\r2"]


def test_an_archive_is_taken_apart_and_a_bomb_in_it_is_a_row(
    reader: Reader, dropped: list[str], tmp_path: Path
) -> None:
    archive = tmp_path / "given" / "images.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(dropped[0], "a.dcm")
        file.writestr("bomb.dcm", bytes(300_000_000))
    html, saved, run = _scored(reader, [str(archive)])
    rows = _rows(saved)
    assert run.content(0) == Path(dropped[0]).read_bytes() and run.content(1) is None
    assert [row["status"] for row in rows] == ["scored", "refused"] and "Image 1.2" in html
    assert len(rows[1]["message"]) > 20


def test_too_much_at_once_is_refused_in_a_sentence(
    reader: Reader, dropped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_FILES", 2)
    [_, (html, run, _, _)] = BatchDesk(reader).run(dropped, None)
    assert "3 files are too much for this page" in html and run is None
    assert BatchDesk(reader).show(run, False, "image", DROPPED) == (gr.skip(), gr.skip())
    assert not list((tmp_path / "made").iterdir())


def test_a_visitor_who_leaves_leaves_nothing(reader: Reader, dropped: list[str], tmp_path: Path) -> None:
    steps = BatchDesk(reader).run(dropped, None)
    next(steps)
    assert list((tmp_path / "made").iterdir())
    steps.close()  # as Gradio does when the page is gone, or "Stop" is pressed
    assert not list((tmp_path / "made").iterdir())


def test_a_second_batch_waits_says_so_and_then_gets_its_own_rows(
    reader: Reader, dropped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_EVERY_S", 0.01)
    desk = BatchDesk(reader)
    first, second = desk.run(dropped[:1], None), desk.run(dropped[1:], None)
    assert "0 of 1" in next(first)[0] and "1 of 1" in next(first)[0]  # has its turn
    assert "0 of 2" in next(second)[0]
    for _ in range(2):
        assert "Another batch is being read" in next(second)[0]
    assert len(list(first)[-1][1].rows) == 1
    assert [row.said["status"] for row in list(islice(second, 20))[-1][1].rows] == ["scored", "refused"]


def test_a_visitor_who_leaves_while_another_waits_gives_the_turn_away(reader: Reader, dropped: list[str]) -> None:
    desk = BatchDesk(reader)
    first, second = desk.run(dropped[:2], None), desk.run(dropped[2:], None)
    next(first), next(first)
    first.close()  # type: ignore[attr-defined]
    assert len(list(islice(second, 20))[-1][1].rows) == 1


def test_what_is_no_file_is_a_row_and_stays_where_it_is(
    reader: Reader, dropped: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, link, gone = tmp_path / "folder", tmp_path / "link", tmp_path / "gone"
    folder.mkdir()
    (folder / "another's").write_text("x")
    link.symlink_to(dropped[1])
    paths = [str(folder), dropped[0], str(link), str(gone)]
    _, saved, run = _scored(reader, paths)
    assert [row["status"] for row in _rows(saved)] == ["refused", "scored", "refused", "refused"]
    assert run.content(0) is run.content(2) is None
    assert (folder / "another's").is_file() and link.is_symlink() and Path(dropped[1]).is_file()
    assert "Traceback" not in "".join(capfd.readouterr())
