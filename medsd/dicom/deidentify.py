"""De-identify DICOM files into a folder of their own: originals are only read, no path carries an identity."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydicom import Dataset, dcmread
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, UID_dictionary

from medsd.dicom.burned_in import BurnedIn, assess
from medsd.dicom.confidentiality import Confidentiality
from medsd.dicom.content import KNOWN_BY, bound_inflation, looks_like_dicom, read_content, syntax_without_meta
from medsd.dicom.header import identifier, identities
from medsd.dicom.pixel_bytes import tidy_pixel_data
from medsd.dicom.policy import GatePolicy, concern
from medsd.dicom.quiet import quiet
from medsd.dicom.terms import packaged
from medsd.errors import DataError, DependencyError, ImageError, explained
from medsd.files import write_whole
from medsd.privacy import register_identities
from medsd.progress import Progress

Look = Callable[[Dataset], BurnedIn]
BurnedInAction = Literal["refuse", "warn", "keep"]
Status = Literal["written", "warned", "refused", "exists"]

REASONS: Mapping[str, str] = packaged("reasons.yaml")["deidentify"]
"""Reason code → sentence, in addition to `medsd.dicom.policy.REASONS`."""
# SOP classes (PS3.4 B.5) of free content, by the beginning of their UID, and their own attributes.
_FREE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports, key objects
    "1.2.840.10008.5.1.4.1.1.104.",  # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.9.4.",  # voice and audio
    "1.2.840.10008.5.1.4.38.",  # hanging protocols
    "1.2.840.10008.1.3.10",  # DICOMDIR
)
_FREE_ELEMENTS = ("ContentSequence", "EncapsulatedDocument", "GraphicAnnotationSequence", "DirectoryRecordSequence")
_UNKNOWN_PATIENT = "unknown"
REPORT_COLUMNS = ("input", "status", "reason", "message", "output", "burned_in", "text_boxes")


@dataclass(frozen=True)
class Outcome:
    status: Status  # "warned" is written, with a sentence; "exists" was finished before
    reason: str = ""  # of a warning or refusal
    message: str = ""  # likewise; it names no identity, and no path
    output: str = ""  # path below the output folder, "" if refused
    burned_in: BurnedIn | None = field(default=None, repr=False)  # None if it was not looked at


@dataclass(frozen=True)
class DeidentifySummary:
    """Counts of a run; `reasons` counts the warned and refused ones by reason."""

    written: int
    warned: int
    refused: int
    exists: int
    reasons: dict[str, int]

    def line(self) -> str:
        counts = f"{self.written + self.warned} written ({self.warned} with a warning), {self.exists} there before, "
        why = "; ".join(f"{reason}: {count}" for reason, count in self.reasons.items())
        return counts + f"{self.refused} refused" + (f" [{why}]" if why else "")

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def deidentify_files(
    files: Sequence[Path],
    out: Path,
    profile: Confidentiality,
    *,
    burned_in: BurnedInAction = "warn",
    folders: Sequence[Path] = (),
    report: Path | None = None,
    progress: bool = False,
    look: Look = assess,
) -> DeidentifySummary:
    """De-identify `files` into ``out/PATIENT_KEY/STUDY_KEY/NEW_UID.dcm``; originals are only read.

    Files from an earlier run with the same secret stay as they are, whatever its options. A file that cannot be handled
    is counted, and the rest goes on. `burned_in` is what text in the pixels, or not knowing of it (`look` tells), leads
    to.

    `out` may not lie in one of the `folders` where the files were found, or the next run would take it for originals.
    `report` is a CSV with a row a file. It holds the paths of the originals, which may name patients, so it may not lie
    in `out`, which is passed on.

    Raises DataError: `out` and the originals overlap, or the report cannot be written; DependencyError: the extra
    ``deid`` is not installed.
    """
    _check_folders(files, folders, out, report)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rows: list[list[str]] = []
    places: dict[Path, str] = {}
    with Progress(len(files), name="de-identified", unit="file", wanted=progress) as shown:
        for path in files:
            outcome = deidentify_file(path, out, profile, burned_in=burned_in, look=look, places=places)
            counts[outcome.status] += 1
            reasons.update(filter(None, [outcome.reason]))
            rows.append(_row(path, outcome) if report else [])
            shown.advance()
    if report:
        _write_report(report, rows)
    statuses = {status: counts[status] for status in ("written", "warned", "refused", "exists")}
    return DeidentifySummary(**statuses, reasons=dict(reasons.most_common()))


def deidentify_file(
    path: Path,
    out: Path,
    profile: Confidentiality,
    *,
    burned_in: BurnedInAction = "warn",
    look: Look = assess,
    places: dict[Path, str] | None = None,
) -> Outcome:
    """De-identify one file into its place below `out`; bad input becomes a refusal, never an exception.

    `places` holds the digest of the content that took each place in this run, so that no different file takes it too.
    Raises DependencyError: the extra ``deid`` is not installed; OSError: the output cannot be written.
    """
    places = {} if places is None else places
    with quiet():
        try:
            if path.is_symlink():
                raise ImageError("symbolic_link", REASONS["symbolic_link"])
            if path.exists() and not path.is_file():  # reading a pipe would wait for ever
                raise concern("file_error", detail="it is no regular file").error("")
            ds, content_key = _read(path)
            _refuse_free_content(ds)
            place = _place(ds, content_key, profile)
            if places.setdefault(place, content_key) != content_key:
                raise ImageError("same_uid", REASONS["same_uid"])
            target = out / place
            if target.exists():
                return Outcome("exists", output=str(place))
            seen = look(ds) if "PixelData" in ds else None
            text = f"burned_in_{seen.answer}" if seen and seen.answer != "none_seen" else ""
            if text and burned_in == "refuse":
                return Outcome("refused", text, REASONS[text], burned_in=seen)
            content = _cleaned(ds, profile, seen or BurnedIn("unknown", ""))
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, content, durable=False)
        except ImageError as error:
            return Outcome("refused", error.reason, str(error))
    if seen and text and burned_in == "warn":
        return Outcome("warned", text, seen.message, str(place), seen)
    return Outcome("written", output=str(place), burned_in=seen)


def _read(path: Path) -> tuple[Dataset, str]:
    """The data set and a digest of the file, from one reading."""
    policy = GatePolicy()
    content = read_content(path, policy, "")
    if not looks_like_dicom(content):
        raise concern("not_dicom").error("")
    bound_inflation(content, policy, "")
    try:
        ds = dcmread(io.BytesIO(content), force=True)
        register_identities(identities(ds))
        known = any(keyword in ds for keyword in KNOWN_BY)
    except Exception as error:  # a hostile header can fail anywhere in the parser
        raise concern("cannot_decode", detail=f"the header is damaged, {type(error).__name__}").error("") from None
    if not known and not _has_free_element(ds):
        raise concern("not_dicom").error("")
    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = syntax_without_meta(ds)
    return ds, hashlib.sha256(content).hexdigest()


def _refuse_free_content(ds: Dataset) -> None:
    sop_class = identifier(ds, "SOPClassUID") or str(ds.file_meta.get("MediaStorageSOPClassUID", ""))
    if sop_class.startswith(_FREE_CLASSES) or _has_free_element(ds):
        raise ImageError("free_content", REASONS["free_content"])
    if sop_class not in UID_dictionary:
        raise ImageError("private_class", REASONS["private_class"])
    ds.SOPClassUID = UID(sop_class)


def _has_free_element(ds: Dataset) -> bool:
    return any(keyword in ds for keyword in _FREE_ELEMENTS)


def _place(ds: Dataset, content_key: str, profile: Confidentiality) -> Path:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not identifier(ds, keyword):  # without one, its content stands for it
            setattr(ds, keyword, profile.new_uid(f"{keyword}/{content_key}"))
    hasher = profile.hasher
    patient = hasher.patient_key(identifier(ds, "PatientID")) or _UNKNOWN_PATIENT
    study = hasher.study_key(identifier(ds, "StudyInstanceUID"))
    return Path(patient) / study / f"{profile.new_uid(identifier(ds, 'SOPInstanceUID'))}.dcm"


def _cleaned(ds: Dataset, profile: Confidentiality, seen: BurnedIn) -> bytes:
    """The file that is passed on; what pydicom or the library cannot handle is refused, never half cleaned."""
    stream = io.BytesIO()
    try:
        tidy_pixel_data(ds)
        profile.apply(ds, seen)
        dcmwrite(stream, ds, enforce_file_format=True)
    except DependencyError:
        raise
    except Exception as error:
        raise ImageError("not_writable", REASONS["not_writable"].format(detail=type(error).__name__)) from None
    return stream.getvalue()


def _check_folders(files: Iterable[Path], folders: Iterable[Path], out: Path, report: Path | None) -> None:
    place = out.resolve()
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise DataError(f"{out}: is a symbolic link or no folder; give --out a folder of its own")
    inside = any(place in path.resolve().parents for path in files)
    if inside or any(folder.resolve() in (place, *place.parents) for folder in folders):
        raise DataError(f"{out}: holds, or lies among, the originals; give --out a folder apart from them")
    if report and place in report.resolve().parents:
        raise DataError(f"{report}: the report names the originals and may not lie in the folder that is passed on")


def _row(path: Path, outcome: Outcome) -> list[str]:
    seen = outcome.burned_in
    boxes = " ".join(":".join(map(str, box)) for box in seen.boxes) if seen else ""
    answer = seen.answer if seen else ""
    return [str(path), outcome.status, outcome.reason, outcome.message, outcome.output, answer, boxes]


def _write_report(report: Path, rows: list[list[str]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([REPORT_COLUMNS, *rows])
    with explained(f"{report}: the report cannot be written", OSError):
        report.parent.mkdir(parents=True, exist_ok=True)
        write_whole(report, stream.getvalue().encode("utf-8", "backslashreplace"))
        report.chmod(0o600)
