"""VinDr-CXR: a small replica of the official layout."""

from pathlib import Path

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import SplitSettings, VindrSource
from medsd.studies.manifest import Manifest
from medsd.studies.sources import vindr
from tests.studies.images import write_image

NAMES = [*finding_set("vindr"), "No finding"]


def _row(image: str, *present: str) -> str:
    return ",".join([image, *("1.0" if name in present else "0.0" for name in NAMES)])


def _replica(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    train, test = ["image_id,rad_id," + ",".join(NAMES)], ["image_id," + ",".join(NAMES)]
    for number in range(20):
        write_image(root / "train" / f"a{number}.png")
        seen = ("Edema", "ILD"), ("Edema",), ("No finding",)
        train += [_row(f"a{number},R{reader}", *seen[reader]) for reader in range(3)]
    for number in range(4):
        write_image(root / "test" / f"b{number}.png")
        test.append(_row(f"b{number}", "ILD"))
    (root / "annotations" / "image_labels_train.csv").write_text("\n".join(train))
    test[0] = test[0].replace("Other diseases", "Other disease")
    (root / "annotations" / "image_labels_test.csv").write_text("\n".join(test))
    return root


def _read(root: Path, **settings: object) -> Manifest:
    return vindr.read(VindrSource(source="vindr", root=root, **settings), SplitSettings())


def test_what_the_majority_of_the_radiologists_saw_is_present(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path))
    assert len(manifest) == 24 and manifest.findings.decode(manifest.labels[0]) == ("Edema",)
    assert manifest.table["path"].iloc[0] == "train/a0.png" and set(manifest.table["view"]) == {"PA"}


def test_the_official_test_images_are_the_test_set(tmp_path: Path) -> None:
    table = _read(_replica(tmp_path)).table
    assert set(table.loc[table["split"] == "test", "patient"]) == {"b0", "b1", "b2", "b3"}


def test_what_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no annotations/image_labels_train\.csv"):
        _read(tmp_path)
    (tmp_path / "image_labels_train.csv").write_text("image_id,rad_id\n")
    with pytest.raises(DataError, match="columns Aortic enlargement"):
        _read(tmp_path)


def test_the_table_of_boxes_that_kaggle_has_is_read(tmp_path: Path) -> None:
    lines = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for number in range(20):
        write_image(tmp_path / "train" / f"a{number}.png")
        lines += [f"a{number},Cardiomegaly,3,R{reader},1,2,3,4" for reader in (1, 2, 2)]
        lines += [f"a{number},Pneumothorax,12,R1,1,2,3,4", f"a{number},No finding,14,R3,,,,"]
    (tmp_path / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    manifest = _read(tmp_path)
    assert len(manifest) == 20 and manifest.findings.decode(manifest.labels[0]) == ("Cardiomegaly",)
    row = dict(zip(manifest.findings, manifest.labels[0], strict=True))
    assert row["Pneumothorax"] == row["ILD"] == 0 and np.isnan([row["Edema"], row["Other lesion"]]).all()
    (tmp_path / "train.csv").write_text("\n".join([*lines, "a0,Halo,99,R1,,,,"]), encoding="utf-8")
    with pytest.raises(DataError, match="'Halo' is no class"):
        _read(tmp_path)
