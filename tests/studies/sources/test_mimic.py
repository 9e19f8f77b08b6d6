"""MIMIC-CXR-JPG: a small replica of the official layout."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import MimicSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import mimic
from tests.studies.images import write_image

SPLITS = ("train", "train", "validate", "test")


def _replica(root: Path) -> Path:
    films = []
    for number in range(12):
        subject, study = f"1000{number:04d}", f"5000{number:04d}"
        for view in ("PA", "LATERAL"):
            name = f"{number:08x}-{view.lower()}"
            write_image(root / f"files/p10/p{subject}/s{study}/{name}.jpg")
            films.append((name, subject, study, view, SPLITS[number % 4]))
    table = pd.DataFrame(films, columns=["dicom_id", "subject_id", "study_id", "ViewPosition", "split"])
    table.drop(columns="split").to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    table.drop(columns="ViewPosition").to_csv(root / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    labels = table[["subject_id", "study_id"]].drop_duplicates().iloc[1:].copy()
    labels[[*finding_set("chexpert14"), "No Finding"]] = np.nan
    labels["Edema"], labels["Fracture"] = 1.0, -1.0
    labels.to_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", index=False)
    return root


def _read(root: Path, **settings: object) -> Manifest:
    return mimic.read(MimicSource(source="mimic", root=root, **settings), SplitSettings())


def test_the_official_layout_and_split_are_read(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path))
    assert manifest.counts() == {"train": 6, "validation": 3, "test": 3}
    first = manifest.table.iloc[0]
    assert first["path"] == "files/p10/p10000000/s50000000/00000000-pa.jpg"
    assert (first["patient"], first["study"], first["view"]) == ("p10000000", "s50000000", "PA")


def test_a_study_without_labels_is_unknown_and_uncertain_ones_are_too(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path))
    assert np.isnan(manifest.labels[0]).all() and manifest.findings.decode(manifest.labels[1]) == ("Edema",)
    unknown = [name for name, value in zip(manifest.findings, manifest.labels[1], strict=True) if np.isnan(value)]
    assert unknown == ["Lung Opacity", "Fracture"]  # a lung opacity is not absent beside an edema


def test_the_note_is_what_was_known_before_reading_and_nothing_of_the_report(tmp_path: Path) -> None:
    report = _replica(tmp_path) / "files/p10/p10000000/s50000000.txt"
    report.write_text(" FINAL REPORT\n INDICATION:  Fever and cough.\n\n FINDINGS:\n Edema.\n\n IMPRESSION:\n Edema.\n")
    notes = _read(tmp_path).table["note"]
    assert notes.iloc[0] == "Fever and cough." and notes.iloc[1:].isna().all()
    assert _read(tmp_path, notes=False).table["note"].isna().all()


def test_reports_are_found_in_a_folder_of_their_own_and_notes_of_nothing_but_gaps_are_none(tmp_path: Path) -> None:
    _replica(tmp_path)
    for folder, text in (("mimic-cxr-reports", "INDICATION: ___.\n"), ("txt", "HISTORY: Fall.\nCOMPARISON: ___.\n")):
        report = tmp_path / folder / "files/p10/p10000000/s50000000.txt"
        report.parent.mkdir(parents=True)
        report.write_text(text)
    assert _read(tmp_path).table["note"].isna().all()
    assert _read(tmp_path, reports=Path("txt")).table["note"].iloc[0] == "Fall."


def test_the_dicom_files_of_mimic_cxr_are_read_with_the_same_tables(tmp_path: Path) -> None:
    jpg = _read(_replica(tmp_path)).table
    for film in (tmp_path / "files").rglob("*.jpg"):
        film.rename(film.with_suffix(".dcm"))
    dicom = _read(tmp_path, format="dicom").table
    pd.testing.assert_frame_equal(dicom.drop(columns="path"), jpg.drop(columns="path"))
    assert dicom["path"].iloc[0] == "files/p10/p10000000/s50000000/00000000-pa.dcm"
    with pytest.raises(DataError, match=r"none of the .* listed images is here"):
        _read(tmp_path)


def test_lateral_images_and_a_split_of_ones_own_are_for_the_asking(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path), frontal_only=False, official_split=False)
    assert len(manifest) == 24 and set(manifest.table["split"]) == {"train", "validation", "test"}


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no mimic-cxr-\*-metadata\.csv"):
        _read(tmp_path)


def test_views_that_are_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = _replica(tmp_path) / "mimic-cxr-2.0.0-metadata.csv.gz"
    table = pd.read_csv(path, dtype=str)
    table.loc[table["dicom_id"] == "00000000-lateral", "ViewPosition"] = "SWIMMERS"
    table.loc[table["dicom_id"] == "00000001-lateral", "ViewPosition"] = ""
    table.to_csv(path, index=False)
    _read(tmp_path)
    assert "12 of 24 images are left out by their view: LATERAL 10, " in caplog.text
    assert "SWIMMERS 1" in caplog.text and "unknown 1" in caplog.text
    caplog.clear()
    _read(tmp_path, frontal_only=False)
    assert "left out by their view" not in caplog.text
