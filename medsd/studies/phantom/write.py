"""Synthetic studies as DICOM DX files (PS3.3 A.26, Digital X-Ray Image for presentation), and a folder of them.

Nothing in a file is a person: identifiers begin with PHANTOM, dates are those of the phantom's calendar, and the unique
identifiers follow from the study's name alone, so that the same study gives the same bytes.
"""

import logging
from concurrent.futures import ProcessPoolExecutor
from datetime import date, timedelta
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from medsd import files
from medsd.errors import DataError, explained
from medsd.studies.phantom.study import FINDINGS, PhantomStudy, plan_study, render_plan

log = logging.getLogger(__name__)

PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2")


def write_phantom(folder: Path, *, count: int, seed: int, size: int, workers: int = 1) -> pd.DataFrame:
    """Write studies 0…count−1 of `seed` under `folder`/files: a row a study, in the manifest's columns.

    Files are written whole and named after their study, so a second call continues where the first one stopped: what is
    there in the same size is kept. `path` is relative to `folder`. Raises DataError: it cannot be written to, or
    a count, size or number of workers makes no sense.
    """
    if count < 1 or size < 64 or workers < 1:
        raise DataError(
            f"phantom: count {count}, size {size}, workers {workers}; it takes 1 study, 64 pixels and 1 worker at least"
        )
    place = folder / "files"
    with explained(f"{place}: cannot be made", OSError, then="; choose a folder that can be written to"):
        place.mkdir(parents=True, exist_ok=True)
    make = partial(_write_one, folder=folder, seed=seed, size=size)
    if workers == 1:
        return pd.DataFrame(map(make, range(count)))
    with ProcessPoolExecutor(workers) as pool:
        return pd.DataFrame(pool.map(make, range(count), chunksize=8))


def _write_one(index: int, *, folder: Path, seed: int, size: int) -> dict[str, object]:
    plan = plan_study(index, seed=seed)
    name = f"files/{plan.study}.dcm"
    if not _is_complete(folder / name, size):
        write_dicom(render_plan(plan, size=size), folder / name)
    present = FINDINGS.encode(plan.condition.findings)
    return {
        "study": plan.study,
        "patient": plan.patient,
        "path": name,
        "note": plan.note,
        "view": plan.view,
        "sex": plan.habitus.sex,
        "age": plan.habitus.age,
        "source": "phantom",
        **dict(zip(FINDINGS, present.astype(float).tolist(), strict=True)),
    }


def _is_complete(path: Path, size: int) -> bool:
    """Whether `path` holds an image of this size; writing is atomic, so what is there is whole."""
    if not path.exists():
        return False
    try:
        header = dcmread(path, stop_before_pixels=True)
        return (header.Rows, header.Columns) == (size, size) and path.stat().st_size > 2 * size * size
    except Exception as exc:  # whatever stands there is not ours: draw it again
        log.warning("%s cannot be read (%s) and is written again", path, type(exc).__name__)
        return False


def write_dicom(study: PhantomStudy, path: Path, *, photometric: str | None = None, bits: int | None = None) -> None:
    """Write `study` as a DICOM DX file, whole or not at all; an existing file is replaced.

    `photometric`, "MONOCHROME1" (low values are bright) or "MONOCHROME2", and the `bits` stored, 12 to 16, are by
    default drawn from the study's name. Raises DataError: the folder is missing, or no phantom can be stored like that.
    """
    rng = np.random.default_rng(np.frombuffer(study.study.encode(), dtype=np.uint8))
    drawn = str(rng.choice(PHOTOMETRIC, p=[0.3, 0.7])), int(rng.choice([12, 12, 13, 14, 15, 16]))
    photometric = drawn[0] if photometric is None else photometric
    bits = drawn[1] if bits is None else bits
    if photometric not in PHOTOMETRIC or not 12 <= bits <= 16:
        raise DataError(
            f"photometric '{photometric}', bits {bits}: a phantom is {' or '.join(PHOTOMETRIC)}, in 12 to 16 bits"
        )
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
    with explained(f"{path}: cannot be written", OSError, then="; give a folder that exists and is writable"):
        files.write_whole(path, buffer.getvalue(), durable=False)


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
