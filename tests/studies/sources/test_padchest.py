"""PadChest: a small replica of the official layout."""

from pathlib import Path

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.settings import PadChestSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import padchest
from tests.studies.images import write_image

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,"
    "Projection,Labels\n"
)
LABELS = ("['normal']", "['multiple nodules', 'vertebral degenerative changes']", "['unchanged']", "['exclude']")


def _replica(root: Path, labels: tuple[str, ...] = LABELS, folder: str = "3/") -> Path:
    rows = []
    for number in range(48):
        write_image(root / f"{folder}film{number}.png")
        projection = "L" if number % 12 == 0 else "AP_horizontal"
        label = labels[number % len(labels)]
        rows.append(f'{number},film{number}.png,3,20140915,s{number},p{number},1930,M,,{projection},"{label}"\n')
    (root / TABLE).write_text(HEADER + "".join(rows), encoding="utf-8")
    return root


def _read(root: Path, **settings: object) -> Manifest:
    return padchest.read(PadChestSource(source="padchest", root=root, **settings), SplitSettings())


def test_the_official_layout_is_read(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path))
    first = manifest.table.iloc[0]
    assert len(manifest) == 32 and (first["path"], first["age"], first["view"]) == ("3/film1.png", 84, "AP")
    assert manifest.findings.decode(manifest.labels[0]) == ("nodule",)
    assert np.isnan(manifest.labels[1]).all() and not manifest.labels[2].any()


def test_images_in_one_folder_and_lateral_images_are_read_when_asked_for(tmp_path: Path) -> None:
    table = _read(_replica(tmp_path, folder="images/"), frontal_only=False).table
    assert len(table) == 36 and (table["view"] == "LATERAL").sum() == 4
    assert table["path"].str.startswith("images/film").all()


def test_a_narrower_label_makes_the_wider_ones_of_the_tree_present(tmp_path: Path) -> None:
    labels = ("['consolidation', ' copd signs ', '']", "['hydropneumothorax']", "['calcified pleural thickening']")
    manifest = _read(_replica(tmp_path, labels=labels))
    told = {manifest.findings.decode(row) for row in manifest.labels}
    assert ("alveolar pattern", "COPD signs", "consolidation", "infiltrates") in told
    assert ("pleural effusion", "pneumothorax") in told and ("pleural thickening",) in told


@pytest.mark.parametrize(
    "label",
    [
        "['consolidation' 'pleural effusion']",
        "['consolidation'\n 'pleural effusion']",
        "['consolidation', nan, 'pleural effusion']",
        "[ 'consolidation' ,'pleural  effusion', '']",
        "['consolidation', 'nan', 'pleural\neffusion']",
        '[""consolidation"", ""pleural effusion""]',
        "('consolidation', 'pleural effusion')",
        "['consolidation''pleural effusion' None]",
    ],
)
def test_a_list_loses_no_finding_however_it_was_written(tmp_path: Path, label: str) -> None:
    told = _read(_replica(tmp_path, labels=(label,)))
    assert {"consolidation", "pleural effusion"} <= set(told.findings.decode(told.labels[0]))


def test_a_cell_that_is_no_list_is_unknown_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = _read(_replica(tmp_path, labels=("['normal']", "['normal']", "normal; nodule", "nan")))
    assert len(manifest) == 44 and np.isnan(manifest.labels).all(axis=1).sum() == 24
    assert (
        "column 'Labels': 12 of 36 cells cannot be read and count as unknown: row 3 (like 'aaaaaa; aaaaaa')"
        in caplog.text
    )


@pytest.mark.parametrize("label", ["__import__('os')", "['a'", "{'a': 1}", "[1]"])
def test_a_list_of_labels_is_read_as_data_and_never_run(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match="row 1, column 'Labels': not a list of labels"):
        _read(_replica(tmp_path, labels=(label,)))
