"""A tree of DICOM studies: what the headers say, and what is passed over."""

from pathlib import Path

import numpy as np
import pytest

from medsd.dicom.policy import GatePolicy
from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import DicomSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import dicom
from tests.conftest import BuildDx

STORED = np.arange(64, dtype=np.uint8).reshape(8, 8)


def _read(root: Path, **settings: object) -> Manifest:
    source = DicomSource(source="dicom", root=root, **settings)
    return dicom.read(source, SplitSettings(), finding_set("nih14"), GatePolicy())


@pytest.fixture
def tree(tmp_path: Path, build_dx: BuildDx) -> Path:
    for number in range(12):
        folder = tmp_path / f"P{number}" / "ST0"
        folder.mkdir(parents=True)
        uid = f"1.2.3.{number}"
        (folder / "IM0").write_bytes(build_dx(STORED, PatientID=f"PH-{number}", StudyInstanceUID=uid))
        (folder / "IM1").write_bytes(
            build_dx(STORED, PatientID=f"PH-{number}", StudyInstanceUID=uid, ViewPosition="LL")
        )
    (tmp_path / "README").write_text("no DICOM")
    (tmp_path / "ct").write_bytes(build_dx(STORED, Modality="CT"))
    (tmp_path / "nobody").write_bytes(build_dx(STORED, PatientID=None))
    return tmp_path


def test_patient_study_and_view_come_from_the_headers(tree: Path) -> None:
    manifest = _read(tree)
    first = manifest.table.iloc[0]
    assert len(manifest) == 12 and (first["path"], first["study"], first["view"]) == ("P0/ST0/IM0", "1.2.3.0", "PA")
    assert (first["patient"], first["sex"], first["age"]) == ("PH-0", "F", 61)
    assert np.isnan(manifest.labels).all() and set(manifest.table["split"]) == {"train", "validation", "test"}


def test_lateral_images_are_listed_when_they_are_asked_for(tree: Path) -> None:
    assert len(_read(tree, frontal_only=False)) == 24


def test_images_without_a_patient_are_left_out_and_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    _read(tree)
    assert "1 images name no patient or no study" in caplog.text and "PH-" not in caplog.text


def test_a_folder_without_radiographs_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no DICOM radiograph with a patient and a study"):
        _read(tmp_path)


def test_which_modalities_are_radiographs_is_the_gate_s_to_say(tree: Path, build_dx: BuildDx) -> None:
    (tree / "ct").write_bytes(build_dx(STORED, Modality="CT", PatientID="PH-99", StudyInstanceUID="1.2.3.99"))
    source, findings = DicomSource(source="dicom", root=tree), finding_set("nih14")
    for policy in (GatePolicy(modalities=("CR", "DX", "CT")), GatePolicy(modality="accept")):
        assert "ct" in set(dicom.read(source, SplitSettings(), findings, policy).table["path"])
    assert "ct" not in set(dicom.read(source, SplitSettings(), findings, GatePolicy()).table["path"])
