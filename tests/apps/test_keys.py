"""Keys of a user's images: by the user's secret wherever they go, whatever keys the cases of the bundle have."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medsd.apps.web.export import export
from medsd.apps.web.reading import Reader, Reading
from medsd.apps.web.server import open_reader
from medsd.bundle.layout import Bundle, write_description
from medsd.cases.case import Case
from medsd.cases.index import CaseIndex
from medsd.labelling.pool import suggest_images
from medsd.privacy import KeyedHasher, public_hasher
from medsd.results.pdf import reading_pdf
from medsd.results.render import Window
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from medsd.studies.phantom import generate_study, write_dicom
from tests.apps.reading_room import KEY, copy_bundle
from tests.results.test_pdf import _words

OWN = KeyedHasher(KEY.encode())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.dcm"
    write_dicom(generate_study(41, seed=9, size=200), path)
    return path


@pytest.fixture(scope="module")
def header(image: Path) -> tuple[str, str]:
    dataset = pydicom.dcmread(image, stop_before_pixels=True)
    return str(dataset.StudyInstanceUID), str(dataset.PatientID)


@pytest.fixture(scope="module")
def public(bundle: Bundle, image: Path, header: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of public data: the image itself is one of its cases, and so is another image of the patient."""
    folder = copy_bundle(bundle, tmp_path_factory.mktemp("public") / "room")
    write_description(folder, bundle.description.model_copy(update={"public": True}))
    opened = Bundle.open(folder)
    hasher, (study, patient) = public_hasher(opened.description.name), header
    labels = np.zeros(len(opened.findings), np.float32)
    near = np.eye(2, opened.description.embedding_size, dtype=np.float32)
    cases = [Case(hasher.study_key(study), labels=labels), Case("another", hasher.patient_key(patient), labels=labels)]
    CaseIndex.open(opened.cases_path).add(cases, near)
    return opened


@pytest.fixture(scope="module")
def reader(public: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSD_KEY", KEY)
        return open_reader(public, feedback=tmp_path_factory.mktemp("feedback"))


@pytest.fixture(scope="module")
def read(reader: Reader, image: Path) -> Reading:
    return reader.read(image.read_bytes())


def _record(read: Reading, bundle: Bundle) -> dict[str, object]:
    content, _ = export(read, bundle, "JSON", Window(), None, 0.4)
    return dict(json.loads(content))


def test_what_is_saved_has_the_key_that_the_scorer_gives_the_same_image(
    read: Reading, public: Bundle, image: Path, header: tuple[str, str], tmp_path: Path
) -> None:
    score(ScoringRequest(public, [image], tmp_path / "out.csv", provider="cpu"))
    [row] = csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8"))
    key = OWN.study_key(header[0])
    assert _record(read, public)["study_key"] == row["study_key"] == key
    assert f"Study key {key}" in " ".join(_words(reading_pdf(read.prediction, public)))
    assert (read.prediction.patient_key, row["patient_key"]) == (OWN.patient_key(header[1]),) * 2


def test_a_public_key_of_a_users_image_is_nowhere(
    reader: Reader, read: Reading, public: Bundle, image: Path, header: tuple[str, str]
) -> None:
    reader.opine(read, "Mass", "present", "anna")
    assert reader.feedback is not None and reader.score is not None
    batch = reader.score(image, "1")
    told = [
        json.dumps(_record(read, public)),
        " ".join(_words(reading_pdf(read.prediction, public, read.cases, read.votes))),
        *(path.read_text() for path in reader.feedback.root.glob("*.csv")),
        *map(repr, (read.prediction, batch)),
    ]
    hasher = public_hasher(public.description.name)
    for key in (hasher.study_key(header[0]), hasher.patient_key(header[1])):
        assert not any(key in text for text in told)
    assert batch.study_key == read.prediction.study_key == OWN.study_key(header[0])


def test_the_patients_own_public_cases_are_left_out(
    reader: Reader, read: Reading, header: tuple[str, str], public: Bundle
) -> None:
    assert reader.index is not None
    every = reader.index.similar(read.prediction, 100)
    keys = {case.case.study_key for case in every}
    assert "another" not in keys and public_hasher(public.description.name).study_key(header[0]) not in keys
    assert len(keys) > 8 and "another" in {
        case.case.study_key for case in reader.index.similar(read.prediction, 100, exclude_patient=None)
    }


def test_what_is_suggested_knows_the_public_cases(public: Bundle, image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.dcm"
    write_dicom(generate_study(42, seed=9, size=200), other)
    said = suggest_images(public, [image, other], tmp_path / "next.csv", count=2)
    assert (said.suggested, said.labelled) == (1, 1)
    [row] = csv.DictReader((tmp_path / "next.csv").open(encoding="utf-8"))
    study = str(pydicom.dcmread(other, stop_before_pixels=True).StudyInstanceUID)
    assert row["study_key"] == OWN.study_key(study)
