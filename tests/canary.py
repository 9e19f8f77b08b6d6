"""A patient who does not exist, put wherever a file can hold an identity, and a search that finds her anywhere.

`fill_header` writes her into every DICOM attribute that holds text, dates or numbers; `traces` looks for her in a
folder: in names and contents of files, in several encodings and disguises, and inside of archives and tables.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote

import pydicom
from PIL import Image
from pydicom import Dataset
from pydicom.datadict import DicomDictionary
from pydicom.sequence import Sequence

FAMILY, GIVEN = "Canaryson", "Celiandra"
KANJI, KANA = "金糸雀^星莉亜", "かなりあそん^せりあんどら"
NUMBER = "00471102938"
BIRTH = "19470203"
ACCESSION = "ACC7741902C"
PHONE = "+49 6421 7741903"
STREET = "Kanarienvogelweg 77"
INSTITUTION = "Spital Sankt Kanarius"
PHYSICIAN = "Vogelsteller^Vinzenz"
STUDY_UID, SERIES_UID, INSTANCE_UID = "1.2.826.0.1.77419021", "1.2.826.0.1.77419022", "1.2.826.0.1.77419023"
DICOM_NAME = f"{FAMILY.upper()}^{GIVEN.upper()}={KANJI}={KANA}"
# Her names as copies out of PDF files and web pages have them: soft and invisible, ligature, full width, decomposed.
DISGUISED = (
    "Canary\u00adson", "Canary\u200bson", "Vogel\ufb06eller", "\uff23anaryson", "C\u0327eliandra", "C\u00e9liandra",
)  # fmt: skip
# Finding words likewise; the last is a word broken at the end of a line.
HIDDEN = ("e\ufb00usion", "con\u00adsolidation", "o\u200bedema", "\uff2d\uff21\uff33\uff33", "pneumo-\nthorax")

# What is looked for, in any case of letters.
WORDS = (
    *DISGUISED,
    FAMILY, GIVEN, *KANJI.split("^"), *KANA.split("^"), NUMBER.lstrip("0"), BIRTH, "1947-02-03", "03.02.1947",
    "03/02/1947", "02/03/1947", "3 February 1947", ACCESSION, "77419021", "77419022", "77419023", "7741903",
    STREET.split()[0], "Kanarius", *PHYSICIAN.split("^"),
)  # fmt: skip
# What a digest could be taken of; every form of it.
IDENTIFIERS = (
    NUMBER, NUMBER.lstrip("0"), BIRTH, "1947-02-03", ACCESSION, STUDY_UID, SERIES_UID, INSTANCE_UID, FAMILY, GIVEN,
    f"{FAMILY}^{GIVEN}", f"{FAMILY}, {GIVEN}", f"{GIVEN} {FAMILY}", DICOM_NAME,
)  # fmt: skip
NOTE = (
    f"{FAMILY}, {GIVEN}, born 03.02.1947, MRN {NUMBER}, accession {ACCESSION}, phone {PHONE}. "
    f"Mrs {FAMILY} lives at {STREET} and was sent by Dr. Vogelsteller of {INSTITUTION}. {KANJI} "
    "Short of breath for three days. canaryson has had a known heart failure since 1947-02-03. "
    f"Ask {' and '.join(DISGUISED)} or Canary-\nson of Vogel-\nsteller."
)

# These decide whether and how a film is read; a name in them would be a broken file, which is tested apart.
_FUNCTIONAL = {
    "Modality", "PhotometricInterpretation", "BodyPartExamined", "ViewPosition", "PatientSex", "PatientAge",
    "PresentationIntentType", "PresentationLUTShape", "SOPClassUID", "SpecificCharacterSet", "NumberOfFrames",
    "VOILUTFunction", "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelSpacing",
    "ImagerPixelSpacing", "BurnedInAnnotation", "PatientOrientation", "ModalityLUTSequence", "VOILUTSequence",
    "PresentationLUTSequence", "LengthToEnd", "LossyImageCompressionRatio", "PixelAspectRatio",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
}  # fmt: skip
_TEXT = f"{FAMILY} {NUMBER} {ACCESSION}"
_BY_VR = {
    "PN": DICOM_NAME, "LO": _TEXT, "SH": f"{FAMILY[:9]} {NUMBER[-6:]}", "CS": FAMILY.upper(), "AE": FAMILY.upper(),
    "ST": _TEXT, "LT": f"{_TEXT} {PHONE} {STREET}", "UT": f"{_TEXT} {INSTITUTION}", "UC": _TEXT,
    "UR": f"https://example.org/{FAMILY}/{NUMBER}", "DA": BIRTH, "DT": f"{BIRTH}101500", "IS": NUMBER.lstrip("0"),
    "DS": NUMBER.lstrip("0"), "UI": INSTANCE_UID,
}  # fmt: skip
_PLAIN = {
    "PatientName": DICOM_NAME, "PatientID": NUMBER, "PatientBirthDate": BIRTH, "AccessionNumber": ACCESSION,
    "StudyInstanceUID": STUDY_UID, "SeriesInstanceUID": SERIES_UID, "SOPInstanceUID": INSTANCE_UID,
    "InstitutionName": INSTITUTION, "ReferringPhysicianName": PHYSICIAN, "PatientAddress": STREET,
    "PatientTelephoneNumbers": PHONE, "OtherPatientIDs": NUMBER.lstrip("0"),
}  # fmt: skip


@cache
def text_elements() -> tuple[tuple[int, str, str], ...]:
    """(tag, VR, keyword) of every attribute of groups 0008 to 0040 that can hold text, a date or an item."""
    found = []
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if 0x0008 <= tag >> 16 <= 0x0040 and keyword and keyword not in _FUNCTIONAL and (vr in _BY_VR or vr == "SQ"):
            found.append((tag, vr, keyword))
    return tuple(found)


def fill_header(ds: Dataset, every: int = 1) -> Dataset:
    """Write the canary into each `every`-th attribute of `text_elements`, and into all that are made for an identity.

    Nested items and private elements have her too.
    """
    ds.SpecificCharacterSet = "ISO_IR 192"
    for position, (tag, vr, keyword) in enumerate(text_elements()):
        if position % every and keyword not in _PLAIN:
            continue
        ds.add_new(tag, vr, Sequence([_item()]) if vr == "SQ" else _PLAIN.get(keyword, _BY_VR[vr]))
    block = ds.private_block(0x0011, f"{FAMILY.upper()} MAKER", create=True)
    for offset, vr in enumerate(("PN", "LO", "UN", "SQ"), start=1):
        value = {"UN": _TEXT.encode(), "SQ": Sequence([_item()])}.get(vr, _BY_VR.get(vr))
        block.add_new(offset, vr, value)
    ds.DataSetTrailingPadding = _TEXT.encode() + b"\0" * (len(_TEXT) % 2)
    return ds


def _item() -> Dataset:
    """An item of a sequence with her name, with an item in it."""
    inner, item = Dataset(), Dataset()
    for target in (inner, item):
        target.PatientName, target.PatientID, target.PatientBirthDate = DICOM_NAME, NUMBER, BIRTH
        target.CodeMeaning, target.CodeValue = _TEXT, NUMBER
    item.ReferencedPatientSequence = Sequence([inner])
    return item


def film(path: Path, *, number: str = NUMBER, study: str = STUDY_UID, every: int = 1) -> bytes:
    """The content of the DICOM file at `path`, made hers: header (see `fill_header`), preamble and file meta."""
    ds = fill_header(pydicom.dcmread(path), every)
    ds.PatientID, ds.StudyInstanceUID = number, study
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.SourceApplicationEntityTitle = FAMILY.upper()
    ds.preamble = f"{_TEXT} {DICOM_NAME}".encode()[:128].ljust(128, b"\0")
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def traces(folder: Path, *, since: float = 0.0) -> list[str]:
    """Where below `folder` the canary is found: "file: what", sorted; empty where she is nowhere.

    Args:
        folder: searched with everything in it.
        since: leave the content of files out that were last changed before (seconds of `time.time`).
    """
    found = set()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        found |= {f"name of {place}: {what}" for what in traces_in(place.encode())}
        if path.stat().st_mtime < since:
            continue
        if path.is_file():
            found |= {f"{place}: {what}" for what in _in_content(path.read_bytes(), path.name)}
        if path.is_dir() and path.suffix == ".lance":
            found |= {f"{place}: {what}" for what in traces_in(_lance_text(path))}
    return sorted(found)


def traces_in(data: bytes) -> set[str]:
    """What of the canary is in `data` as it stands."""
    anycase, exact = _forms()
    lower = data.lower()
    return {what for form, what in anycase.items() if form in lower} | {
        what for form, what in exact.items() if form in data
    }


def _in_content(data: bytes, name: str, depth: int = 0) -> set[str]:
    """In `data`, and in what is packed in it."""
    found = traces_in(data)
    if depth < 4:
        for packed in _unpacked(data, name):
            found |= _in_content(packed, "", depth + 1)
    return found


def _unpacked(data: bytes, name: str) -> Iterator[bytes]:
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield member.encode()
                yield archive.read(member)
    elif data[:4] == b"PAR1":
        yield _parquet_text(data)
    elif data[:4] == b"\x89PNG" or data[:3] == b"\xff\xd8\xff" or data[8:12] == b"WEBP":
        with Image.open(io.BytesIO(data)) as picture:
            yield repr([*picture.info.items(), *picture.getexif().items()]).encode()
    elif data[:4] == b"%PDF":
        for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL):
            with_errors = zlib.decompressobj()
            try:
                yield with_errors.decompress(stream)
            except zlib.error:
                yield stream


def _parquet_text(data: bytes) -> bytes:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    return repr((table.schema.metadata, table.to_pylist())).encode() + _cells(table)


def _lance_text(path: Path) -> bytes:
    import lancedb

    table = lancedb.connect(str(path.parent)).open_table(path.stem).search().limit(None).to_arrow()
    return repr(table.schema.metadata).encode() + _cells(table)


def _cells(table: object) -> bytes:
    """Every text and every run of bytes of an Arrow table."""
    cells = [value for row in table.to_pylist() for value in row.values()]  # type: ignore[attr-defined]
    parts = [value if isinstance(value, bytes) else str(value).encode() for value in cells]
    return b"\n".join([*parts, *(text for part in parts for text in _unpacked(part, ""))])


@cache
def _forms() -> tuple[dict[bytes, str], dict[bytes, str]]:
    """Bytes and what they stand for: found in lower-cased bytes, and found as they are (base64 minds the case)."""
    anycase: dict[bytes, str] = {}
    exact: dict[bytes, str] = {}
    for word in WORDS:
        lower = word.lower()
        for form in (lower, lower[::-1], quote(lower).lower(), ascii(lower).strip("'"), json.dumps(lower).strip('"')):
            anycase |= {form.encode(encoding): form for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")}
        for encoding in () if lower.isascii() else ("latin-1", "shift_jis", "iso2022_jp", "euc_jp"):
            exact[lower.encode(encoding, "ignore")] = f"{word} as {encoding}"
        for form in (word, lower, word.upper()):
            anycase |= {form.encode(encoding).hex().encode(): f"{word} as hex" for encoding in ("utf-8", "utf-16-le")}
            exact |= dict.fromkeys(_base64_forms(form.encode()), f"{word} as base64")
    for identifier in IDENTIFIERS:
        for form in {identifier, identifier.lower(), identifier.upper()}:
            for algorithm in ("md5", "sha1", "sha256"):
                digest, what = hashlib.new(algorithm, form.encode()).digest(), f"{algorithm} of {identifier}"
                anycase[digest.hex()[:14].encode()] = what
                exact |= {digest[:8]: what, base64.b64encode(digest)[:12]: what}
                exact[base64.urlsafe_b64encode(digest)[:12]] = what
    return _long(anycase), _long(exact)


def _long(forms: dict[bytes, str]) -> dict[bytes, str]:
    """Without forms so short that they occur by chance."""
    return {form: what for form, what in forms.items() if len(form) >= 5}


def _base64_forms(data: bytes) -> Iterator[bytes]:
    """The base64 of `data` at each of the three places it can begin at, without the ends that neighbours change."""
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + data)
        whole = len(b"\0" * shift + data) // 3 * 4  # characters that no later byte changes
        inside = coded[(0, 2, 3)[shift] : whole]
        if len(inside) >= 7:
            yield inside
            yield inside.replace(b"+", b"-").replace(b"/", b"_")
