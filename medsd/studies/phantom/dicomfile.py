"""A synthetic study as a DICOM DX file (PS3.3 A.26, Digital X-Ray Image for presentation).

Nothing in the file is a person: identifiers begin with PHANTOM, dates are those of the phantom's calendar, and the
unique identifiers follow from the study's name alone, so that the same study gives the same bytes.
"""

from __future__ import annotations

from datetime import date, timedelta
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from medsd import files
from medsd.errors import DataError

if TYPE_CHECKING:
    from medsd.studies.phantom.study import PhantomStudy

PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2")


def write_dicom(study: PhantomStudy, path: Path, *, photometric: str | None = None, bits: int | None = None) -> None:
    """Write `study` as a DICOM DX file, whole or not at all.

    Args:
        study: from `generate_study`.
        path: the file to write; its folder must exist. An existing file is replaced.
        photometric: "MONOCHROME1" (low values are bright) or "MONOCHROME2"; by default drawn from the study's name.
        bits: bits stored, 12 to 16; by default drawn from the study's name.

    Raises:
        DataError: an unknown photometric interpretation, a number of bits out of range, or a folder that is missing.
    """
    rng = np.random.default_rng(np.frombuffer(study.study.encode(), dtype=np.uint8))
    drawn = str(rng.choice(PHOTOMETRIC, p=[0.3, 0.7])), int(rng.choice([12, 12, 13, 14, 15, 16]))
    photometric = drawn[0] if photometric is None else photometric
    bits = drawn[1] if bits is None else bits
    if photometric not in PHOTOMETRIC:
        raise DataError(f"photometric '{photometric}': a phantom is written as {' or '.join(PHOTOMETRIC)}")
    if not 12 <= bits <= 16:
        raise DataError(f"bits {bits}: a phantom is stored in 12 to 16 bits")
    uid = generate_uid(entropy_srcs=[study.study, "image"])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, uid
    _describe_study(dataset, study)
    _describe_pixels(dataset, study, photometric, bits, margin=float(rng.uniform(0.0, 0.12)))
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    write_whole(path, buffer.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` by way of a neighbour, so that a file of that name is always complete.

    Raises:
        DataError: the folder is missing or may not be written to.
    """
    try:
        files.write_whole(path, content, durable=False)
    except OSError as exc:
        raise DataError(
            f"{path}: cannot be written ({exc.strerror}); check that its folder exists and is writable"
        ) from exc


def _describe_study(dataset: Dataset, study: PhantomStudy) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = study.patient  # not a word of its own: what names a patient is taken out of the log
    dataset.PatientID = study.patient
    dataset.PatientBirthDate = ""
    dataset.PatientSex = study.sex
    dataset.PatientAge = f"{study.age:03d}Y"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Synthetic: no person behind it"
    visit, number = int(study.study.rsplit("-", 1)[1]), int(study.patient.rsplit("-", 1)[1])
    day = (date(2000, 1, 1) + timedelta(days=number % 3000 + 4 * visit)).strftime("%Y%m%d")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = day
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = "120000"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[study.study, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[study.study, "series"])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[study.study, "frame"])
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = str(visit), 1, 1
    dataset.StudyDescription, dataset.SeriesDescription = "Chest", f"Chest {study.view}"
    dataset.Modality, dataset.PresentationIntentType = "DX", "FOR PRESENTATION"
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.SoftwareVersions = "medsd", "phantom", "1"
    dataset.DeviceSerialNumber, dataset.DetectorType, dataset.PositionerType = "1", "DIRECT", "NONE"
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.ImageLaterality = "CHEST", study.view, "U"
    dataset.PatientOrientation = ["L", "F"]
    upright = study.view == "PA"
    view = _code("272479007", "postero-anterior") if upright else _code("399348003", "antero-posterior")
    dataset.AnatomicRegionSequence, dataset.ViewCodeSequence = [_code("816094009", "Chest")], [view]
    dataset.AcquisitionContextSequence = []
    dataset.KVP, dataset.DistanceSourceToDetector = (120, 1800) if upright else (90, 1150)


def _code(value: str, meaning: str) -> Dataset:
    """An item of a code sequence, from SNOMED CT."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _describe_pixels(dataset: Dataset, study: PhantomStudy, photometric: str, bits: int, margin: float) -> None:
    top, inverted = 2**bits - 1, photometric == "MONOCHROME1"
    low, high = round(margin * top), round((1 - margin) * top)
    bright = np.clip(study.pixels, 0, 1)
    values = 1 - bright if inverted else bright
    stored = np.round(low + values.astype(np.float64) * (high - low)).astype("<u2")
    rows, columns = stored.shape
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, bits, bits - 1, 0
    dataset.ImagerPixelSpacing = dataset.PixelSpacing = [round(420 / rows, 4)] * 2
    dataset.PixelIntensityRelationship = "LOG"
    # −1: larger values mean more X-rays, which is what low brightness means.
    dataset.PixelIntensityRelationshipSign = 1 if inverted else -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    # The linear window of PS3.3 C.11.2.1.2.1 takes low to black and high to white exactly.
    dataset.WindowCenter, dataset.WindowWidth = (low + high) / 2 + 0.5, high - low + 1
    dataset.WindowCenterWidthExplanation = "CHEST"
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.PixelData = stored.tobytes()
