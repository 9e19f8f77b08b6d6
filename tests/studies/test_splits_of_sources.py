"""The splits of every source: disjoint by patient, blind to the order of rows, true to each finding's rate.

Each data set is written in its own layout, large enough to split: some 1,500 patients of whom a few have very many
images, findings of several rates, and images that are empty files: nothing here decodes one. "True to the rate":
within two points of the rate over all known images, a finding that has 50 positive images or more, in train, validation
and test alike. Where a data set publishes its test set, medsd does not choose it: there the claim is made of what it
does deal out, train and validation, against both together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from pydicom.dataset import Dataset

from medsd.findings import FindingSet, finding_set
from medsd.settings import Settings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import read_source
from medsd.studies.splits import COMMON, TOLERANCE
from tests.conftest import dx_dataset, file_bytes

PATIENTS = 1500
RATES = (0.35, 0.2, 0.1, 0.06, 0.04, 0.02, 0.5)  # of the findings in turn
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Films:
    """Invented images: patient (N,), number of the image within the patient (N,), a generator for their labels."""

    patient: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    generator: np.random.Generator

    @classmethod
    def draw(cls, single: bool = False) -> Films:
        """Most patients with one image or two, one in fifty with up to sixty; `single`: one image each."""
        generator = np.random.default_rng(11)
        counts = generator.geometric(0.6, PATIENTS)
        lumps = generator.random(PATIENTS) < 0.02
        counts[lumps] = generator.integers(20, 61, lumps.sum())
        patient = np.arange(PATIENTS) if single else np.repeat(np.arange(PATIENTS), counts)
        first = np.searchsorted(patient, patient)
        return cls(patient, np.arange(len(patient)) - first, generator)

    def present(self, findings: FindingSet) -> Bools:
        """(N, F): findings cling to patients, so that a patient with many images moves a rate."""
        rates = np.resize(RATES, len(findings))
        inclined = self.generator.random((PATIENTS, len(findings))) < rates
        return self.generator.random((len(self.patient), len(findings))) < np.where(
            inclined[self.patient], 0.8, 0.25 * rates
        )


def _touch(root: Path, places: list[str]) -> None:
    for folder in {Path(place).parent for place in places}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for place in places:
        (root / place).touch()


def _cells(present: Bools, generator: np.random.Generator, uncertain: bool = True) -> npt.NDArray[np.object_]:
    """Labels of CheXpert's kind: 1.0, 0.0, -1.0 or nothing."""
    draw = generator.random(present.shape)
    absent = np.where(draw < 0.5, "0.0", "")
    cells = np.where(present, "1.0", absent).astype(object)
    return np.where((draw > 0.97) & uncertain, "-1.0", cells)


def nih14(root: Path) -> None:
    """NIH ChestX-ray14 without its lists, so that medsd chooses."""
    films, findings = Films.draw(), finding_set("nih14")
    names = [f"{p:08d}_{n:03d}.png" for p, n in zip(films.patient, films.number, strict=True)]
    listed = ["|".join(findings.decode(row)) or "No Finding" for row in films.present(findings)]
    table = pd.DataFrame({"Image Index": names, "Finding Labels": listed, "Patient ID": films.patient})
    table[["Patient Age", "Patient Gender", "View Position"]] = "058Y", "F", "PA"
    table.to_csv(root / "Data_Entry_2017.csv", index=False)
    _touch(root, [f"images/{name}" for name in names])


def nih14_listed(root: Path) -> None:
    """NIH ChestX-ray14 with its official test list."""
    nih14(root)
    names = pd.read_csv(root / "Data_Entry_2017.csv")["Image Index"]
    (root / "test_list.txt").write_text("\n".join(names[names.str[:8].astype(int) % 5 == 0]))


def chexpert(root: Path) -> None:
    """CheXpert with its valid.csv."""
    films, findings = Films.draw(), finding_set("chexpert14")
    part = np.where(films.patient % 10 == 0, "valid", "train")
    places = [
        f"{s}/patient{p:05d}/study{n + 1}/view1_frontal.jpg"
        for s, p, n in zip(part, films.patient, films.number, strict=True)
    ]
    table = pd.DataFrame({"Path": [f"CheXpert-v1.0-small/{place}" for place in places]})
    table[["Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding"]] = "Male", "50", "Frontal", "AP", ""
    table[list(findings)] = _cells(films.present(findings), films.generator)
    for name in ("train", "valid"):
        table[part == name].to_csv(root / f"{name}.csv", index=False)
    _touch(root, places)


