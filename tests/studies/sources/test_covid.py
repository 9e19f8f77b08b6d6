"""COVID-19 image data collection: a small replica of its layout, and the real files where they are."""

from pathlib import Path

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.settings import CovidSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import covid
from tests.studies.images import write_image

HEADER = "patientid,offset,sex,age,finding,view,modality,folder,filename,license,clinical_notes\n"
FINDINGS = ("Pneumonia/Viral/COVID-19", "No Finding", "Tuberculosis", '"COVID-19, ARDS"')


def _replica(root: Path, count: int = 24, more: str = "") -> Path:
    rows = []
    for number in range(count):
        write_image(root / "images" / f"film{number}.png")
        note = '"Fever, and cough for 3 days."' if number else ""
        rows.append(
            f"{number // 2},0,F,54,{FINDINGS[number % 4]},AP Supine,X-ray,images,film{number}.png,CC BY,{note}\n"
        )
    (root / "metadata.csv").write_text(HEADER + "".join(rows) + more, encoding="utf-8")
    return root


def _read(root: Path, **settings: object) -> Manifest:
    return covid.read(CovidSource(source="covid", root=root, **settings), SplitSettings())


def test_the_layout_is_read_with_notes_and_views(tmp_path: Path) -> None:
    table = _read(_replica(tmp_path)).table
    assert len(table) == 24 and set(table["view"]) == {"AP"} and set(table["age"]) == {54}
    assert table["note"].iloc[0] is None and table["note"].iloc[1] == "Fever, and cough for 3 days."
    assert "license" not in table


def test_a_diagnosis_tells_of_pneumonia_and_of_nothing_else(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path))
    pneumonia = manifest.findings.names.index("Pneumonia")
    np.testing.assert_array_equal(manifest.labels[:4, pneumonia], [1, 0, np.nan, 1])
    assert not manifest.labels[1].any() and np.isnan(manifest.labels[2]).all()
    assert np.isnan(np.delete(manifest.labels[0], pneumonia)).all()


def test_lateral_images_and_ct_slices_are_left_out(tmp_path: Path) -> None:
    more = "90,0,F,54,No Finding,L,X-ray,images,film0.png,,\n91,0,F,54,No Finding,Axial,CT,volumes,a.nii.gz,,\n"
    assert not {"90", "91"} & set(_read(_replica(tmp_path, more=more)).table["patient"])


def test_patients_who_share_a_image_are_one(tmp_path: Path) -> None:
    more = "900,0,F,54,No Finding,PA,X-ray,images,film0.png,,\n900,0,F,54,No Finding,PA,X-ray,images,extra.png,,\n"
    write_image(tmp_path / "images" / "extra.png")
    table = _read(_replica(tmp_path, more=more)).table
    assert not table["path"].duplicated().any()
    assert set(table.loc[table["study"].isin(["film0", "film1", "extra"]), "patient"]) == {"0"}


def test_what_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; set data\.root"):
        _read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no metadata\.csv here"):
        _read(tmp_path)
    (tmp_path / "metadata.csv").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns patientid, sex"):
        _read(tmp_path)
    (tmp_path / "metadata.csv").write_text(HEADER + "1,0,F,54,No Finding,PA,X-ray,images,x.png,,\n", encoding="utf-8")
    with pytest.raises(DataError, match="none of the 1 listed images"):
        _read(tmp_path)


def test_the_real_collection_is_read_whole(data_root: Path) -> None:
    manifest = _read(data_root / "covid_pairs")
    assert len(manifest) == 142 and manifest.table["patient"].nunique() == 84  # two patients were entered twice
    pneumonia = manifest.labels[:, manifest.findings.names.index("Pneumonia")]
    assert [int((pneumonia == value).sum()) for value in (1, 0)] == [134, 4] and np.isnan(pneumonia).sum() == 4
    assert manifest.table["note"].notna().all() and sum(manifest.counts("patient").values()) == 84
