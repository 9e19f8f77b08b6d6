"""Several sources in one training set: replicas of data sets that number their patients alike."""

from pathlib import Path

import numpy as np
import pytest

from medsd.errors import DataError, SettingsError
from medsd.settings import Settings, load_settings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import read_source
from tests.studies.images import write_image
from tests.studies.sources.test_chexpert import _replica as chexpert_replica
from tests.studies.sources.test_mimic import _replica as mimic_replica
from tests.studies.sources.test_padchest import _replica as padchest_replica


def _settings(root: Path, findings: str = "chexpert14", *, more: tuple[dict[str, object], ...] = ()) -> Settings:
    sources = [
        {"source": "chexpert", "root": root / "a" / "chexpert"},
        {"source": "padchest", "root": root / "padchest"},
        {"source": "mimic", "root": root / "mimic"},
        *more,
    ]
    return Settings(name="t", findings=findings, data={"source": "merge", "sources": sources})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with replicas of three data sets."""
    chexpert_replica(tmp_path / "a" / "chexpert")
    padchest_replica(tmp_path / "padchest")
    mimic_replica(tmp_path / "mimic")
    return tmp_path


def _part(manifest: Manifest, source: str) -> Manifest:
    table = manifest.table[manifest.table["source"] == source].reset_index(drop=True)
    return Manifest(table, manifest.findings, manifest.root)


def test_every_study_of_every_source_is_there_with_its_image(root: Path) -> None:
    manifest = read_source(_settings(root))
    assert manifest.table["source"].value_counts().to_dict() == {"chexpert": 33, "padchest": 32, "mimic": 12}
    assert all((manifest.root / path).is_file() for path in manifest.table["path"])
    assert manifest.root == root.resolve() and manifest.table["path"].iloc[0].startswith("a/chexpert/train/")


def test_each_source_keeps_its_own_split_and_its_official_test_list(root: Path) -> None:
    settings = _settings(root)
    merged = read_source(settings)
    for source in settings.data.sources:  # type: ignore[union-attr]
        alone = read_source(settings.model_copy(update={"data": source}))
        part = _part(merged, source.source)
        assert list(part.table["split"]) == list(alone.table["split"])
        np.testing.assert_array_equal(part.labels, alone.labels)
    chexpert = merged.table[merged.table["source"] == "chexpert"]
    official = {f"chexpert:patient{number}" for number in (64541, 64542, 64543)}
    assert set(chexpert.loc[chexpert["split"] == "test", "patient"]) == official


def test_what_a_source_never_labelled_is_unknown_in_the_union(root: Path) -> None:
    manifest = read_source(_settings(root))
    padchest, fracture = _part(manifest, "padchest"), manifest.findings.names.index("Fracture")
    assert np.isnan(padchest.labels[:, fracture]).all()
    assert not np.isnan(_part(manifest, "chexpert").labels[:, fracture]).all()


def _own(root: Path, name: str, films: str) -> dict[str, object]:
    """A table of one's own with patients 0001 to 0024, or 1 to 24 where `images` says so."""
    rows = ["image,patient,Edema"]
    for number in range(1, 25):
        write_image(root / films / f"{number}.png")
        rows.append(f"{number}.png,{number if films == 'bare' else f'{number:04d}'},{number % 2}")
    (root / films / "studies.csv").write_text("\n".join(rows), encoding="utf-8")
    return {"source": "csv", "root": root / films, "name": name}


def test_patients_of_one_number_are_two_in_two_data_sets_and_one_in_two_folders_of_one(root: Path) -> None:
    more = (
        {"source": "chexpert", "root": root / "a" / "chexpert", "official_split": False},
        _own(root, "ward", "bare"),
        _own(root, "ward", "padded"),
        _own(root, "clinic", "other"),
    )
    manifest = read_source(_settings(root, more=more))
    patients = set(manifest.table["patient"])
    assert {"ward:1", "clinic:1", "chexpert:patient00000"} <= patients
    assert not any(patient.startswith(("chexpert-2", "ward-2")) for patient in patients)
    assert manifest.table.groupby("patient")["split"].nunique().max() == 1
    assert not manifest.table.duplicated("study").any()
    official = {f"chexpert:patient{number}" for number in (64541, 64542, 64543)}
    chexpert = manifest.table[manifest.table["source"] == "chexpert"]
    assert set(chexpert.loc[chexpert["split"] == "test", "patient"]) == official


def test_a_merged_manifest_is_written_and_read_back(root: Path, tmp_path: Path) -> None:
    manifest = read_source(_settings(root, "nih14"))
    manifest.write(tmp_path / "studies.parquet")
    again = Manifest.read(tmp_path / "studies.parquet")
    assert again.data_hash() == manifest.data_hash() and again.findings.key == "nih14"


def test_a_source_that_fails_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.sources, nih14: .*no such folder"):
        read_source(_settings(root, more=({"source": "nih14", "root": root / "none"},)))
    reports = root / "openi" / "ecgen-radiology"
    reports.mkdir(parents=True)
    (reports / "1.xml").write_text("<a>")
    with pytest.raises(DataError, match=r"data\.sources, openi: .*no valid XML"):
        read_source(_settings(root, more=({"source": "openi", "root": root / "openi"},)))


def test_a_merge_of_merges_or_of_one_is_refused(tmp_path: Path) -> None:
    for sources in ("[{source: nih14, root: a}]", "[{source: merge, sources: []}, {source: nih14, root: a}]"):
        config = tmp_path / "c.yaml"
        config.write_text(f"name: t\nfindings: nih14\ndata: {{source: merge, sources: {sources}}}\n")
        with pytest.raises(SettingsError, match="sources"):
            load_settings(config)