def chexpert_plus(root: Path) -> None:
    """CheXpert Plus with its valid rows."""
    films, findings = Films.draw(), finding_set("chexpert14")
    part = np.where(films.patient % 10 == 0, "valid", "train")
    places = [
        f"{s}/patient{p:05d}/study{n + 1}/view1_frontal.jpg"
        for s, p, n in zip(part, films.patient, films.number, strict=True)
    ]
    table = pd.DataFrame({"path_to_image": places, "split": part})
    table["deid_patient_id"] = [f"patient{p:05d}" for p in films.patient]
    table[["frontal_lateral", "ap_pa", "section_clinical_history", "section_history"]] = "Frontal", "AP", "Cough", ""
    table[["path_to_dcm", "age", "sex"]] = "", "50", "Male"
    table.to_csv(root / "df_chexpert_plus_240401.csv", index=False)
    values = np.where(films.present(findings), 1.0, 0.0)
    lines = [
        json.dumps({"path_to_image": place, "No Finding": None, **dict(zip(findings, row, strict=True))})
        for place, row in zip(places, values.tolist(), strict=True)
    ]
    (root / "chexbert_labels").mkdir()
    (root / "chexbert_labels" / "impression_fixed.json").write_text("\n".join(lines))
    _touch(root, [f"PNG/{place}".replace(".jpg", ".png") for place in places])


