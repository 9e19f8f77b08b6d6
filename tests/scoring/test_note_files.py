from __future__ import annotations

import zipfile
from pathlib import Path

import pandas as pd
import pytest

from medsd.bundle.layout import Bundle
from medsd.errors import DataError, ImageError
from medsd.scoring.batch import score
from medsd.scoring.note_files import Notes
from medsd.scoring.request import ScoringRequest


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
        ('path,note\na,"one\nb,two\n', r"notes.csv:2: .*unexpected end of data"),  # else b is no input, without a word
        ("path,note\na,small effusion, left\n", r"notes.csv:2: has more cells than the heading"),
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


def test_a_text_beside_a_film_is_its_note(tmp_path: Path):
    notes = Notes({"b.dcm": "of the table"}, beside=True)
    for name in ("a.dcm", "b.dcm", "1.2.840.113", "c.dcm"):
        (tmp_path / name).write_bytes(b"film")
    for name, text in (("a.txt", "cough"), ("b.txt", "unread"), ("1.2.840.113.txt", "fever"), ("1.2.840.txt", "other")):
        (tmp_path / name).write_text(text)
    found = [notes.of(tmp_path / name) for name in ("a.dcm", "b.dcm", "1.2.840.113", "c.dcm")]
    assert found == ["cough", "of the table", "fever", None]
    assert Notes({"b.dcm": "x"}).of(tmp_path / "a.dcm") is None


def test_a_text_beside_a_member_is_its_note(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as files:
        files.writestr("in/film.dcm", b"film")
        files.writestr("in/film.txt", "cough")
    assert Notes(beside=True).of(f"{tmp_path}/a.zip!in/film.dcm") == "cough"
    assert Notes(beside=True).of(f"{tmp_path}/a.zip!in/other.dcm") is None


@pytest.mark.parametrize(
    ("content", "detail"), [(b"\xff\xfe", "no UTF-8 text"), (b"x" * (2**20 + 1), "more than 1048576")]
)
def test_a_text_that_cannot_be_read_is_said_so(tmp_path: Path, content: bytes, detail: str):
    (tmp_path / "film.txt").write_bytes(content)
    with pytest.raises(ImageError, match=detail):
        Notes(beside=True).of(tmp_path / "film.dcm")


def test_notes_beside_films_and_of_lists_change_what_a_fused_model_says(
    fused_bundle: Bundle, films: Path, tmp_path: Path
):
    (films / "film_1.txt").write_text("fever")
    (films / "film_2.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "list.csv").write_text(f"path,note\n{films},\n{films}/film_3.png,fever\n")
    frames = []
    for name, more in (("plain", {}), ("noted", {"lists": [tmp_path / "list.csv"], "side_notes": True})):
        score(ScoringRequest(fused_bundle, [films], tmp_path / f"{name}.csv", **more))
        frames.append(pd.read_csv(tmp_path / f"{name}.csv", index_col="path"))
    plain, noted = frames
    changed = (plain.probability_Mass - noted.probability_Mass).abs() > 1e-4
    assert [Path(path).name for path in plain.index[changed]] == ["film_1.png", "film_3.png"]
    assert noted.reason[f"{films}/film_2.png"] == "file_error"


def test_the_digest_changes_with_any_note():
    digests = [
        notes.digest()
        for notes in (Notes(), Notes(beside=True), Notes({"a": "b"}), Notes({"ab": ""}), Notes({"a": "c"}))
    ]
    assert len(set(digests)) == 5
    assert Notes({"a": "1", "b": "2"}).digest() == Notes({"b": "2", "a": "1"}).digest()
