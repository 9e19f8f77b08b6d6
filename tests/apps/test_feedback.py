"""Opinions kept as a table that training reads: what is stored, what is not, and several writers at once."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd.apps.web.feedback import CONFIG, IMAGES, OPINIONS, STUDIES, FeedbackFolder, labelled
from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.inference.prediction import Prediction
from medsd.privacy import KeyedHasher
from medsd.settings import load_settings
from medsd.studies.sources import read_source

FINDINGS = finding_set("nih14")


@pytest.fixture
def folder(tmp_path: Path) -> FeedbackFolder:
    return FeedbackFolder(tmp_path / "feedback", KeyedHasher(b"a secret of sixteen bytes"))


def _prediction(number: int = 0, patient: str = "") -> Prediction:
    image = np.random.default_rng(number).random((30, 20)).astype(np.float32)
    return Prediction(
        FINDINGS,
        "scored",
        values=np.full(14, 0.5, np.float32),
        calls=dict.fromkeys(FINDINGS, "absent"),
        image=image,
        patient_key=patient,
        model_sha256="abc",
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_an_opinion_becomes_a_label_of_its_image(folder: FeedbackFolder) -> None:
    folder.add(_prediction(), "Mass", "present", reader="anna")
    folder.add(_prediction(), "Hernia", "absent", reader="anna")
    [row] = _rows(folder.root / STUDIES)
    assert (row["Mass"], row["Hernia"], row["Edema"]) == ("1", "0", "")
    picture = np.asarray(Image.open(folder.root / row["image"]))
    assert np.abs(picture / 255 - _prediction().image).max() <= 0.5 / 255 + 1e-6


def test_training_reads_the_folder_as_it_stands(folder: FeedbackFolder) -> None:
    for number in range(12):
        folder.add(_prediction(number, patient=f"p{number % 11}"), "Effusion", "present" if number else "absent")
    settings = load_settings(folder.root / CONFIG)
    table = read_source(settings).table
    assert len(table) == 12 and table["patient"].nunique() == 11
    assert sorted(table["Effusion"]) == [0] + [1] * 11 and table["Mass"].isna().all()


def test_the_latest_opinion_of_a_reader_counts_and_two_who_differ_leave_it_open(folder: FeedbackFolder) -> None:
    folder.add(_prediction(), "Mass", "present", reader="anna")
    folder.add(_prediction(), "Mass", "absent", reader="anna")
    assert labelled(folder.root / OPINIONS, FINDINGS)[0]["Mass"] == 0
    folder.add(_prediction(), "Mass", "present", reader="ben")
    assert labelled(folder.root / OPINIONS, FINDINGS)[0]["Mass"] == -1


def test_an_opinion_is_taken_back_and_with_the_last_of_them_the_image_goes(folder: FeedbackFolder) -> None:
    for name in ("Mass", "Edema"):
        folder.add(_prediction(), name, "present", reader="anna")
    folder.add(_prediction(), "Mass", "absent", reader="ben")
    folder.add(_prediction(), "Mass", None, reader="anna")
    [row] = _rows(folder.root / STUDIES)
    assert (row["Mass"], row["Edema"]) == ("0", "1") and (folder.root / row["image"]).is_file()
    assert [(each["finding"], each["opinion"]) for each in folder.opinions_on(_prediction())] == [
        ("Edema", "present"),
        ("Mass", "absent"),
    ]
    folder.add(_prediction(), "Mass", None, reader="ben")
    folder.add(_prediction(), "Edema", None, reader="anna")
    assert _rows(folder.root / STUDIES) == [] and not list((folder.root / IMAGES).iterdir())
    folder.add(_prediction(), "Edema", "absent", reader="anna")
    assert [row["Edema"] for row in _rows(folder.root / STUDIES)] == ["0"] and list((folder.root / IMAGES).iterdir())


def test_nobody_is_named_and_a_patients_key_is_hashed_again(folder: FeedbackFolder) -> None:
    folder.add(_prediction(patient="0123456789abcdef"), "Mass", "present", reader="Carla Canary")
    text = "".join(path.read_text() for path in folder.root.iterdir() if path.is_file())
    assert "Carla" not in text and "0123456789abcdef" not in text
    assert not Image.open(next((folder.root / IMAGES).glob("*.png"))).info


def test_many_writers_at_once_lose_nothing(folder: FeedbackFolder) -> None:
    jobs = [(number, name) for number in range(6) for name in ("Mass", "Edema", "Hernia")]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda job: folder.add(_prediction(job[0]), job[1], "present"), jobs))
    assert len(_rows(folder.root / OPINIONS)) == len(jobs)
    assert all(row["Mass"] == row["Edema"] == row["Hernia"] == "1" for row in _rows(folder.root / STUDIES))


def test_half_a_line_of_a_killed_process_spoils_no_other(folder: FeedbackFolder) -> None:
    folder.add(_prediction(), "Mass", "present")
    with (folder.root / OPINIONS).open("a") as file:
        file.write("2026-01-01T00:00:00,,images/x")
    folder.add(_prediction(1), "Edema", "absent")
    assert [row["Edema"] for row in _rows(folder.root / STUDIES)] == ["", "0"]


@pytest.mark.parametrize("change", [{"image": None}, {"status": "refused"}])
def test_without_an_image_that_was_read_nothing_is_kept(folder: FeedbackFolder, change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="image"):
        folder.add(replace(_prediction(), **change), "Mass", "present")
    assert not (folder.root / OPINIONS).exists()


def test_another_finding_is_refused(folder: FeedbackFolder) -> None:
    with pytest.raises(DataError, match="not a finding"):
        folder.add(_prediction(), "Dragon", "present")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be kept"):
        FeedbackFolder(tmp_path / "file" / "below", KeyedHasher(b"a secret of sixteen bytes"))