def mimic(root: Path) -> None:
    """MIMIC-CXR-JPG with its official split."""
    films, findings = Films.draw(), finding_set("chexpert14")
    table = pd.DataFrame(
        {"subject_id": 10_000_000 + films.patient, "study_id": 50_000_000 + np.arange(len(films.patient))}
    )
    table["dicom_id"] = [f"{number:08x}-{number:08x}" for number in range(len(table))]
    table.assign(ViewPosition="PA").to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    split = np.select([films.patient % 10 == 0, films.patient % 10 == 1], ["test", "validate"], "train")
    table.assign(split=split).to_csv(root / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    labels = table[["subject_id", "study_id"]].assign(**{"No Finding": ""})
    labels[list(findings)] = _cells(films.present(findings), films.generator)
    labels.to_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", index=False)
    rows = zip(table["subject_id"], table["study_id"], table["dicom_id"], strict=True)
    _touch(root, [f"files/p{str(p)[:2]}/p{p}/s{s}/{d}.jpg" for p, s, d in rows])


def padchest(root: Path) -> None:
    """PadChest, of which no test set is published."""
    films, findings = Films.draw(), finding_set("padchest")
    names = [f"{p}_{n}.png" for p, n in zip(films.patient, films.number, strict=True)]
    listed = [str(list(findings.decode(row)) or ["normal"]) for row in films.present(findings)]
    table = pd.DataFrame({"ImageID": names, "Labels": listed, "PatientID": films.patient, "StudyID": names})
    table[["ImageDir", "StudyDate_DICOM", "PatientBirth"]] = 3, 20140915, 1930.0
    table[["PatientSex_DICOM", "Projection"]] = "M", "PA"
    table.to_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv")
    _touch(root, [f"3/{name}" for name in names])


def vindr(root: Path) -> None:
    """VinDr-CXR with its test images; an image is a patient."""
    films, findings = Films.draw(single=True), finding_set("vindr")
    table = pd.DataFrame({"image_id": [f"{p:032x}" for p in films.patient], "rad_id": "R1"})
    table[list(findings)] = films.present(findings).astype(int)
    (root / "annotations").mkdir()
    test = films.patient % 6 == 0
    for name, rows in (("train", ~test), ("test", test)):
        table[rows].to_csv(root / "annotations" / f"image_labels_{name}.csv", index=False)
        _touch(root, [f"{name}/{image}.dicom" for image in table.loc[rows, "image_id"]])


def openi(root: Path) -> None:
    """Open-i's reports with their MeSH headings; a report is a patient."""
    films, findings = Films.draw(single=True), finding_set("mesh")
    (root / "ecgen-radiology").mkdir()
    for number, row in enumerate(films.present(findings)):
        headings = "".join(f"<major>{name}</major>" for name in findings.decode(row) or ("normal",))
        text = f'<eCitation><uId id="CXR{number}"/><MeSH>{headings}</MeSH></eCitation>'
        (root / "ecgen-radiology" / f"{number}.xml").write_text(text)


def covid(root: Path) -> None:
    """COVID-19 image data collection."""
    films = Films.draw()
    ill = films.present(finding_set("nih14"))[:, 0]
    table = pd.DataFrame({"patientid": films.patient, "filename": [f"{n}.png" for n in range(len(films.patient))]})
    table["finding"] = np.where(ill, "Pneumonia/Viral/COVID-19", "No Finding")
    table[["sex", "age", "view", "modality", "folder"]] = "M", "60", "PA", "X-ray", "images"
    table["clinical_notes"] = "Cough."
    table.to_csv(root / "metadata.csv", index=False)
    _touch(root, [f"images/{name}" for name in table["filename"]])


def own(root: Path) -> None:
    """A table of the user's own, a column a finding."""
    films, findings = Films.draw(), finding_set("nih14")
    table = pd.DataFrame({"patient": films.patient, "image": [f"{n}.png" for n in range(len(films.patient))]})
    table[list(findings)] = _cells(films.present(findings), films.generator, uncertain=False)
    table.to_csv(root / "studies.csv", index=False)
    _touch(root, table["image"].tolist())


def dicom(root: Path) -> None:
    """A tree of DICOM files; nothing is known of findings, so it is a small one."""
    blank = np.zeros((8, 8), dtype=np.uint8)
    for patient in range(60):
        for number in range(1 + patient % 4):
            ds: Dataset = dx_dataset(blank, PatientID=f"P{patient}", StudyInstanceUID=f"1.2.{patient}.{number}")
            (root / f"{patient}-{number}.dcm").write_bytes(file_bytes(ds))


@dataclass(frozen=True)
class Case:
    """A data set, how it is written, and what medsd deals out of it."""

    source: str
    write: Callable[[Path], None]
    findings: str
    dealt: tuple[str, ...] = ("train", "validation", "test")
    extra: dict[str, object] = field(default_factory=dict)

    def settings(self, root: Path) -> Settings:
        return Settings(name="t", findings=self.findings, data={"source": self.source, "root": root, **self.extra})


OFFICIAL = ("train", "validation")
FREE: dict[str, object] = {"official_split": False}
CASES = {
    "nih14": Case("nih14", nih14, "nih14"),
    "nih14 with its list": Case("nih14", nih14_listed, "nih14", OFFICIAL),
    "chexpert": Case("chexpert", chexpert, "chexpert14", OFFICIAL),
    "chexpert dealt by medsd": Case("chexpert", chexpert, "chexpert14", extra=FREE),
    "chexpert_plus": Case("chexpert_plus", chexpert_plus, "chexpert14", OFFICIAL),
    "chexpert_plus dealt by medsd": Case("chexpert_plus", chexpert_plus, "chexpert14", extra=FREE),
    "mimic": Case("mimic", mimic, "chexpert14", ()),
    "mimic dealt by medsd": Case("mimic", mimic, "chexpert14", extra=FREE),
    "padchest": Case("padchest", padchest, "padchest"),
    "vindr": Case("vindr", vindr, "vindr", OFFICIAL),
    "vindr dealt by medsd": Case("vindr", vindr, "vindr", extra=FREE),
    "openi by MeSH": Case("openi", openi, "mesh", extra={"labels": "mesh"}),
    "covid": Case("covid", covid, "nih14"),
    "csv": Case("csv", own, "nih14"),
    "dicom": Case("dicom", dicom, "nih14"),
}


def assert_disjoint(manifest: Manifest) -> None:
    """Every patient stands in one split, and each split has some."""
    assert manifest.table.groupby("patient")["split"].nunique().max() == 1
    assert set(manifest.table["split"]) == {"train", "validation", "test"}


def assert_true_to_rates(manifest: Manifest, dealt: tuple[str, ...]) -> int:
    """Each common finding's rate over the known images, in each part and in all of them; how many were common."""
    split, labels = manifest.table["split"].to_numpy(), manifest.labels
    whole = np.isin(split, dealt)
    common = np.flatnonzero(np.nansum(labels[whole], axis=0) >= COMMON)
    for part in dealt:
        apart = np.abs(
            np.nanmean(labels[split == part][:, common], axis=0) - np.nanmean(labels[whole][:, common], axis=0)
        )
        worst = {manifest.findings.names[common[at]]: apart[at] for at in np.flatnonzero(apart > TOLERANCE)}
        assert not worst, f"{part}: {worst}"
    return len(common)


def shuffle_rows(root: Path) -> None:
    """Put the rows of every table below `root`, and the lines of every list, into another order."""
    for path in [*root.rglob("*.csv"), *root.rglob("*.csv.gz")]:
        pd.read_csv(path, dtype=str, keep_default_na=False).sample(frac=1, random_state=5).to_csv(path, index=False)
    for path in [*root.rglob("*.json"), *root.rglob("*_list.txt")]:
        lines = path.read_text().splitlines()
        path.write_text("\n".join(np.random.default_rng(5).permutation(lines)))


def assignment(manifest: Manifest) -> dict[str, str]:
    """Patient → split."""
    return dict(zip(manifest.table["patient"], manifest.table["split"], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_splits_of_a_source_are_disjoint_stable_and_true_to_the_rates(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.write(tmp_path)
    manifest = read_source(case.settings(tmp_path))
    assert_disjoint(manifest)
    if case.dealt:
        common = assert_true_to_rates(manifest, case.dealt)
        assert common >= (0 if name == "dicom" else 1 if name == "covid" else 6)
    shuffle_rows(tmp_path)
    assert assignment(read_source(case.settings(tmp_path))) == assignment(manifest)


def test_a_merge_is_dealt_over_the_union_but_for_official_lists(tmp_path: Path) -> None:
    roots = {name: tmp_path / name for name in ("padchest", "covid", "chexpert")}
    for name, root in roots.items():
        root.mkdir()
        CASES[name].write(root)
    sources = [{"source": name, "root": root} for name, root in roots.items()]
    settings = Settings(name="t", findings="nih14", data={"source": "merge", "sources": sources})
    manifest = read_source(settings)
    assert_disjoint(manifest)
    dealt = manifest.table["source"] != "chexpert"
    assert_true_to_rates(
        Manifest(manifest.table[dealt].reset_index(drop=True), manifest.findings, manifest.root),
        CASES["padchest"].dealt,
    )
    official = manifest.table.loc[~dealt & (manifest.table["split"] == "test"), "patient"]
    assert set(official) == {f"chexpert:patient{number:05d}" for number in range(0, PATIENTS, 10)}
    shuffle_rows(tmp_path)
    assert assignment(read_source(settings)) == assignment(manifest)


REAL = {
    "nih_cxr": Case("nih14", lambda _: None, "nih14"),
    "covid_pairs": Case("covid", lambda _: None, "nih14"),
    "openi_reports": Case("openi", lambda _: None, "openi14"),
    "openi_reports by MeSH": Case("openi", lambda _: None, "mesh", extra={"labels": "mesh"}),
}


@pytest.mark.parametrize("name", REAL)
def test_splits_of_the_real_sets_are_disjoint_stable_and_true_to_the_rates(
    name: str, data_root: Path, tmp_path: Path
) -> None:
    folder = data_root / name.split()[0]
    if not folder.is_dir():
        pytest.skip(f"real data: no folder {folder}")
    manifest = read_source(REAL[name].settings(folder))
    assert_disjoint(manifest)
    assert assert_true_to_rates(manifest, REAL[name].dealt) >= 1
    for (
        path
    ) in folder.iterdir():  # the tables are copied, since their rows are put into another order; the rest is linked
        if path.suffix == ".csv":
            (tmp_path / path.name).write_bytes(path.read_bytes())
        else:
            (tmp_path / path.name).symlink_to(path)
    shuffle_rows(tmp_path)
    assert assignment(read_source(REAL[name].settings(tmp_path))) == assignment(manifest)
