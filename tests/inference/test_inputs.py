from __future__ import annotations

from pathlib import Path

import pytest

from medsd.errors import DataError
from medsd.inference.inputs import expand_inputs
from medsd.inference.note_files import Notes


def _names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_a_folder_is_read_deeply_in_order_without_hidden_files(films: Path):
    found = _names(expand_inputs([films]))
    assert found == [*(f"film_{n}.png" for n in range(5)), "note.doc", "film_5.png", "film_6.png"]


def test_a_hidden_folder_is_skipped(films: Path):
    (films / ".cache").mkdir()
    (films / ".cache" / "film.png").write_bytes(b"x")
    assert "film.png" not in _names(expand_inputs([films]))


def test_a_pattern_matches_files(films: Path):
    assert _names(expand_inputs([films / "*_[12].png"])) == ["film_1.png", "film_2.png"]
    assert _names(expand_inputs([films / "**" / "film_6.png"])) == ["film_6.png"]


def test_a_list_names_files_beside_it(films: Path):
    listed = films.parent / "list.txt"
    listed.write_text("# remarks\n\nfilms/film_2.png\nfilms/gone.png\n  films/deeper \n")
    assert _names(expand_inputs([listed])) == ["film_2.png", "gone.png", "film_5.png", "film_6.png"]


def test_the_same_path_is_one_input(films: Path):
    assert len(expand_inputs([films, films / "film_1.png", films])) == 8


def test_the_output_is_no_input(films: Path, monkeypatch):
    monkeypatch.chdir(films)
    (films / "out.csv").write_text("")
    assert "out.csv" not in _names(expand_inputs([Path()], leave_out=[films / "out.csv"]))


def test_a_film_whose_name_looks_like_a_pattern_is_itself(films: Path):
    (films / "film[1].png").write_bytes(b"x")
    assert _names(expand_inputs([films / "film[1].png"])) == ["film[1].png"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "nowhere: does not exist"),
        (lambda folder: folder / "*.dcm", "the pattern matches no file"),
        (lambda folder: folder / "empty", "the folder holds no films"),
        (lambda folder: folder / "empty.txt", "the list names no files"),
    ],
)
def test_what_cannot_be_an_input_is_named(films: Path, make, message: str):
    (films / "empty").mkdir()
    (films / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match=message):
        expand_inputs([make(films)])


def test_nothing_at_all_is_an_error():
    with pytest.raises(DataError, match="nothing to score"):
        expand_inputs([])


def test_notes_are_found_by_path_or_by_name(tmp_path: Path):
    table = tmp_path / "notes.csv"
    table.write_text('path,note\nfilms/a.png,"cough,\nfever"\nb.png,known\n', encoding="utf-8-sig")
    notes = Notes.read(table)
    assert notes.of(Path("films/a.png")) == "cough,\nfever"
    assert notes.of(Path("elsewhere/b.png")) == "known"
    assert notes.of(Path("other/a.png")) is None


def test_a_very_long_note_is_read(tmp_path: Path):
    table = tmp_path / "notes.csv"
    table.write_text("file,note\na.png," + "x" * 300_000 + "\n")
    assert len(Notes.read(table).of(Path("a.png")) or "") == 300_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,text\na,b\n", r"needs the columns 'path' and 'note'; it has name, text"),
        ("", "it has none"),
        ("path,note\na,one\na,two\n", r"notes.csv:3: a second, different note"),
    ],
)
def test_unusable_notes_are_named(tmp_path: Path, content: str, message: str):
    table = tmp_path / "notes.csv"
    table.write_text(content)
    with pytest.raises(DataError, match=message):
        Notes.read(table)


def test_notes_that_are_not_text_are_named(tmp_path: Path):
    table = tmp_path / "notes.csv"
    table.write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(DataError, match="cannot be read as a CSV of notes"):
        Notes.read(table)


def test_tables_and_texts_beside_films_are_no_inputs_unless_they_are_named(tmp_path: Path):
    for name in ("film.dcm", "IM0001", "cases.csv", "readme.TXT", "report.xml", "DICOMDIR"):
        (tmp_path / name).write_bytes(b"x")
    assert _names(expand_inputs([tmp_path])) == ["IM0001", "film.dcm"]
    assert _names(expand_inputs([tmp_path / "cases.csv"])) == ["cases.csv"]
