from __future__ import annotations

import io
from pathlib import Path

import pytest

from medsd.errors import DataError
from medsd.scoring import inputs as inputs_module
from medsd.scoring.inputs import expand_inputs, name_inputs


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
        (lambda folder: folder / "empty", "the folder holds no images"),
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


def test_tables_and_texts_beside_films_are_no_inputs_unless_they_are_named(tmp_path: Path):
    for name in ("film.dcm", "IM0001", "cases.csv", "readme.TXT", "report.xml", "DICOMDIR"):
        (tmp_path / name).write_bytes(b"x")
    assert _names(expand_inputs([tmp_path])) == ["IM0001", "film.dcm"]
    assert _names(expand_inputs([tmp_path / "cases.csv"])) == ["cases.csv"]


def test_a_list_may_have_any_name_behind_its_mark_and_be_given_apart(films: Path, monkeypatch):
    monkeypatch.chdir(films.parent)
    Path("chosen").write_text("films/film_3.png\n")
    assert name_inputs([Path("@chosen")]).names == ["films/film_3.png"]
    assert name_inputs([Path("films/film_1.png")], lists=[Path("chosen")]).names == [
        "films/film_1.png",
        "films/film_3.png",
    ]


def test_a_table_is_a_list_with_notes(films: Path):
    listed = films.parent / "list.csv"
    listed.write_text("note,file\nfever,films/film_2.png\n,films/film_1.png\n")
    found = name_inputs([Path(f"@{listed}")])
    assert _names([Path(name) for name in found.names]) == ["film_2.png", "film_1.png"]
    assert list(found.notes.values()) == ["fever"]
    listed.write_text("file,note\nfilms/film_2.png,fever\nfilms/film_2.png,none\n")
    with pytest.raises(DataError, match=r"list\.csv:3: a second, different note"):
        name_inputs([], lists=[listed])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_paths_come_on_standard_input(films: Path, end: bytes):
    paths = [films / "film_2.png", films / "a b\u00e9.png", films / "deeper"]
    stdin = io.BytesIO(b"".join(str(path).encode() + end for path in paths))
    found = name_inputs([Path("-")], stdin=stdin).names
    assert _names([Path(name) for name in found]) == ["film_2.png", "a b\u00e9.png", "film_5.png", "film_6.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "standard input: the list names no files"),
        (bytes(128) + b"DICM" + bytes(10), "standard input: holds an image, not a list of paths"),
        (b"x" * 9000, "a line of more than 8192 bytes"),
    ],
)
def test_standard_input_that_is_no_list_is_named(content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        name_inputs([Path("-")], stdin=io.BytesIO(content))


def test_the_parts_of_a_run_are_no_inputs(films: Path):
    (films / "out.csv.parts").mkdir()
    (films / "out.csv.parts" / "lock").write_text("")
    assert "lock" not in _names(expand_inputs([films]))


def test_the_order_is_the_same_whatever_the_file_system_says(films: Path, monkeypatch):
    straight = expand_inputs([films, films / "deeper"])
    walk = inputs_module.os.walk
    monkeypatch.setattr(inputs_module.os, "walk", lambda *a, **k: (
        (parent, folders, files[::-1]) for parent, folders, files in walk(*a, **k)
    ))  # fmt: skip
    assert expand_inputs([films, films / "deeper"]) == straight
