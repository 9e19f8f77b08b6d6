"""De-identification: canaries in every attribute of the table and beyond, files left alone, what is refused."""

import copy
import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, UID_dictionary
from typer.testing import CliRunner

from medsd.cli import app
from medsd.dicom.burned_in import BurnedIn
from medsd.dicom.confidentiality import Confidentiality, _table
from medsd.dicom.deidentify import REPORT_COLUMNS, Outcome, deidentify_file, deidentify_files
from medsd.dicom.pixel_bytes import blank_comments
from medsd.dicom.quiet import quiet
from medsd.errors import DataError
from medsd.privacy import KeyedHasher
from tests.conftest import dx_dataset, file_bytes

pytest.importorskip("dicomanonymizer", reason="the extra deid is not installed")

NAME, DATE, TIME, NUMBER = "CANARYNAME", "19611103", "111213.141516", "987654321"
CANARIES = [text.encode() for text in (NAME, DATE, TIME, NUMBER, "98765.4321")]
BY_VR = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "AE", "CS"), NAME),
    "PN": f"{NAME}^{NAME}",
    "UR": f"http://x.example/{NAME}",
    "DA": DATE,
    "TM": TIME,
    "DT": DATE + TIME,
    "UI": f"1.2.826.0.1.{NUMBER}",
    "IS": NUMBER,
    "DS": "98765.4321",
    "AS": "077Y",
    "OB": NAME.encode(),
    "UN": NAME.encode(),
    "US": 9,
    "FD": 9.0,
}
PIXEL_MODULE = {0x00280002, 0x00280004, 0x00280008, 0x00280006, 0x00280034, 0x00080016}


def none_seen(_: Dataset) -> BurnedIn:
    return BurnedIn("none_seen", "")


def found(_: Dataset) -> BurnedIn:
    return BurnedIn("found", "text", ((1, 2, 30, 12),))


def unknown(_: Dataset) -> BurnedIn:
    return BurnedIn("unknown", "nobody knows")


@pytest.fixture
def profile() -> Confidentiality:
    return Confidentiality(KeyedHasher(b"a secret of the tests"))


@pytest.fixture
def image() -> Dataset:
    stored = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)
    return dx_dataset(stored, 12, AccessionNumber="ACC-77", StudyDate="20200102", StudyTime="101112", PatientAge="093Y")


def run(content: bytes, folder: Path, profile: Confidentiality, **options: object) -> tuple[Outcome, Path]:
    """De-identify `content` and check that the original is as before; the outcome and the output folder."""
    path, out = folder / "in" / "a.dcm", folder / "out"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    options.setdefault("look", none_seen)
    outcome = deidentify_file(path, out, profile, **options)  # type: ignore[arg-type]
    assert path.read_bytes() == content
    return outcome, out


def cleaned(ds: Dataset | bytes, folder: Path, profile: Confidentiality, **options: object) -> Dataset:
    content = ds if isinstance(ds, bytes) else file_bytes(ds)
    outcome, out = run(content, folder, profile, **options)
    assert outcome.output, outcome.message
    return dcmread(out / outcome.output)


def canary(tag: int, vr: str) -> DataElement | None:
    """An element with a canary, or None where nothing is written for its representation."""
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.CodeMeaning, item.PatientBirthDate = f"{NAME}^{NAME}", NAME, DATE
        return DataElement(tag, "SQ", Sequence([item]))
    return DataElement(tag, vr, BY_VR[vr]) if vr in BY_VR else None


def full_of_canaries(tags: Iterator[int] | list[int]) -> Dataset:
    ds = Dataset()
    for tag in tags:
        free = ds_is_refused_for(tag)
        if (element := canary(tag, dictionary_VR(tag).split(" or ")[0])) and not free and tag >> 16 > 0x0006:
            ds.add(element)
    return ds


def ds_is_refused_for(tag: int) -> bool:
    return (
        tag in (0x0040A730, 0x00420011, 0x00700001, 0x00041220) or tag in PIXEL_MODULE or tag >> 16 in (0x7FE0, 0xFFFE)
    )


