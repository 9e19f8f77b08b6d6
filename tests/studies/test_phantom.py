"""Synthetic studies: the same each time, written as valid DICOM, each finding where its box says."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_voi_lut

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.studies.phantom import PhantomPlan, generate_study, plan_study, render_plan, write_dicom, write_phantom
from medsd.studies.phantom.image import blur

FINDINGS = finding_set("phantom8")
MANY = [plan_study(index) for index in range(1000)]
LABELS = np.stack([FINDINGS.encode(plan.condition.findings) for plan in MANY])


def _with(finding: str, *, severity: float = 0.25, count: int = 3) -> list[PhantomPlan]:
    """Some plans that show `finding` and not too faintly."""
    plans = [
        plan
        for plan in MANY
        if max((item.severity for item in plan.condition.lesions if item.finding == finding), default=0) > severity
    ]
    return plans[:count]


def test_a_study_is_the_same_in_any_order_of_generation() -> None:
    first = [generate_study(index, seed=3, size=96) for index in (0, 1, 2)]
    again = [generate_study(index, seed=3, size=96) for index in (2, 0, 1)]
    for one, other in zip(first, (again[1], again[2], again[0]), strict=True):
        assert one.pixels.tobytes() == other.pixels.tobytes()
        assert (one.study, one.note, one.findings, one.boxes) == (other.study, other.note, other.findings, other.boxes)


def test_another_seed_gives_another_patient_and_another_image() -> None:
    one, other = generate_study(0, seed=0, size=96), generate_study(0, seed=1, size=96)
    assert one.patient != other.patient
    assert np.abs(one.pixels - other.pixels).mean() > 0.02


def test_a_study_equals_that_of_a_fresh_process_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, hashlib; from medsd.studies.phantom import generate_study; s = generate_study(7, size=96);"
        "assert not {'torch', 'scipy', 'monai'} & set(sys.modules);"
        "print(hashlib.sha256(s.pixels.tobytes()).hexdigest())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert result.stdout.strip() == hashlib.sha256(generate_study(7, size=96).pixels.tobytes()).hexdigest()


@pytest.mark.parametrize("index", [0, 3, 8, 15])
def test_pixels_are_a_image_in_0_to_1(index: int) -> None:
    study = generate_study(index, size=160)
    assert study.pixels.shape == (160, 160) and study.pixels.dtype == np.float32
    assert 0 <= study.pixels.min() < 0.1 and 0.75 < study.pixels.max() <= 1
    assert study.view in ("PA", "AP") and study.sex in ("F", "M") and 18 <= study.age <= 95


def test_the_same_image_at_another_size_is_the_same_image() -> None:
    small, large = generate_study(6, size=128), generate_study(6, size=256)
    reduced = large.pixels.reshape(128, 2, 128, 2).mean(axis=(1, 3))
    assert np.corrcoef(reduced.ravel(), small.pixels.ravel())[0, 1] > 0.97
    assert small.findings == large.findings and small.note == large.note


def test_air_is_darker_than_mediastinum_and_abdomen() -> None:
    for plan in [plan for plan in MANY if not plan.condition.findings][:6]:
        film = render_plan(plan, size=160).pixels
        lungs = film[50:75, 45:60].mean() + film[50:75, 100:115].mean()
        assert lungs / 2 < 0.65 * film[60:100, 74:86].mean()
        assert lungs / 2 < 0.7 * film[135:, 60:100].mean()


def _without(plan: PhantomPlan, finding: str) -> PhantomPlan:
    """The same patient on the same day without a finding."""
    lesions = tuple(lesion for lesion in plan.condition.lesions if lesion.finding != finding)
    return replace(plan, condition=replace(plan.condition, lesions=lesions))


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_the_image_where_its_box_says(finding: str) -> None:
    ratios = []
    for plan in _with(finding):
        study, healthy = render_plan(plan, size=192), render_plan(_without(plan, finding), size=192)
        change = np.abs(study.pixels - healthy.pixels)
        x0, y0, x1, y1 = (round(value * 192) for value in study.boxes[finding])
        inside = np.zeros(change.shape, dtype=bool)
        inside[y0:y1, x0:x1] = True
        assert finding not in healthy.boxes and finding not in healthy.findings
        assert change[inside].max() > 0.08
        ratios.append(change[inside].mean() / change[~inside].mean())
    assert np.median(ratios) > 2.0


def test_a_pneumothorax_is_darker_and_smoother_than_lung() -> None:
    for plan in _with("Pneumothorax", count=2):
        study, healthy = render_plan(plan, size=256), render_plan(_without(plan, "Pneumothorax"), size=256)
        x0, y0, x1, y1 = (round(value * 256) for value in study.boxes["Pneumothorax"])
        darker = (healthy.pixels - study.pixels)[y0:y1, x0:x1]
        assert np.quantile(darker, 0.95) > 0.05


def test_fluid_and_consolidation_are_brighter_than_lung() -> None:
    for finding in ("Effusion", "Consolidation", "Mass"):
        plan = _with(finding, severity=0.4, count=1)[0]
        study, healthy = render_plan(plan, size=192), render_plan(_without(plan, finding), size=192)
        x0, y0, x1, y1 = (round(value * 192) for value in study.boxes[finding])
        assert (study.pixels - healthy.pixels)[y0:y1, x0:x1].mean() > 0.02


def test_boxes_name_the_findings_and_lie_on_the_image() -> None:
    for index in range(12):
        study = generate_study(index, size=96)
        assert tuple(study.boxes) == study.findings
        for x0, y0, x1, y1 in study.boxes.values():
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def test_no_finding_is_rare_and_a_third_of_images_is_normal() -> None:
    assert (LABELS.mean(axis=0) > 0.08).all()
    assert 0.30 < (LABELS.sum(axis=1) == 0).mean() < 0.41
    assert (LABELS.sum(axis=1) >= 2).mean() > 0.25


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cardiomegaly", "Effusion"),
        ("Cardiomegaly", "Edema"),
        ("Edema", "Effusion"),
        ("Mass", "Atelectasis"),
        ("Pneumothorax", "Support Devices"),
        ("Consolidation", "Effusion"),
    ],
)
def test_findings_that_go_together_in_patients_do_so_here(one: str, other: str) -> None:
    first, second = (LABELS[:, FINDINGS.names.index(name)] == 1 for name in (one, other))
    assert second[first].mean() > 1.15 * second[~first].mean()


def test_follow_up_images_share_the_patient() -> None:
    follow_ups = [plan for plan in MANY if plan.visit]
    assert 0.15 < len(follow_ups) / len(MANY) < 0.4
    for plan in follow_ups[:50]:
        first = MANY[plan.first]
        assert (plan.patient, plan.habitus) == (first.patient, first.habitus) and plan.study != first.study
    assert len({plan.study for plan in MANY}) == len(MANY)
    assert any(plan.condition.findings != MANY[plan.first].condition.findings for plan in follow_ups)


def test_an_index_or_a_size_out_of_range_is_refused() -> None:
    with pytest.raises(DataError, match="index -1"):
        plan_study(-1)
    with pytest.raises(DataError, match="seed -2 must not be negative"):
        plan_study(0, seed=-2)
    with pytest.raises(DataError, match="size 32"):
        generate_study(0, size=32)


def test_blur_keeps_the_mean() -> None:
    image = np.random.default_rng(0).random((128, 128), dtype=np.float32)
    assert blur(image, 8).mean() == pytest.approx(image.mean(), abs=2e-3)
    assert blur(image, 8).std() < 0.3 * image.std()


# ── DICOM ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bits", [12, 14, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_dicom_file_shows_the_image_it_was_made_from(tmp_path: Path, photometric: str, bits: int) -> None:
    study = generate_study(4, size=96)
    write_dicom(study, tmp_path / "film.dcm", photometric=photometric, bits=bits)
    dataset = pydicom.dcmread(tmp_path / "film.dcm")
    shown = apply_voi_lut(dataset.pixel_array, dataset) / (2**bits - 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    assert dataset.PhotometricInterpretation == photometric and dataset.BitsStored == bits
    np.testing.assert_allclose(shown, study.pixels, atol=1.5 / 2**bits / 0.7)


def test_a_dicom_file_is_a_dx_image_for_presentation_and_nobody_s(tmp_path: Path) -> None:
    study = generate_study(12, size=96)
    write_dicom(study, tmp_path / "film.dcm")
    dataset = pydicom.dcmread(tmp_path / "film.dcm")
    assert dataset.SOPClassUID.name == "Digital X-Ray Image Storage - For Presentation"
    assert (dataset.Modality, dataset.PresentationIntentType) == ("DX", "FOR PRESENTATION")
    assert (dataset.BodyPartExamined, dataset.ViewPosition) == ("CHEST", study.view)
    assert dataset.PatientID == study.patient and dataset.PatientID.startswith("PHANTOM-")
    assert dataset.PatientBirthDate == dataset.AccessionNumber == "" and dataset.PatientIdentityRemoved == "YES"
    assert str(dataset.PatientName) == dataset.PatientID


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        write_dicom(generate_study(2, size=96), tmp_path / name)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_identifiers_of_two_studies_differ_and_of_one_patient_agree(tmp_path: Path) -> None:
    plan = next(plan for plan in MANY if plan.visit)
    uids = []
    for index in (plan.first, plan.index):
        write_dicom(generate_study(index, size=64), tmp_path / "film.dcm")
        dataset = pydicom.dcmread(tmp_path / "film.dcm")
        uids.append((dataset.StudyInstanceUID, dataset.SOPInstanceUID, dataset.PatientID))
    assert uids[0][0] != uids[1][0] and uids[0][1] != uids[1][1] and uids[0][2] == uids[1][2]


def test_a_phantom_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_dicom(generate_study(0, size=64), tmp_path / "absent" / "film.dcm")


# ── A folder ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_is_written_and_described(tmp_path: Path) -> None:
    table = write_phantom(tmp_path, count=5, seed=0, size=64)
    assert list(table.columns) == ["study", "patient", "path", "note", "view", "sex", "age", "source", *FINDINGS]
    assert (table.source == "phantom").all() and table.study.is_unique
    for index, row in table.iterrows():
        study = generate_study(int(str(index)), size=64)
        assert tuple(name for name in FINDINGS if row[name] == 1.0) == study.findings
        assert pydicom.dcmread(tmp_path / row.path).PatientID == study.patient == row.patient
        assert row.note == study.note or (study.note is None and not isinstance(row.note, str))


def test_a_second_call_writes_only_what_is_missing_or_broken(tmp_path: Path) -> None:
    table = write_phantom(tmp_path, count=4, seed=0, size=64)
    paths = [tmp_path / path for path in table.path]
    before = [path.stat().st_mtime_ns for path in paths]
    whole = [path.read_bytes() for path in paths]
    paths[1].unlink()
    paths[2].write_bytes(b"half a pict")
    again = write_phantom(tmp_path, count=4, seed=0, size=64)
    after = [path.stat().st_mtime_ns for path in paths]
    assert again.equals(table) and [path.read_bytes() for path in paths] == whole
    assert (after[0], after[3]) == (before[0], before[3]) and after[2] != before[2]


def test_two_workers_write_what_one_does(tmp_path: Path) -> None:
    one = write_phantom(tmp_path / "one", count=6, seed=1, size=64)
    two = write_phantom(tmp_path / "two", count=6, seed=1, size=64, workers=2)
    assert one.equals(two)
    for path in one.path:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_what_makes_no_phantom_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="count 0"):
        write_phantom(tmp_path, count=0, seed=0, size=64)
    study = generate_study(0, size=64)
    for wrong in ({"bits": 17}, {"photometric": "RGB"}):
        with pytest.raises(DataError, match="in 12 to 16 bits"):
            write_dicom(study, tmp_path / "x.dcm", **wrong)
