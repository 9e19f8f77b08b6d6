"""NIH ChestX-ray14: a small replica of NIH's own layout, and the real files where they are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd.errors import DataError
from medsd.settings import Nih14Source, SplitSettings
from medsd.studies.sources import nih14

# NIH's own header has commas inside brackets, and the first release ends each line with one.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
LABELS = ("Cardiomegaly|Edema", "No Finding", "Pleural_Thickening", "Effusion")


def _replica(root: Path, count: int = 40, age: str = "058Y", table: str = "Data_Entry_2017.csv") -> Path:
    rows = []
    for number in range(count):
        name = f"{number // 2:08d}_{number % 2:03d}.png"
        folder = root / f"images_{number % 3 + 1:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), number, np.uint8)).save(folder / name)
        labels = LABELS[number % 4]
        rows.append(f"{name},{labels},{number % 2},{number // 2},{age},{'MF'[number % 2]},PA,2500,2048,0.168,0.168,\n")
    (root / table).write_text(HEADER + "".join(rows), encoding="utf-8")
    return root


def _read(root: Path, **settings: object) -> nih14.Manifest:
    return nih14.read(Nih14Source(source="nih14", root=root, **settings), SplitSettings())


def test_the_official_layout_is_read_with_its_odd_headers(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path))
    assert len(manifest) == 40 and set(manifest.table["age"]) == {58}
    first = manifest.table.iloc[0]
    assert first["path"] == "images_001/images/00000000_000.png" and (manifest.root / first["path"]).is_file()
    assert manifest.findings.decode(manifest.labels[0]) == ("Cardiomegaly", "Edema")
    assert not manifest.labels[1].any() and not np.isnan(manifest.labels).any()


@pytest.mark.parametrize(("written", "years"), [("063", 63.0), ("018M", 1.5), ("411Y", np.nan), ("", np.nan)])
def test_ages_are_read_as_years_and_typing_errors_as_unknown(tmp_path: Path, written: str, years: float) -> None:
    np.testing.assert_allclose(_read(_replica(tmp_path, age=written)).table["age"].iloc[0], years)


def test_the_official_test_list_decides_the_test_patients(tmp_path: Path) -> None:
    listed = [f"{patient:08d}_{image:03d}.png" for patient in (3, 7) for image in (0, 1)]
    _replica(tmp_path)
    (tmp_path / "test_list.txt").write_text("\n".join(listed), encoding="utf-8")
    table = _read(tmp_path).table
    assert set(table.loc[table["split"] == "test", "patient"]) == {"3", "7"}
    assert set(_read(tmp_path, official_split=False).table["split"]) == {"train", "validation", "test"}


def test_rows_without_an_image_are_left_out_and_the_limit_takes_whole_patients(tmp_path: Path) -> None:
    _replica(tmp_path)
    next(tmp_path.rglob("00000004_001.png")).unlink()
    assert "00000004_001" not in set(_read(tmp_path).table["study"])
    assert _read(tmp_path, limit=12).table["patient"].nunique() == 12


def test_what_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; set data\.root"):
        _read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no Data_Entry_2017"):
        _read(tmp_path)
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns Image Index"):
        _read(tmp_path)
    (tmp_path / "labels.csv").write_text(HEADER, encoding="utf-8")
    with pytest.raises(DataError, match="no images"):
        _read(tmp_path)


def test_the_real_subset_is_read_whole(data_root: Path) -> None:
    manifest = _read(data_root / "nih_cxr")
    assert len(manifest) == 1763 and manifest.table["patient"].nunique() == 1287
    assert int(manifest.labels[:, manifest.findings.names.index("Pneumonia")].sum()) == 561
    assert sum(manifest.counts("patient").values()) == 1287


@pytest.mark.parametrize("above", ["", "sample/"])
def test_the_sample_that_kaggle_has_is_read(tmp_path: Path, above: str) -> None:
    _replica(tmp_path, table="sample_labels.csv")
    folder = tmp_path / above / "images"
    folder.mkdir(parents=True)
    for path in list(tmp_path.glob("images_*/images/*.png")):
        path.rename(folder / path.name)
    (tmp_path / "sample_labels.csv").rename(tmp_path / above / "sample_labels.csv")
    assert len(_read(tmp_path)) == 40


def test_folders_are_read_as_one_data_set_and_a_patient_of_two_stands_in_one_split(tmp_path: Path) -> None:
    _replica(tmp_path / "one", count=60)
    _replica(tmp_path / "two", count=80)  # the patients of the first, and ten more; the images of the first again
    for path in (tmp_path / "two").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("_00", "_01")))
    table = tmp_path / "two" / "Data_Entry_2017.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("_00", "_01"), encoding="utf-8")
    manifest = _read(tmp_path, parts=[{"folder": "one"}, {"folder": "two"}])
    assert manifest.table["source"].value_counts().to_dict() == {"nih14/two": 80, "nih14/one": 60}
    assert all((manifest.root / path).is_file() for path in manifest.table["path"])
    assert (manifest.table.groupby("patient")["split"].nunique() == 1).all()
    shares = manifest.table.groupby("source")["split"].value_counts(normalize=True).unstack()
    assert (shares["test"] - 0.2).abs().max() < 0.06, "each folder is dealt out in the same shares"


def test_selected_images_and_those_that_only_train_choose_and_measure_nothing(tmp_path: Path) -> None:
    for folder, count in (("plain", 60), ("selected", 120), ("coarse", 80)):  # each has the patients of the one before
        _replica(tmp_path / folder, count=count)
        table = tmp_path / folder / "Data_Entry_2017.csv"
        table.write_text(table.read_text(encoding="utf-8").replace("_00", f"_{len(folder):02}"), encoding="utf-8")
        for path in (tmp_path / folder).rglob("*.png"):
            path.rename(path.with_name(path.name.replace("_00", f"_{len(folder):02}")))
    parts = [
        {"folder": "plain"},
        {"folder": "selected", "use": "selected"},
        {"folder": "coarse", "use": "train"},
    ]
    table = _read(tmp_path, parts=parts).table
    splits = {name: set(part["split"].dropna()) for name, part in table.groupby("source")}
    assert splits["nih14/plain"] == {"train", "validation", "test"}
    assert splits["nih14/selected"] == {"train", "selected"} and splits["nih14/coarse"] == {"train"}
    learned = set(table.loc[table["split"] == "train", "patient"])
    assert not learned & set(table.loc[table["split"].isin(["validation", "test", "selected"]), "patient"])
    plain = set(table.loc[table["use"] == "", "patient"])
    alone = table[(table["use"] == "selected") & ~table["patient"].isin(plain)]
    assert (alone["split"] == "selected").mean() == pytest.approx(0.2, abs=0.1), "some of them are measured, apart"
    assert set(table.loc[table["split"].isna(), "use"]) == {"selected", "train"}


def test_an_image_in_two_folders_is_read_once(tmp_path: Path) -> None:
    _replica(tmp_path / "one"), _replica(tmp_path / "two")
    manifest = _read(tmp_path, parts=[{"folder": "one"}, {"folder": "two"}])
    assert len(manifest) == 40 and set(manifest.table["source"]) == {"nih14/one"}


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    _replica(tmp_path / "one")
    with pytest.raises(DataError, match="two"):
        _read(tmp_path, parts=[{"folder": "one"}, {"folder": "two"}])