def image_with(canaries: Dataset, image: Dataset) -> Dataset:
    kept = {
        tag: image[tag] for tag in list(image.keys()) if tag.group == 0x0028 or tag == 0x00080016 or tag.group == 0x7FE0
    }
    for element in canaries:
        if element.tag not in kept:
            image.add(element)
    deeper = Dataset()
    deeper.AnatomicRegionModifierSequence = Sequence([copy.deepcopy(canaries)])
    image.AnatomicRegionSequence = Sequence([deeper])  # not in the table: kept, and cleaned inside
    image.PatientName = f"{NAME}^{NAME}"
    return image


def with_hiding_places(ds: Dataset) -> bytes:
    """Private elements, overlay, curve, file meta, preamble and bytes after the pixels, all with canaries."""
    block = ds.private_block(0x0011, NAME, create=True)
    block.add_new(1, "LO", NAME)
    nested = Dataset()
    nested.add_new(0x00111010, "UN", NAME.encode())
    ds.ReferencedImageSequence = Sequence([nested])
    ds.add_new(0x60003000, "OW", NAME.encode())
    ds.add_new(0x60000022, "LO", NAME)
    ds.add_new(0x60001500, "LO", NAME)
    ds.add_new(0x50003000, "OW", NAME.encode())
    ds.add_new(0x00180001, "UN", NAME.encode())  # no dictionary knows it
    ds.add_new(0xFFFCFFFC, "OB", NAME.encode())
    ds.file_meta.SourceApplicationEntityTitle = NAME
    ds.file_meta.PrivateInformationCreatorUID = f"1.2.{NUMBER}"
    ds.file_meta.PrivateInformation = NAME.encode()
    ds.file_meta.ImplementationVersionName = NAME
    ds.PixelData = ds.PixelData + NAME.encode()
    return NAME.encode().ljust(128, b"\0") + file_bytes(ds)[128:]


