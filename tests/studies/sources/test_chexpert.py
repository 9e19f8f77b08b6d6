"""CheXpert: a small replica of Stanford's own layout."""

from pathlib import Path

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import CheXpertSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import chexpert
from tests.studies.images import write_image

HEADER = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *finding_set("chexpert14")]) + "\n"
UNCERTAIN = ",,1.0,-1.0" + "," * 10  # No Finding, then thirteen: Cardiomegaly 1, Lung Opacity uncertain
NORMAL = "1.0" + "," * 13


def _row(root: Path, place: str, labels: str, view: str = "Frontal,AP") -> str:
    write_image(root / place)
    return f"CheXpert-v1.0-small/{place},Female,68,{view},{labels}\n"


def _replica(root: Path, count: int = 30) -> Path:
    train, valid = [HEADER], [HEADER]
    for number in range(count):
        study = f"train/patient{number:05d}/study1"
        train.append(_row(root, f"{study}/view1_frontal.jpg", NORMAL if number % 2 else UNCERTAIN))
        train.append(_row(root, f"{study}/view2_lateral.jpg", NORMAL, "Lateral,"))
    for number in range(3):
        valid.append(_row(root, f"valid/patient{64541 + number}/study1/view1_frontal.jpg", "0.0" + ",0.0" * 13))
    (root / "train.csv").write_text("".join(train), encoding="utf-8")
    (root / "valid.csv").write_text("".join(valid), encoding="utf-8")
    return root


def _read(root: Path, **settings: object) -> Manifest:
    return chexpert.read(CheXpertSource(source="chexpert", root=root, **settings), SplitSettings())


def test_the_official_layout_is_read_whatever_its_folder_is_called(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path / "copy"))
    first = manifest.table.iloc[0]
    assert len(manifest) == 33 and (manifest.root / first["path"]).is_file()
    assert (first["patient"], first["study"], first["view"]) == ("patient00000", "patient00000/study1", "AP")
    assert (first["sex"], first["age"]) == ("F", 68)


def test_uncertain_and_unmentioned_labels_mean_what_the_settings_say(tmp_path: Path) -> None:
    _replica(tmp_path)
    row = _read(tmp_path).labels[0]
    np.testing.assert_array_equal(row[:4], [np.nan, 1, np.nan, 0])  # a large heart leaves its wider finding open
    row = _read(tmp_path, uncertain="present", unmentioned="unknown").labels[0]
    np.testing.assert_array_equal(row[:4], [np.nan, 1, 1, np.nan])


def test_a_wider_finding_beside_one_of_its_kinds_is_unknown_and_never_absent_for_want_of_a_word() -> None:
    findings = finding_set("chexpert14")
    given = np.full((3, 14), np.nan, dtype=np.float32)
    given[0, findings.names.index("Consolidation")] = 1
    given[1, findings.names.index("Consolidation")] = -1
    given[2, [findings.names.index("Consolidation"), findings.names.index("Lung Opacity")]] = 1, 0
    opacity = chexpert.label_values(given, findings, "unknown", "absent")[:, findings.names.index("Lung Opacity")]
    np.testing.assert_array_equal(opacity, [np.nan, np.nan, 0])  # what the labeller did say stands


def test_no_finding_says_nothing_of_support_devices(tmp_path: Path) -> None:
    labels = _read(_replica(tmp_path), unmentioned="unknown").labels[1]
    assert not labels[:-1].any() and np.isnan(labels[-1])


def test_lateral_images_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    table = _read(_replica(tmp_path), frontal_only=False).table
    assert (table["view"] == "LATERAL").sum() == 30 and table["study"].nunique() == 33


def test_the_radiologists_labels_are_the_test_set(tmp_path: Path) -> None:
    table = _read(_replica(tmp_path)).table
    assert set(table.loc[table["split"] == "test", "patient"]) == {"patient64541", "patient64542", "patient64543"}
    assert (_read(tmp_path, official_split=False).table["split"] == "test").sum() > 3


def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train\.csv here"):
        _read(tmp_path)
    (tmp_path / "train.csv").write_text(HEADER + f"somewhere/film.jpg,Female,68,Frontal,AP,{NORMAL}\n")
    with pytest.raises(DataError, match=r"train\.csv: line 2: Path is not"):
        _read(tmp_path)
    (tmp_path / "train.csv").write_text(HEADER + _row(tmp_path, "train/patient1/study1/a.jpg", "7" + "," * 13))
    with pytest.raises(DataError, match=r"row 1, column 'No Finding': labels are 1, 0, -1 or empty; 1 of 1"):
        _read(tmp_path)


def _downloaded(root: Path, ending: str = ".jpg") -> Path:
    """The full-size download: batches side by side, the tables in the first of them."""
    replica = _replica(root / "replica")
    first, second, third = (root / f"CheXpert-v1.0 batch {name}" for name in ("1 (validate & csv)", "2 (train 1)", "3"))
    for folder, patients in ((second, range(15)), (third, range(15, 30))):
        for number in patients:
            home = folder / f"patient{number:05d}"
            home.parent.mkdir(exist_ok=True)
            (replica / "train" / home.name).rename(home)
    first.mkdir()
    for name in ("train.csv", "valid.csv", "valid"):
        (replica / name).rename(first / name)
    for film in root.rglob("*.jpg"):
        film.rename(film.with_suffix(ending))
    return root


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_the_batches_of_the_full_size_download_are_read(tmp_path: Path, ending: str) -> None:
    manifest = _read(_downloaded(tmp_path, ending))
    assert len(manifest) == 33 and all((manifest.root / path).is_file() for path in manifest.table["path"])
    assert manifest.table["path"].iloc[0] == (
        f"CheXpert-v1.0 batch 2 (train 1)/patient00000/study1/view1_frontal{ending}"
    )
    assert (manifest.table["split"] == "test").sum() == 3


def test_the_folder_above_the_data_set_is_read_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _replica(tmp_path / "CheXpert-v1.0")
    manifest = _read(tmp_path)
    assert len(manifest) == 33 and manifest.table["path"].iloc[0].startswith("CheXpert-v1.0/train/")
    assert "CheXpert: 30 of 63 images are left out by their view: LATERAL 30" in caplog.text
