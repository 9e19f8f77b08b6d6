"""The tab "Batch": rows as `medsd score` makes them, bounds, and nothing left behind."""

from __future__ import annotations

import base64
import csv
import io
import re
import tempfile
import zipfile
from itertools import islice
from pathlib import Path

import pytest

from medsd.apps.web.reading import Reader
from medsd.apps.web.server import prepare_environment
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from medsd.studies.phantom import generate_study, write_dicom

prepare_environment()
pytest.importorskip("gradio")

from medsd.apps.web import batch  # noqa: E402
from medsd.apps.web.batch import BatchDesk  # noqa: E402


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


def _rows(saved: str) -> list[dict[str, str]]:
    content = base64.b64decode(re.findall(r'data-content="([^"]*)"', saved)[0]).decode()
    return list(csv.DictReader(io.StringIO(content, newline="")))


def test_every_file_is_a_row_and_nothing_is_left(reader: Reader, dropped: list[str], tmp_path: Path) -> None:
    steps = list(BatchDesk(reader).run(dropped, names=False))
    rows = _rows(steps[-1][1])
    assert [row["status"] for row in rows] == ["scored", "scored", "refused"] and rows[2]["message"]
    assert "3 of 3: 2 scored, 1 refused" in steps[-1][0] and "0 of 3" in steps[0][0]
    assert "Canary" not in str(steps) + str(rows) and [row["path"] for row in rows] == ["Image 1", "Image 2", "Image 3"]
    assert not list((tmp_path / "made").iterdir()) and not list((tmp_path / "given").iterdir())


def test_rows_are_those_of_medsd_score(reader: Reader, dropped: list[str], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    score(ScoringRequest(reader.bundle, [Path(path) for path in dropped], table, batch_size=1))
    wanted = list(csv.DictReader(table.open(encoding="utf-8")))
    [*_, (_, saved, _)] = BatchDesk(reader).run(dropped, names=True)
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
    [*_, (_, saved, _)] = BatchDesk(reader).run([str(named)], names=True)
    assert [row["path"] for row in _rows(saved)] == ["'=HYPERLINK(1)\r2"]


def test_an_archive_is_taken_apart_and_a_bomb_in_it_is_a_row(
    reader: Reader, dropped: list[str], tmp_path: Path
) -> None:
    archive = tmp_path / "given" / "images.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(dropped[0], "a.dcm")
        file.writestr("bomb.dcm", bytes(300_000_000))
    [*_, (html, saved, _)] = BatchDesk(reader).run([str(archive)], names=False)
    rows = _rows(saved)
    assert [row["status"] for row in rows] == ["scored", "refused"] and "Image 1.2" in html
    assert len(rows[1]["message"]) > 20


def test_too_much_at_once_is_refused_in_a_sentence(
    reader: Reader, dropped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_FILES", 2)
    [_, (html, saved, _)] = BatchDesk(reader).run(dropped, names=False)
    assert "3 files are too much for this page" in html and saved == ""
    assert not list((tmp_path / "made").iterdir())


def test_a_visitor_who_leaves_leaves_nothing(reader: Reader, dropped: list[str], tmp_path: Path) -> None:
    steps = BatchDesk(reader).run(dropped, names=False)
    next(steps)
    assert list((tmp_path / "made").iterdir())
    steps.close()  # as Gradio does when the page is gone, or "Stop" is pressed
    assert not list((tmp_path / "made").iterdir())


def test_a_second_batch_waits_says_so_and_then_gets_its_own_rows(
    reader: Reader, dropped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_EVERY_S", 0.01)
    desk = BatchDesk(reader)
    first, second = desk.run(dropped[:1], names=False), desk.run(dropped[1:], names=False)
    assert "0 of 1" in next(first)[0] and "1 of 1" in next(first)[0]  # has its turn
    assert "0 of 2" in next(second)[0]
    for _ in range(2):
        assert "Another batch is being read" in next(second)[0]
    assert len(_rows(list(first)[-1][1])) == 1
    assert [row["status"] for row in _rows(list(islice(second, 20))[-1][1])] == ["scored", "refused"]


def test_a_visitor_who_leaves_while_another_waits_gives_the_turn_away(reader: Reader, dropped: list[str]) -> None:
    desk = BatchDesk(reader)
    first, second = desk.run(dropped[:2], names=False), desk.run(dropped[2:], names=False)
    next(first), next(first)
    first.close()  # type: ignore[attr-defined]
    assert len(_rows(list(islice(second, 20))[-1][1])) == 1


def test_what_is_no_file_is_a_row_and_stays_where_it_is(
    reader: Reader, dropped: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, link, gone = tmp_path / "folder", tmp_path / "link", tmp_path / "gone"
    folder.mkdir()
    (folder / "another's").write_text("x")
    link.symlink_to(dropped[1])
    paths = [str(folder), dropped[0], str(link), str(gone)]
    [*_, (_, saved, _)] = BatchDesk(reader).run(paths, names=False)
    assert [row["status"] for row in _rows(saved)] == ["refused", "scored", "refused", "refused"]
    assert (folder / "another's").is_file() and link.is_symlink() and Path(dropped[1]).is_file()
    assert "Traceback" not in "".join(capfd.readouterr())