def test_no_canary_of_any_attribute_of_the_table_survives(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    tags = [group << 16 | element for group, element in _table() if group << 16 | element in DicomDictionary]
    content = with_hiding_places(image_with(full_of_canaries(tags), image))
    pixels = dcmread(io.BytesIO(content)).PixelData
    assert all(canary in content for canary in CANARIES)
    outcome, out = run(content, tmp_path, profile)
    written = (out / outcome.output).read_bytes()
    assert [canary for canary in CANARIES if canary in written] == []
    assert b"077Y" not in written and written[:128] == bytes(128)
    assert dcmread(io.BytesIO(written)).PixelData == pixels[: 64 * 48 * 2]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_no_text_of_any_attribute_of_the_dictionary_survives(
    syntax: str, image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    numeric = {"IS", "DS", "AS", "US", "FD"}
    tags = [tag for tag, entry in DicomDictionary.items() if entry[0].split(" or ")[0] not in numeric]
    image.file_meta.TransferSyntaxUID = syntax
    options = Confidentiality(profile.hasher, modified_dates=True, characteristics=True)
    with quiet():
        content = file_bytes(image_with(full_of_canaries(tags), image))
    assert len(tags) > 2500 and content.count(NAME.encode()) > 3000
    outcome, out = run(content, tmp_path, options)
    written = (out / outcome.output).read_bytes()
    assert [canary for canary in CANARIES if canary in written] == []


def test_a_value_that_does_not_fit_its_representation_is_removed(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    for keyword, value in (("SeriesNumber", "DOE JANE"), ("KVP", "ROE"), ("BurnedInAnnotation", "SOE^JIM")):
        image.add(DataElement(keyword, "LO", value))  # the dictionary says IS, DS and CS
    written = cleaned(image, tmp_path, profile)
    assert [keyword for keyword in ("SeriesNumber", "KVP", "BurnedInAnnotation") if keyword in written] == []


def test_a_name_in_a_kept_text_is_removed_and_the_texts_beside_it_stay(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    image.Manufacturer, image.ManufacturerModelName, image.FilterType = "Acme", "for Thora only", "1961-11-03"
    image.PatientBirthDate = DATE
    ds = cleaned(image, tmp_path, profile)
    assert ds.Manufacturer == "Acme" and "ManufacturerModelName" not in ds and "FilterType" not in ds


def test_the_header_says_what_was_done(image: Dataset, tmp_path: Path, profile: Confidentiality) -> None:
    ds = cleaned(image, tmp_path, Confidentiality(profile.hasher, modified_dates=True, characteristics=True))
    codes = [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]
    assert (ds.PatientIdentityRemoved, codes) == ("YES", ["113100", "113107", "113108"])
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED" and "PS3.15 2026c" in ds.DeidentificationMethod
    assert (ds.PatientSex, ds.PatientAge) == ("F", "090Y")
    assert (ds.Modality, ds.BodyPartExamined, ds.ViewPosition) == ("DX", "CHEST", "PA")


def test_the_basic_profile_alone_removes_dates_sex_and_age(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    ds = cleaned(image, tmp_path, profile)
    assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == ["113100"]
    assert not ds.StudyDate and not ds.PatientSex and "PatientAge" not in ds
    assert ds.LongitudinalTemporalInformationModified == "REMOVED"


def test_patient_name_is_empty_and_patient_id_the_keyed_hash(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    ds = cleaned(image, tmp_path, profile)
    assert ds.PatientName == "" and ds.PatientID == profile.hasher.patient_key("PH-0042")


def test_dates_of_a_patient_move_together_and_times_lose_their_minutes(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    image.AcquisitionDate, image.FrameReferenceDateTime = "20200109", "20200109101112.5+0100"
    ds = cleaned(image, tmp_path, Confidentiality(profile.hasher, modified_dates=True))
    first, second = (np.datetime64(f"{day[:4]}-{day[4:6]}-{day[6:]}") for day in (ds.StudyDate, ds.AcquisitionDate))
    assert second - first == np.timedelta64(7, "D")
    assert np.timedelta64(365, "D") <= np.datetime64("2020-01-02") - first <= np.timedelta64(3650, "D")
    assert ds.StudyTime == "100000" and re.fullmatch(ds.AcquisitionDate + "10", ds.FrameReferenceDateTime)


def test_the_same_study_gets_the_same_uids_on_every_run_and_others_under_another_secret(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    image.SourceImageSequence = Sequence([reference])
    ds = cleaned(image, tmp_path, profile)
    assert (
        ds.StudyInstanceUID == profile.new_uid("1.2.3.4") != Confidentiality(KeyedHasher(b"x" * 16)).new_uid("1.2.3.4")
    )
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == ds.SOPInstanceUID
    assert ds.SourceImageSequence[0].ReferencedSOPClassUID == ds.SOPClassUID == image.SOPClassUID
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID and len(ds.SOPInstanceUID) <= 64


def test_output_names_hold_keys_only(image: Dataset, tmp_path: Path, profile: Confidentiality) -> None:
    outcome, _ = run(file_bytes(image), tmp_path, profile)
    patient, study, name = Path(outcome.output).parts
    assert patient == profile.hasher.patient_key("PH-0042") and study == profile.hasher.study_key("1.2.3.4")
    assert re.fullmatch(r"2\.25\.\d+\.dcm", name)


def test_old_overlays_in_unused_bits_are_cleared_and_pixels_stay(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    before = np.frombuffer(image.PixelData, "<u2").copy()
    image.PixelData = (before | 0xA000).tobytes()
    assert (np.frombuffer(cleaned(image, tmp_path, profile).PixelData, "<u2") == before).all()


def test_negative_pixels_keep_their_sign(tmp_path: Path, profile: Confidentiality) -> None:
    stored = np.linspace(-2048, 2047, 64 * 64).astype(np.int16).reshape(64, 64)
    ds = dx_dataset((stored & 0x0FFF).astype(np.int16), 12)
    assert (cleaned(ds, tmp_path, profile).pixel_array == stored).all()


def jpeg_with_comment() -> tuple[bytes, bytes]:
    """A JPEG stream, and the same one with a comment, application data and a tail."""
    stream = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(stream, "JPEG")
    plain = stream.getvalue()
    segments = b"".join(
        b"\xff" + bytes([marker]) + (len(NAME) + 2).to_bytes(2, "big") + NAME.encode() for marker in (0xFE, 0xE1, 0xEE)
    )
    return plain, plain[:2] + segments + plain[2:] + NAME.encode()


def test_comments_of_a_jpeg_stream_are_blanked_and_its_pixels_stay(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    plain, commented = jpeg_with_comment()
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.Rows, image.Columns, image.BitsAllocated, image.BitsStored, image.HighBit = 64, 64, 8, 8, 7
    image.PixelData = encapsulate([commented])
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    ds = cleaned(image, tmp_path, profile)
    assert NAME.encode() not in ds.PixelData
    image.PixelData = encapsulate([plain])
    assert (ds.pixel_array == image.pixel_array).all()


def test_comments_of_a_jpeg_2000_stream_are_blanked_in_place() -> None:
    stream = io.BytesIO()
    picture = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(picture).save(stream, "JPEG2000", no_jp2=True, comment=NAME)
    content = stream.getvalue()
    clean = blank_comments(content + NAME.encode())
    assert NAME.encode() in content and NAME.encode() not in clean and len(clean) == len(content) + len(NAME)
    assert (np.asarray(Image.open(io.BytesIO(clean[: len(content)]))) == picture).all()


@pytest.mark.parametrize(
    ("look", "claimed", "written"),
    [
        (none_seen, "NO", "NO"),
        (none_seen, None, None),
        (unknown, "NO", None),
        (found, "NO", "YES"),
        (found, None, "YES"),
    ],
)
def test_burned_in_annotation_is_never_no_when_unknown(
    look: object, claimed: str | None, written: str | None, image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    if claimed:
        image.BurnedInAnnotation = claimed
    assert cleaned(image, tmp_path, profile, look=look).get("BurnedInAnnotation") == written


@pytest.mark.parametrize(("look", "reason"), [(found, "burned_in_found"), (unknown, "burned_in_unknown")])
def test_burned_in_text_is_warned_about_refused_or_kept_as_asked(
    look: object, reason: str, image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    content = file_bytes(image)
    refused, out = run(content, tmp_path, profile, look=look, burned_in="refuse")
    assert (refused.status, refused.reason) == ("refused", reason) and not out.exists()
    warned, _ = run(content, tmp_path, profile, look=look)
    assert (warned.status, warned.reason) == ("warned", reason)
    (out / warned.output).unlink()
    assert run(content, tmp_path, profile, look=look, burned_in="keep")[0].status == "written"


@pytest.mark.parametrize(
    ("sop_class", "reason"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.11", "free_content"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "free_content"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "free_content"),
        ("1.2.840.113619.4.27", "private_class"),
    ],
)
def test_what_the_profile_cannot_clean_is_refused(
    sop_class: str, reason: str, image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
    assert run(file_bytes(image), tmp_path, profile)[0].reason == reason


def test_a_report_in_the_clothes_of_an_image_is_refused(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    image.ContentSequence = Sequence([Dataset()])
    assert run(file_bytes(image), tmp_path, profile)[0].reason == "free_content"


@pytest.mark.parametrize("content", [b"", b"no DICOM", bytes(128) + b"DICM" + b"\xff" * 64])
def test_files_that_cannot_be_parsed_are_refused_with_a_reason(
    content: bytes, tmp_path: Path, profile: Confidentiality
) -> None:
    outcome, out = run(content, tmp_path, profile)
    assert outcome.status == "refused" and outcome.reason in ("not_dicom", "cannot_decode") and not out.exists()


def test_a_batch_goes_on_after_a_bad_file_and_keeps_what_is_finished(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    (tmp_path / "in").mkdir()
    files = [tmp_path / "in" / name for name in ("bad.dcm", "good.dcm", "again.dcm", "link.dcm", "missing.dcm")]
    files[0].write_bytes(b"nothing")
    for path in files[1:3]:
        path.write_bytes(file_bytes(image))
    files[3].symlink_to(files[1])
    summary = deidentify_files(files, tmp_path / "out", profile, look=none_seen)
    assert (summary.written, summary.exists, summary.refused) == (1, 1, 3)
    assert summary.reasons == {"not_dicom": 1, "symbolic_link": 1, "file_error": 1}
    stamp = next((tmp_path / "out").rglob("*.dcm")).stat().st_mtime_ns
    assert deidentify_files(files, tmp_path / "out", profile, look=none_seen).exists == 2
    assert [path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()] == [stamp]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, profile: Confidentiality) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert deidentify_file(tmp_path / "pipe", tmp_path / "out", profile).reason == "file_error"


def test_different_files_of_one_uid_are_not_taken_for_one(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    (tmp_path / "in").mkdir()
    files = [tmp_path / "in" / name for name in ("a.dcm", "b.dcm")]
    files[0].write_bytes(file_bytes(image))
    image.KVP = 80
    files[1].write_bytes(file_bytes(image))
    summary = deidentify_files(files, tmp_path / "out", profile, look=none_seen)
    assert (summary.written, summary.reasons) == (1, {"same_uid": 1})


def test_only_the_report_that_is_asked_for_names_the_originals(
    image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    path, report = tmp_path / f"{NAME}.dcm", tmp_path / "report.csv"
    path.write_bytes(file_bytes(image))
    summary = deidentify_files([path], tmp_path / "o" / "out", profile, look=found, report=report)
    with report.open(newline="") as file:
        row = next(csv.DictReader(file))
    assert tuple(row) == REPORT_COLUMNS and row["input"] == str(path)
    assert (row["burned_in"], row["text_boxes"]) == ("found", "1:2:30:12")
    assert NAME not in summary.line() + "".join(str(found) for found in (tmp_path / "o").rglob("*"))
    assert report.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("out", ["in", "in/sub", "."])
def test_an_output_among_the_originals_is_refused(
    out: str, image: Dataset, tmp_path: Path, profile: Confidentiality
) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.dcm"
    path.write_bytes(file_bytes(image))
    with pytest.raises(DataError, match="apart"):
        deidentify_files([path], tmp_path / out, profile, folders=[tmp_path / "in"], look=none_seen)
    assert [item.name for item in (tmp_path / "in").iterdir()] == ["a.dcm"]


def test_a_report_in_the_folder_that_is_passed_on_is_refused(tmp_path: Path, profile: Confidentiality) -> None:
    with pytest.raises(DataError, match="passed on"):
        deidentify_files([], tmp_path / "out", profile, report=tmp_path / "out" / "report.csv")


def test_messages_never_quote_the_header(image: Dataset, tmp_path: Path, profile: Confidentiality) -> None:
    image.PatientName, image.SOPClassUID = f"{NAME}^X", f"1.2.{NUMBER}"
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    outcome, _ = run(file_bytes(image), tmp_path, profile)
    assert NAME not in repr(outcome) and NUMBER not in repr(outcome)


def test_real_files_keep_their_pixels_and_lose_their_identities(
    data_root: Path, tmp_path: Path, profile: Confidentiality
) -> None:
    files = sorted((data_root / "dicom").glob("*.dcm"))
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in files}
    for number, path in enumerate(files):
        outcome = deidentify_file(path, tmp_path / str(number), profile, look=none_seen)
        if outcome.status == "refused":
            assert (path.stem, outcome.reason) == ("not_dicom", "not_dicom")
            continue
        old, new = dcmread(path, force=True), dcmread(tmp_path / str(number) / outcome.output)
        assert new.SOPInstanceUID not in UID_dictionary and new.StudyInstanceUID != old.get("StudyInstanceUID")
        assert new.PatientName == "" and new.PatientID != old.get("PatientID")
        assert_same_pixels(old, new)
    assert before == {path: hashlib.sha256(path.read_bytes()).digest() for path in files}


def assert_same_pixels(old: Dataset, new: Dataset) -> None:
    try:
        expected = old.pixel_array
    except Exception:  # what pydicom cannot decode before it cannot after
        return
    np.testing.assert_array_equal(new.pixel_array, expected)


def test_the_verb_counts_and_names_nobody(image: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSD_KEY", "a secret of the tests")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{NAME}.dcm").write_bytes(file_bytes(image, meta=False))
    result = CliRunner().invoke(app, ["deidentify", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0 and "1 written" in result.output and NAME not in result.output
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1
